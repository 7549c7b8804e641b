"""What every entry of the catalogue moves in the lines of a lane detector, on rendered roads and on a recording.

Distances are in pixels of 960, of the points that the model knows (no more than 10 px beside the truth on training's
pixels), and beyond the motion of the picture: where an entry moves the content, the lines that it should move to are
what is compared with. The entries' pixels are the same for every model, so they are made once, into files. A family's
number is that of its worst entry. Intervals are by bootstrap over scenes of eight frames, and over seconds of the
recording.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from lanes_recording import Reference, at_rows, read_frames, reference_lines
from torch import Tensor

from lightning_robust.demo.lanes import LaneData, LaneDetector
from lightning_robust.demo.lanes.data import normalise
from lightning_robust.deployment.pixels.catalogue import Perturbation, perturbations
from lightning_robust.deployment.pixels.names import FAMILIES
from lightning_robust.deployment.pixels.operations import quantise, unchanged
from lightning_robust.statistics import Bootstrap

HORIZON, STEP, KNOWN, AT_A_TIME = 308.0, 2, 10.0, 32
SCENE, SECOND = 8 // STEP, 25
Lines = np.ndarray
"""Columns of both lines, (N, 2, R), NaN where there is none."""


class Source(NamedTuple):
    """Pictures with the truth about them.

    Args:
        name: ``"rendered"`` or ``"recording"``.
        folder: Where its pixels lie, a file for each entry.
        truth: Columns, at the model's anchors or at those of ``lanes_recording.py``.
        block: Pictures that are drawn together in the bootstrap.
    """

    name: str
    folder: Path
    truth: Lines
    block: int

    def pixels(self, name: str) -> np.ndarray:
        """Levels (N, 3, H, W) of an entry, of ``clean`` or of ``resized`` pictures."""
        return np.load(self.folder / self.name / f"{name}.npy", mmap_mode="r")

    def lines(self, model: LaneDetector, columns: Tensor) -> Lines:
        """The lines where the truth is known."""
        if self.name == "rendered":
            return columns.double().numpy()
        return at_rows(model.rows.numpy(), columns.double().numpy(), ~columns.isnan().numpy())


def sources(folder: Path, recording: Path) -> list[Source]:
    """Both kinds of pictures, with pixels that are there already or made now; every second of the rendered ones."""
    data = LaneData(render_workers=0)
    data.setup("validate")
    batches = list(data.val_dataloader())
    images, columns = (torch.cat(parts)[::STEP] for parts in zip(*batches, strict=True))
    frames = read_frames(recording)
    reference: Reference = reference_lines(frames, HORIZON)
    found = [
        Source("rendered", folder, columns.double().numpy(), SCENE),
        Source("recording", folder, reference.columns, SECOND),
    ]
    shrunk = torch.cat([_shrink(part) for part in torch.from_numpy(frames).split(AT_A_TIME)])
    for source, pictures in zip(found, (images.float() / 255, shrunk), strict=True):
        make_pixels(source, quantise(pictures))
    return found


def _shrink(frames: Tensor) -> Tensor:
    """The detector's own resize of frames (N, H, W, 3), in [0, 1]."""
    model = LaneDetector()
    size = (model.height, model.width)
    pictures = frames.permute(0, 3, 1, 2).float()
    return torch.nn.functional.interpolate(pictures, size, mode="bilinear", antialias=True) / 255


def make_pixels(source: Source, pictures: Tensor) -> None:
    """Write what is missing of a source's pixels, from pictures (N, 3, H, W) on the levels of [0, 1]."""
    for name, change, in_levels in _changes():
        path = source.folder / source.name / f"{name}.npy"
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        levels = torch.cat([change(part) for part in pictures.split(AT_A_TIME)]).numpy() * 255
        unfinished = path.with_suffix(".part.npy")
        np.save(unfinished, levels.round().astype(np.uint8) if in_levels else levels.astype(np.float32))
        unfinished.rename(path)


def _changes() -> Iterator[tuple[str, Callable[[Tensor], Tensor], bool]]:
    entries = perturbations("all")
    for name, entry in {_trained_name(entry): entry for entry in entries}.items():
        yield name, entry.trained, True
    for entry in entries:
        yield entry.name, entry.deployed, entry.in_levels


