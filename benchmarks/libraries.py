r"""How far real libraries move the lines of a lane detector on a recording, for every pair of two pixel paths.

    python benchmarks/libraries.py --recording solidWhiteRight.mp4 --before plain0.ckpt plain1.ckpt plain2.ckpt \
        [--after mixin0.ckpt mixin1.ckpt mixin2.ckpt] [--every 2] [--out runs/libraries]

A path is a decoder and a resizer of ``pixel_paths.py``, from the file to 144 x 256: OpenCV's and FFmpeg's decoding,
also through JPEG, times resizers of torch, Pillow, OpenCV and FFmpeg. The detector saw rendered roads alone, so that no
path is the one it was trained on. *Training's side* of the tables means the path of ``lanes_recording.py`` and of
``lightning_robust.demo.lanes.predict``: OpenCV decodes, torch resizes bilinearly with antialiasing. Each other path is
the deployed side to it, and any path to any other.

*Error* is the mean distance to the reference lines of ``lanes_recording.py``. *Moved* is the distance between the lines
of two paths, mean and 99th percentile, at points that are within 10 px of the reference on training's side; *beyond*,
what is left of it where lines follow the motion that NEAREST and FAST_BILINEAR give the picture. Pixels of 960.

Several checkpoints are seeds: the mean over them, the smallest and the largest. What a checkpoint answered is kept in
the folder under the digest of its file.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lanes_recording import ROWS, Reference, at_rows, read_frames, reference_lines
from pixel_paths import CONVERSIONS, MOTIONS, RESIZERS, Picture, by_video_capture, frames_of, through_jpeg
from rows import quiet, spread

from lightning_robust.demo.lanes import LaneDetector
from lightning_robust.demo.lanes.data import normalise
from lightning_robust.demo.lanes.inference import load_detector
from lightning_robust.functional.picture_motion import move_columns
from lightning_robust.tables import markdown

Path_ = tuple[str, str]
Lines = np.ndarray
TRAINED: Path_ = ("OpenCV", "torch bilinear, antialias")
_KNOWN = 10.0
_CODECS = (("Pillow", 95), ("OpenCV", 95), ("PyAV", 95), ("Pillow", 75))


def _each(
    path: Path, every: int, source: Callable[[Path], Iterator[Any]], change: Callable[[Any], Picture]
) -> Iterator[Picture]:
    return map(change, itertools.islice(source(path), 0, None, every))


READERS: Mapping[str, Callable[[Path, int], Iterator[Picture]]] = {
    "OpenCV": partial(_each, source=by_video_capture, change=np.asarray),
    **{name: partial(_each, source=frames_of, change=convert) for name, convert in CONVERSIONS.items()},
    **{
        f"JPEG {quality} of {codec}": partial(
            _each, source=by_video_capture, change=partial(through_jpeg, codec=codec, quality=quality)
        )
        for codec, quality in _CODECS
    },
}
"""Each so many of a video's pictures; the last four are OpenCV's through JPEG."""
PATHS: tuple[Path_, ...] = tuple(itertools.product(READERS, RESIZERS))
MATRIX = (
    *("torch bilinear, antialias", "Pillow BICUBIC", "OpenCV INTER_AREA", "OpenCV INTER_LINEAR"),
    *("OpenCV INTER_CUBIC", "OpenCV INTER_NEAREST", "swscale BICUBIC", "swscale FAST_BILINEAR"),
)


def answers(detectors: Sequence[LaneDetector], recording: Path, every: int) -> list[dict[str, Lines]]:
    """The lines (T, 2, R) of each detector on each path, by ``decoder | resizer``."""
    found: list[dict[str, Lines]] = [{} for _ in detectors]
    seen: dict[str, str] = {}
    for reader, read in READERS.items():
        frames = list(read(recording, every))
        for resizer, resize in RESIZERS.items():
            inputs = np.stack([resize(frame, (detectors[0].height, detectors[0].width)) for frame in frames])
            path = f"{reader} | {resizer}"
            twin = seen.setdefault(hashlib.sha256(inputs.tobytes()).hexdigest(), path)
            for detector, lines in zip(detectors, found, strict=True):
                lines[path] = lines[twin] if twin != path else located(detector, inputs)
        print(f"{reader}: done", flush=True)
    return found


def located(detector: LaneDetector, inputs: Picture) -> Lines:
    """The lines of pictures that have the network's size, levels (N, H, W, 3), in pixels of the recording."""
    parts = []
    with torch.inference_mode():
        for chunk in torch.from_numpy(inputs).split(32):
            outputs = detector(normalise(chunk.permute(0, 3, 1, 2).float()))
            parts.append((outputs.columns.double(), detector.decode(outputs)["present"]))
    columns, present = (torch.cat(tensors).numpy() for tensors in zip(*parts, strict=True))
    return at_rows(detector.rows.numpy(), columns, present)


