"""Points of accuracy that decoders, resizers, colour, rounding, graph and precision cost, before and after training.

    python benchmarks/sysnoise.py --archive cifar10-jpeg.tar.gz [--seeds 0 1 2] [--out runs/sysnoise] [--jobs 1]

In the manner of SysNoise (Wang et al., MLSys 2023), on CIFAR-10 as JPEG files of quality 75: not the original bytes, so
these accuracies compare with each other and not with other tables. Pictures of 32 x 32 are really brought down, to
24 x 24, as training's side does with Pillow (decode, BILINEAR); each row does one thing otherwise, with a real library.
A ResNet of seven convolutions is trained for six epochs; the other trainings go on from its weights at
the cost of about six epochs more: plain, with augmentation alone, with :class:`~lightning_robust.PreprocessingMixin`.

"Lost" is the accuracy on training's side less that of the row, of the same weights on the same 10,000 pictures, in
points: the mean over the seeds, their smallest and largest. The intervals are 95 %, by bootstrap over pictures.
Finished trainings and decoded sets are kept in the folder.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cifar import CALIBRATION, SIZE, CifarData, SmallResNet, engine, kept_array, kept_weights, read_files
from lightning.pytorch import seed_everything
from pixel_paths import DECODERS, RESIZERS, Picture, Resizer, by_pillow, through_nv12
from rows import MIXED, Results, options, quiet_trainer, run_rows, slug, spread
from torch import Tensor, nn

from lightning_robust.statistics import Bootstrap, Interval
from lightning_robust.tables import markdown

EPOCHS, MORE = 6, 3
"""Epochs of the plain training, and of those that go on with two pictures for each one."""
PEAK = 0.05
"""The peak of the learning rate of those that go on."""
FAMILIES = ["resize_filter", "compression", "color_matrix", "color_range", "rounding"]
"""Of the catalogue: what the rows differ in. The catalogue's own operations, not those of the libraries of the rows."""
MIXIN: dict[str, Any] = {"preprocessing_entries": FAMILIES, "preprocessing_share": 0.5}
ROWS: dict[str, dict[str, Any]] = {
    "plain": {},
    "plain, six epochs more": {},
    "augmentation": {**MIXIN, "preprocessing_weight": 1e-9},
    "PreprocessingMixin": {**MIXIN, "preprocessing_weight": 5.0},
}
BEFORE, AFTER = "plain", "PreprocessingMixin"
Made = Callable[[bytes], Picture]


def _path(
    content: bytes,
    decode: Made = by_pillow,
    colour: Callable[[Picture], Picture] | None = None,
    resize: Resizer = RESIZERS["Pillow BILINEAR"],
) -> Picture:
    picture = decode(content)
    return resize(picture if colour is None else colour(picture), (SIZE, SIZE))


def _cut_off(picture: Picture, size: tuple[int, int]) -> Picture:
    """The exact antialiased resize cut off to 8 bits; flat regions keep their level."""
    return (RESIZERS["torch bilinear, antialias"](picture, size) + 1e-3).astype(np.uint8)


_COLOURS: Mapping[str, Callable[[Picture], Picture]] = {
    "NV12, BT.601": through_nv12,
    "NV12, BT.601 as BT.709": partial(through_nv12, read="itu709"),
    "NV12, BT.709 as BT.601": partial(through_nv12, written="itu709"),
    "NV12, full range as limited": partial(through_nv12, full=(True, False)),
    "NV12, limited range as full": partial(through_nv12, full=(False, True)),
}
_RESIZES = (
    *("torch bilinear, antialias", "Pillow BICUBIC", "Pillow LANCZOS", "OpenCV INTER_LINEAR", "OpenCV INTER_AREA"),
    *("OpenCV INTER_CUBIC", "OpenCV INTER_NEAREST", "swscale BICUBIC"),
)
SETS: dict[tuple[str, str], Made] = {
    **{("decode", name): partial(_path, decode=decode) for name, decode in DECODERS.items() if name != "Pillow"},
    **{("resize", name): partial(_path, resize=RESIZERS[name]) for name in _RESIZES},
    ("decode and resize", "PyAV, swscale BICUBIC"): partial(
        _path, decode=DECODERS["PyAV"], resize=RESIZERS["swscale BICUBIC"]
    ),
    **{("colour", name): partial(_path, colour=colour) for name, colour in _COLOURS.items()},
    ("rounding", "cut off"): partial(_path, resize=_cut_off),
}
"""Family and row -> the network's pixels of a file."""
GRAPHS = {("graph", "ceil mode"): "", ("precision", "fp16"): "emulated-fp16", ("precision", "int8"): "onnxruntime-int8"}
CLEAN = ("clean", "Pillow, BILINEAR")


