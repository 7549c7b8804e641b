"""The lane detector under all twelve corruptions in five severities, before and after another training.

    python benchmarks/lane_corruptions.py --before plain0.ckpt plain1.ckpt plain2.ckpt \
        --after mixin0.ckpt mixin1.ckpt mixin2.ckpt [--pictures 64] [--out runs/lane_corruptions]

What ``lightning-robust validate --robust_validation.under=corruptions`` measures on rendered roads in sequences of
eight frames, for several checkpoints at once: the corrupted pictures are made once. Lateral error in pixels of 960
where a line was found, and the share of points that was found. mCE is relative to the checkpoint before of the same
place in the list, as a seed. What a checkpoint answered is kept under the digest of its file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from rows import quiet
from torch import Tensor

from lightning_robust.callbacks.robust_validation.corruption_error import (
    CLEAN_NAME,
    by_corruption,
    errors,
    mean_corruption_error,
    mean_error,
)
from lightning_robust.demo.lanes import LaneData, LaneDetector
from lightning_robust.demo.lanes.data import normalise
from lightning_robust.demo.lanes.inference import load_detector
from lightning_robust.demo.lanes.metrics import Found, LateralError
from lightning_robust.deployment.pixels.corruptions import corruptions
from lightning_robust.tables import markdown

ERROR, FOUND = "val/lateral_px", "val/found"
Measured = dict[str, dict[str, float]]
"""Condition -> metric -> value."""


def answers(detectors: Sequence[LaneDetector], pictures: int) -> list[Measured]:
    """Error and found points of each detector, clean and under each corruption."""
    data = LaneData(num_val=pictures, batch_size=pictures, render_workers=0)
    data.setup("validate")
    ((images, columns),) = data.val_dataloader()
    pixels = images.float() / 255
    found: list[Measured] = [{CLEAN_NAME: judged(each, pixels, columns)} for each in detectors]
    for corruption in corruptions():
        corrupted = corruption(pixels, data.sequence_length)
        for detector, one in zip(detectors, found, strict=True):
            one[str(corruption)] = judged(detector, corrupted, columns)
        print(corruption, *(f"{one[str(corruption)][ERROR]:.1f}" for one in found), flush=True)
    return found


@torch.inference_mode()
def judged(detector: LaneDetector, pixels: Tensor, columns: Tensor) -> dict[str, float]:
    """Error and found points on pictures in [0, 1]."""
    metrics = {ERROR: LateralError(), FOUND: Found()}
    for part, truth in zip(pixels.split(32), columns.split(32), strict=True):
        lines = detector.decode(detector(normalise(part * 255)))["lateral_px"]
        for metric in metrics.values():
            metric.update(lines, truth)
    return {name: float(metric.compute()) for name, metric in metrics.items()}


def asked(checkpoints: Sequence[Path], pictures: int, out: Path) -> list[Measured]:
    """As :func:`answers`, from the folder where they are known."""
    files = [out / f"{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}_{pictures}.json" for path in checkpoints]
    missing = {file: path for file, path in zip(files, checkpoints, strict=True) if not file.exists()}
    if missing:
        out.mkdir(parents=True, exist_ok=True)
        made = answers([load_detector(path) for path in missing.values()], pictures)
        for file, measured in zip(missing, made, strict=True):
            file.write_text(json.dumps(measured, indent=1))
    return [json.loads(file.read_text()) for file in files]


def told(measured: Measured, baseline: Measured) -> dict[str, float]:
    """By heading: mCE, clean and mean error and found points, then each corruption's error and found points."""
    found, plain = errors(measured, ERROR, "min") or {}, errors(baseline, ERROR, "min") or {}
    groups = by_corruption([condition for condition in measured if condition != CLEAN_NAME])
    seen = {name: statistics.mean(100 * measured[each][FOUND] for each in each_of) for name, each_of in groups.items()}
    numbers = {"mCE": mean_corruption_error(found, plain)}
    numbers |= {"clean": found[CLEAN_NAME], "clean, found %": 100 * measured[CLEAN_NAME][FOUND]}
    numbers |= {"mean error": mean_error(found), "mean, found %": statistics.mean(seen.values())}
    for name, conditions in groups.items():
        numbers |= {name: statistics.mean(found[each] for each in conditions), f"{name}, found %": seen[name]}
    return numbers


def table(sides: Mapping[str, list[Measured]]) -> str:
    """Median over the checkpoints of each side, smallest and largest; headings are rows."""
    before = sides["before"]
    rows = {name: [told(*pair) for pair in zip(ones, before, strict=False)] for name, ones in sides.items()}
    headings = list(rows["before"][0])
    return markdown(
        ["", *rows], [[head, *(_cell([run[head] for run in runs]) for runs in rows.values())] for head in headings]
    )


def _cell(values: list[float]) -> str:
    form = ".3f" if max(values) < 3 else ".1f"
    spread = f" ({min(values):{form}} to {max(values):{form}})" if len(values) > 1 else ""
    return f"{statistics.median(values):{form}}{spread}"


def main() -> None:
    """Measure what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path, nargs="+", required=True, help="checkpoints of plain training")
    parser.add_argument(
        "--after", type=Path, nargs="+", default=[], help="those of another, of the same seeds in order"
    )
    parser.add_argument("--pictures", type=int, default=64, help="rendered pictures, in sequences of eight")
    parser.add_argument("--out", type=Path, default=Path("runs/lane_corruptions"))
    given = parser.parse_args()
    quiet()
    torch.set_num_threads(1)
    for path in (*given.before, *given.after):
        if not path.is_file():
            parser.error(f"Expected a file at {path}, but there is none.")
    if len(given.after) > len(given.before):
        parser.error(f"Expected no more checkpoints after than before, but got {len(given.after)}.")
    made = asked([*given.before, *given.after], given.pictures, given.out)
    groups = {"before": made[: len(given.before)], "after": made[len(given.before) :]}
    print("\n" + table({name: ones for name, ones in groups.items() if ones}))


if __name__ == "__main__":
    main()