def moved(ours: Lines, theirs: Lines, known: np.ndarray) -> tuple[float, float]:
    """How far two paths' lines are apart where both are there: mean and 99th percentile over known points."""
    apart = np.abs(ours - theirs)[known]
    apart = apart[~np.isnan(apart)]
    return float(apart.mean()), float(np.percentile(apart, 99))


class Answers:
    """The lines of one checkpoint, and how they lie to the reference and to each other."""

    def __init__(self, lines: Mapping[str, Lines], truth: np.ndarray) -> None:
        self.lines, self.truth = lines, truth
        with np.errstate(invalid="ignore"):
            self.known = np.abs(lines[" | ".join(TRAINED)] - truth) < _KNOWN

    def still(self, frame: tuple[int, int]) -> Answers:
        """The same, where the motion that a resizer gives the picture is taken back from the lines.

        Args:
            frame: Height and width of the recording.
        """
        rows, network = torch.from_numpy(ROWS).double(), (LaneDetector().height, LaneDetector().width)
        back = {name: torch.from_numpy(np.linalg.inv(made(frame, network))) for name, made in MOTIONS.items()}
        lines = {
            path: move_columns(torch.from_numpy(found), rows, back[name]).numpy() if name in back else found
            for path, found in self.lines.items()
            for name in [path.split(" | ")[1]]
        }
        return Answers(lines, self.truth)

    def found(self) -> float:
        """Percent of the reference's points that have a line, over all paths."""
        there = ~np.isnan(self.truth)
        return float(100 * np.mean([(~np.isnan(lines[there])).mean() for lines in self.lines.values()]))

    def error(self, path: Path_) -> float:
        """Mean distance to the reference."""
        return float(np.nanmean(np.abs(self.lines[" | ".join(path)] - self.truth)))

    def moved(self, ours: Path_, theirs: Path_) -> tuple[float, float]:
        """Mean and 99th percentile between two paths."""
        return moved(self.lines[" | ".join(ours)], self.lines[" | ".join(theirs)], self.known)

    def all_pairs(self) -> np.ndarray:
        """Both numbers of every pair of different paths, (pairs, 2)."""
        return np.array([self.moved(a, b) for a, b in itertools.combinations(PATHS, 2)])


def asked(checkpoints: Sequence[Path], recording: Path, every: int, out: Path) -> list[dict[str, Lines]]:
    """As :func:`answers`, from the folder where they are known."""
    names = [out / f"{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}_{every}.npz" for path in checkpoints]
    missing = {name: path for name, path in zip(names, checkpoints, strict=True) if not name.exists()}
    if missing:
        out.mkdir(parents=True, exist_ok=True)
        made = answers([load_detector(path) for path in missing.values()], recording, every)
        for name, lines in zip(missing, made, strict=True):
            np.savez(name, **lines)
    return [dict(np.load(name)) for name in names]