def _trained_name(entry: Perturbation) -> str:
    """The file of an entry's training side."""
    return "clean" if entry.trained is unchanged else "resized"


def sensitivities(model: LaneDetector, pictures: list[Source]) -> dict[str, float]:
    """Every number of a row but what training says: ``p99/<source>/<family>`` and their like; see :func:`_measured`."""
    model.eval()
    found: dict[str, float] = {}
    for source in pictures:
        found |= _measured(model, source)
    return found


def _measured(model: LaneDetector, source: Source) -> dict[str, float]:
    """Of one source: 99th percentile with its interval, mean, swing and bend of each family, their median and worst."""
    clean = {name: _columns(model, source.pixels(name)) for name in ("clean", "resized")}
    known = np.abs(source.lines(model, clean["clean"]) - source.truth) < KNOWN
    blocks = np.arange(len(known)) // source.block
    bootstrap = Bootstrap(int(blocks[-1]) + 1)
    found: dict[str, float] = {}
    for family, names in FAMILIES.items():
        moved = [_entry(model, source, entry, clean, known) for entry in perturbations(list(names))]
        worst = max(moved, key=lambda each: each.p99)
        low, high = bootstrap.percentile_99(worst.distances, blocks[worst.owners])
        numbers = {"p99": worst.p99, "p99_low": low, "p99_high": high, "mean": max(each.mean for each in moved)}
        if source.name == "recording":
            swings, bends = zip(*(_unrest(each.lines - source.truth) for each in moved), strict=True)
            numbers |= {"swing": max(swings), "bend": max(bends)}
        found |= {f"{number}/{source.name}/{family}": value for number, value in numbers.items()}
    for number in ("p99", "mean"):
        values = [found[f"{number}/{source.name}/{family}"] for family in FAMILIES]
        found |= {f"{number}_median/{source.name}": statistics.median(values)}
        found |= {f"{number}_worst/{source.name}": max(values)}
    if source.name == "recording":
        lines = source.lines(model, clean["clean"])
        error = np.abs(lines - source.truth)
        found["recording_px"] = float(np.nanmedian(error))
        found["swing"], found["bend"] = _unrest(lines - source.truth)
        for number in ("swing", "bend"):
            found[f"{number}_worst"] = max(found[f"{number}/recording/{family}"] for family in FAMILIES)
    return found


class _Moved(NamedTuple):
    """How far an entry moved the known points: each distance and the picture it belongs to; the lines themselves."""

    distances: np.ndarray
    owners: np.ndarray
    lines: Lines

    @property
    def mean(self) -> float:
        return float(self.distances.mean())

    @property
    def p99(self) -> float:
        """The smallest distance that 99 of 100 do not exceed."""
        return float(np.sort(self.distances)[-1 - len(self.distances) // 100])


def _entry(
    model: LaneDetector, source: Source, entry: Perturbation, clean: dict[str, Tensor], known: np.ndarray
) -> _Moved:
    expected = clean[_trained_name(entry)]
    if entry.motion is not None:
        expected = model.moved({"lateral_px": expected}, entry.matrix(model.height, model.width))["lateral_px"]
    lines = source.lines(model, _columns(model, source.pixels(entry.name)))
    distances = np.abs(lines - source.lines(model, expected))
    counted = known & ~np.isnan(distances)
    return _Moved(distances[counted], counted.nonzero()[0], lines)


def _unrest(error: Lines) -> tuple[float, float]:
    """Swing and bend, as ``lanes_recording.py`` has them."""
    return float(np.nanmean(np.abs(np.diff(error, axis=0)))), float(np.nanmean(np.abs(np.diff(error, n=2, axis=2))))


@torch.inference_mode()
def _columns(model: LaneDetector, levels: np.ndarray) -> Tensor:
    """Columns (N, 2, R) of pictures, NaN where there is no line."""
    parts = [
        model.decode(model(normalise(torch.from_numpy(levels[start : start + AT_A_TIME].astype(np.float32)))))
        for start in range(0, len(levels), AT_A_TIME)
    ]
    return torch.cat([part["lateral_px"] for part in parts])