def pictures(archive: Path, out: Path, part: str, name: str, made: Made) -> tuple[np.ndarray, np.ndarray]:
    """A set (N, 24, 24, 3) as one path makes it, and its labels; kept in ``out``."""
    labels = kept_array(out / "sets" / f"{part}_labels.npy", lambda: read_files(archive, part)[1])
    path = out / "sets" / f"{part}_{slug(name)}.npy"
    return kept_array(path, lambda: np.stack([made(content) for content in read_files(archive, part)[0]])), labels


def weights_of(name: str, seed: int, archive: Path, out: Path) -> dict[str, Any]:
    """The weights of a training, and the seconds that it took; trained at the first call."""

    def made() -> dict[str, Any]:
        begin = None if name == BEFORE else weights_of(BEFORE, seed, archive, out)["state_dict"]
        seed_everything(seed)
        module = SmallResNet(**ROWS[name]) if begin is None else SmallResNet(learning_rate=PEAK, **ROWS[name])
        if begin is not None:
            module.load_state_dict(begin)
        data = CifarData(*(pictures(archive, out, part, "clean", _path) for part in ("train", "test")))
        began, epochs = time.process_time(), MORE if ROWS[name] else EPOCHS
        quiet_trainer([], max_epochs=epochs, precision=MIXED, limit_val_batches=0).fit(module, data)
        return {"state_dict": module.state_dict(), "cpu_seconds": time.process_time() - began}

    return kept_weights(out / slug(name) / str(seed) / "weights.pt", made)


def trained(name: str, seed: int, folder: Path, archive: Path) -> dict[str, float]:
    """One row: train, then find which pictures are right on every path; these stand in ``right.npz``."""
    torch.set_num_threads(1)
    out = folder.parent.parent
    found = weights_of(name, seed, archive, out)
    module = SmallResNet(**ROWS[name])
    module.load_state_dict(found["state_dict"])
    right = judged(module.eval(), archive, out)
    np.savez(folder / "right.npz", **{" | ".join(row): hits for row, hits in right.items()})
    return {" | ".join(row): float(hits.mean()) for row, hits in right.items()} | {"cpu_seconds": found["cpu_seconds"]}