def by_path(sides: Mapping[str, list[Answers]], paths: Sequence[Path_]) -> str:
    """Error and movement from training's side of some paths."""
    lines = []
    for path in paths:
        line = [" -> ".join(path)]
        for seeds in sides.values():
            apart = [one.moved(TRAINED, path) for one in seeds]
            line.append(spread([one.error(path) for one in seeds]))
            line += [spread([mean for mean, _ in apart]), spread([p99 for _, p99 in apart])]
        lines.append(line)
    shown = [f"{name}: {what}" for name in sides for what in ("error", "moved, mean", "moved, p99")]
    return markdown(["deployed side", *shown], lines)


def matrix(sides: Mapping[str, list[Answers]]) -> str:
    """Moved, mean, between resizers of OpenCV's frames: below the diagonal the first side, above it the last."""
    first, last = next(iter(sides.values())), list(sides.values())[-1]
    lines = []
    for number, ours in enumerate(MATRIX):
        line = [ours]
        for other, theirs in enumerate(MATRIX):
            side = first if other < number else last
            pairs = [one.moved(("OpenCV", ours), ("OpenCV", theirs))[0] for one in side]
            line.append("-" if other == number else f"{np.mean(pairs):.2f}")
        lines.append(line)
    return markdown(["training's side, deployed side", *MATRIX], lines)


def summary(sides: Mapping[str, list[Answers]]) -> str:
    """All pairs in a few numbers."""
    lines = []
    for name, seeds in sides.items():
        pairs = [one.all_pairs() for one in seeds]
        errors = [[one.error(path) for path in PATHS] for one in seeds]
        line = [name, len(seeds), spread([one.found() for one in seeds])]
        line += [spread([one.error(TRAINED) for one in seeds]), spread([max(each) for each in errors])]
        for column, quantile in itertools.product((0, 1), (50, 90, 100)):
            line.append(spread([float(np.percentile(one[:, column], quantile)) for one in pairs]))
        lines.append(line)
    shown = [f"{what}, {which}" for what in ("mean", "p99") for which in ("median pair", "9 of 10", "worst pair")]
    return markdown(["weights", "seeds", "found %", "error", "error, worst path", *shown], lines)


def main() -> None:
    """Ask the checkpoints what is missing and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recording", type=Path, required=True)
    parser.add_argument("--before", type=Path, nargs="+", required=True, help="checkpoints of plain training")
    parser.add_argument("--after", type=Path, nargs="+", default=[], help="those of training with PreprocessingMixin")
    parser.add_argument("--every", type=int, default=2, help="each so many frames")
    parser.add_argument("--out", type=Path, default=Path("runs/libraries"))
    given = parser.parse_args()
    quiet()
    torch.set_num_threads(1)
    for path in (given.recording, *given.before, *given.after):
        if not path.is_file():
            parser.error(f"Expected a file at {path}, but there is none.")
    frames = read_frames(given.recording)
    reference: Reference = reference_lines(frames, 308.0)
    made = asked([*given.before, *given.after], given.recording, given.every, given.out)
    found = [Answers(lines, reference.columns[:: given.every]) for lines in made]
    groups = {"before": found[: len(given.before)], "after": found[len(given.before) :]}
    sides = {name: seeds for name, seeds in groups.items() if seeds}
    print("\nResizers, of OpenCV's frames\n\n" + by_path(sides, [(TRAINED[0], name) for name in RESIZERS]))
    print("\nDecoders, to torch's antialiased resize\n\n" + by_path(sides, [(name, TRAINED[1]) for name in READERS]))
    print("\n" + matrix(sides))
    print(f"\nAll pairs of {len(PATHS)} paths\n\n{summary(sides)}")
    still = {name: [one.still(frames.shape[1:3]) for one in seeds] for name, seeds in sides.items()}
    print("\nBeyond the motion of the picture\n\n" + by_path(still, [(TRAINED[0], name) for name in MOTIONS]))
    print("\n" + summary(still))


if __name__ == "__main__":
    main()