def judged(module: SmallResNet, archive: Path, out: Path) -> dict[tuple[str, str], np.ndarray]:
    """Which of the test pictures the network has right, by row."""
    data = CifarData(*2 * [pictures(archive, out, "test", "clean", _path)])
    clean, labels = data.test.pictures, data.test.labels.numpy()

    def inputs(images: Tensor) -> Tensor:
        return data.normalise(images.permute(0, 3, 1, 2))

    def hits(run: Callable[[Tensor], Tensor], images: Tensor) -> np.ndarray:
        answers: np.ndarray = torch.cat([run(inputs(chunk)).argmax(1) for chunk in images.split(100)]).numpy()
        return answers == labels

    with torch.no_grad():
        right = {CLEAN: hits(module, clean)}
        for (family, name), made in SETS.items():
            changed = torch.from_numpy(pictures(archive, out, "test", name, made)[0])
            right[family, name] = right[CLEAN] if torch.equal(changed, clean) else hits(module, changed)
        calibration = pictures(archive, out, "train", "clean", _path)[0][:: 50_000 // CALIBRATION][:CALIBRATION]
        for row, target in GRAPHS.items():
            run = ceiled(module) if not target else engine(module, target, inputs(torch.from_numpy(calibration)))
            right[row] = hits(run, clean)
    return right


def ceiled(module: SmallResNet) -> SmallResNet:
    """The same weights where pooling rounds its size up: 13 places in place of 12."""
    other = SmallResNet()
    other.load_state_dict(module.state_dict())
    for part in other.modules():
        if isinstance(part, nn.MaxPool2d):
            part.ceil_mode = True
    return other.eval()


class Lost:
    """Points that rows lose against training's side, of several seeds of one training.

    Args:
        right: Of each seed: which pictures are right, by row.
    """

    def __init__(self, right: Sequence[Mapping[str, np.ndarray]]) -> None:
        self.right = right

    def pictures(self, row: str) -> np.ndarray:
        """Points that each picture contributes, the mean over the seeds, (N,)."""
        clean = " | ".join(CLEAN)
        return 100 * np.mean([one[clean].astype(float) - one[row] for one in self.right], 0)

    def seeds(self, rows: Iterable[str]) -> list[float]:
        """Points lost, the mean over some rows, of each seed."""
        names = list(rows)
        return [float(np.mean([Lost([one]).pictures(row).mean() for row in names])) for one in self.right]


def removed(before: Lost, after: Lost, row: str, bootstrap: Bootstrap) -> tuple[float, Interval]:
    """Points less lost after than before, with the paired interval over pictures."""
    gained = before.pictures(row) - after.pictures(row)
    return float(gained.mean()), bootstrap.ratio(gained, np.ones_like(gained))


def tables(results: Results, archive: Path, names: Sequence[str], seeds: Sequence[int]) -> str:
    """What each training loses by row and by family, and how much of it the mixin takes away.

    Of the seeds that all of these trainings have.
    """
    files = {name: [results.folder / slug(name) / str(seed) / "right.npz" for seed in seeds] for name in names}
    whole = [number for number, _ in enumerate(seeds) if all(paths[number].exists() for paths in files.values())]
    if not whole:
        return "No seed has all rows yet."
    lost = {name: Lost([dict(np.load(paths[number])) for number in whole]) for name, paths in files.items()}
    seeds = [seeds[number] for number in whole]
    clean = pictures(archive, results.folder, "test", "clean", _path)[0].astype(float)
    pair = (lost[BEFORE], lost[AFTER]) if {BEFORE, AFTER} <= lost.keys() else None
    bootstrap = Bootstrap(len(clean))
    lines = []
    for family, name in [*SETS, *GRAPHS]:
        row = f"{family} | {name}"
        line = [family, name, "-"]
        if (family, name) in SETS:
            other = pictures(archive, results.folder, "test", name, SETS[family, name])[0]
            line[2] = f"{np.abs(other - clean).mean():.2f}"
        line += [spread(one.seeds([row])) for one in lost.values()]
        if pair is not None:
            gained, (low, high) = removed(*pair, row, bootstrap)
            line.append(f"{gained:.2f} ({low:.2f} to {high:.2f})")
        lines.append(line)
    told = ["family", "row", "levels", *(f"lost: {name}" for name in lost), *(["removed"] if pair else [])]
    return f"{markdown(told, lines)}\n\n{_families(results, lost, seeds)}"


def _families(results: Results, lost: Mapping[str, Lost], seeds: Sequence[int]) -> str:
    """Clean accuracy, time, the mean loss over a family's rows, and the share of the plain weights' that is gone."""
    families = {"decode": ("decode",), "resize": ("resize",), "both": ("decode", "resize", "decode and resize")}
    rows = {name: [f"{f} | {n}" for f, n in SETS if f in parts] for name, parts in families.items()}
    lines = []
    for name, one in lost.items():
        runs = [results.content[f"{name} | {seed}"] for seed in seeds]
        line = [name, len(runs), spread([100 * run[" | ".join(CLEAN)] for run in runs])]
        line += [f"{np.median([run['cpu_seconds'] for run in runs]):.0f}"]
        line += [spread(one.seeds(family)) for family in rows.values()]
        for family in (rows["resize"], rows["both"]):
            base = lost[BEFORE].seeds(family) if BEFORE in lost and name != BEFORE else []
            shares = [100 * (1 - after / before) for before, after in zip(base, one.seeds(family), strict=False)]
            line.append(spread(shares) if shares else "-")
        lines.append(line)
    shown = [*(f"lost: {family}" for family in families), "% of resize removed", "% of both removed"]
    return markdown(["training", "seeds", "accuracy", "CPU s", *shown], lines)


def main() -> None:
    """Run what is missing and print the tables."""
    given = options(__doc__, "runs/sysnoise", ROWS, files=["archive"])
    first = argparse.Namespace(**{**vars(given), "only": [name for name in given.only if name == BEFORE]})
    run_rows(first, trained, given.archive)  # the others go on from its weights
    print("\n" + tables(run_rows(given, trained, given.archive), given.archive, given.only, given.seeds))


if __name__ == "__main__":
    main()
