r"""How often a fingerprint names what was planted, and how it answers where it has no name for the difference.

    python benchmarks/fingerprint.py [--recording solidWhiteRight.mp4] [--cifar cifar10-jpeg.tar.gz] \
        [--every 7] [--start 3]

The pictures are rendered roads of 144 x 256 (seed 0); with ``--recording`` a recording's frames, brought to that size
as training does; with ``--cifar`` training pictures of CIFAR-10, 32 x 32, eight times as many.

- Nothing planted: nothing may be named.
- One cause: each entry of the catalogue, right if its family comes first.
- Two causes of two families, three of three: right if the names are just theirs. They are planted in the order of a
  camera's pipeline: decoding, geometry, levels, channels, normalisation. ``--every 7`` takes each seventh pair and each
  seventh of 420 triples (a fixed draw, seed 0), ``--start 3`` others than those that begin with the first.
- Further causes, not in the catalogue: right if one of the names that fit comes first with more than 50 %, or none has;
  ``named`` counts the first of both.
- No name: differences that nobody gave a name. Honest is an answer in which no cause has more than 50 %.

A needless cause is one named beside what was planted. Some pairs are the same pictures as something else, or nearly:
``same_thing`` has them.
"""

from __future__ import annotations

import argparse
import itertools
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import fingerprint_cases as cases
import fingerprint_more as more
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from lightning_robust.deployment.fingerprint.search import fingerprint
from lightning_robust.deployment.fingerprint.words import Fingerprint
from lightning_robust.deployment.pixels.catalogue import CATALOGUE, Perturbation
from lightning_robust.deployment.replay.frames import open_recording
from lightning_robust.tables import markdown

PIPELINE = (
    *("compression", "color_matrix", "color_range", "shift", "crop", "resize_filter", "rounding", "noise"),
    *("gamma", "channel_order", "gain_offset"),
)
SIZE = (144, 256)
TRIPLES = 420
SURE = 0.5


def rendered(count: int = 8) -> Tensor:
    """Rendered roads in [0, 1] on 256 levels."""
    from lightning_robust.demo.lanes import LaneData
    from lightning_robust.functional.pixels import PixelSpace

    data = LaneData(num_train=8, num_val=8)
    data.setup("fit")
    images = data.on_after_batch_transfer(next(iter(data.val_dataloader())), 0)[0][:count]
    return (PixelSpace(data.mean, data.std).to_pixels(images) * 255).round().clamp(0, 255) / 255


def recorded(path: Path, count: int = 8) -> Tensor:
    """Frames of a recording, evenly spread, brought to the network's size with antialiasing.

    They begin with frame 9: limits were set while frames from 0, 3, 6 and 12 on were looked at.
    """
    frames = torch.cat([chunk.pictures for chunk in open_recording(path, first=9, stride=25, limit=count)])
    images = frames.permute(0, 3, 1, 2).float()
    return interpolate(images, SIZE, mode="bilinear", antialias=True).round().clamp(0, 255) / 255


def planted(entries: Sequence[Perturbation], pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Training's and the deployed side's pictures where several things differ."""
    trained = deployed = pixels
    for entry in sorted(entries, key=lambda entry: PIPELINE.index(entry.family)):
        trained, deployed = entry.trained(trained), entry.deployed(deployed)
    return trained, deployed


def of_families(count: int) -> list[tuple[Perturbation, ...]]:
    """All groups of this many entries from as many families."""
    groups = itertools.combinations(CATALOGUE.values(), count)
    return [group for group in groups if len({entry.family for entry in group}) == count]


def same_thing(names: set[str], entries: Sequence[Perturbation]) -> bool:
    """Whether the names are those of what was planted, or of what cannot be told from it.

    - Resizing from pixel corners (``resize_asymmetric``) is another filter and a shift by 0.3 pixels, and beside a
      crop, which filters by itself, that shift.
    - Half a level that was cut off before an offset of eight is an offset of seven and a half; before a gain and a
      gamma it is another gain and gamma, but for a tenth of a level.
    """
    families, planted = {entry.family for entry in entries}, {entry.name for entry in entries}
    same = [families]
    if "resize_asymmetric" in planted:
        same.append(families | {"shift"})
        if "crop" in families:
            same.append(families - {"resize_filter"} | {"shift"})
    curved = "gamma" in families and bool({"gain_105", "brightness", "gain_080"} & planted)
    if "truncation" in planted and ("offset_8" in planted or curved):
        same.append(families - {"rounding"})
    return names in same


class Row:
    """One row of the table: cases, right answers, needless causes and seconds."""

    def __init__(self, title: str, verbose: bool) -> None:
        self.title, self.verbose = title, verbose
        self.cases = self.right = self.needless = self.named = 0
        self.seconds = 0.0

    def add(self, name: str, right: bool, needless: int, found: Fingerprint, seconds: float) -> None:
        """Count a case, and print it if it is wrong."""
        self.cases, self.right = self.cases + 1, self.right + right
        self.needless, self.seconds = self.needless + needless, self.seconds + seconds
        self.named += any(cause.confidence > SURE for cause in found.causes)
        if self.verbose or not right or needless:
            told = ", ".join(f"{cause.name} {cause.confidence:.0%}" for cause in found.causes) or "nothing"
            left = f"{found.unexplained:.2f} of {found.distance:.2f} left"
            print(f"{'' if right else 'wrong':6s} {name:60s} {told}; {left}", flush=True)

    def cells(self) -> list[object]:
        """What the table shows."""
        share = f"{100 * self.right / max(self.cases, 1):.1f}"
        seconds = f"{self.seconds / max(self.cases, 1):.1f}"
        return [self.title, self.cases, self.right, share, self.named, self.needless, seconds]


def timed(trained: Tensor, deployed: Tensor) -> tuple[Fingerprint, float]:
    """A fingerprint and the CPU seconds it took."""
    start = time.process_time()
    return fingerprint(trained, deployed), time.process_time() - start


def of_catalogue(row: Row, groups: Sequence[Sequence[Perturbation]], pixels: Tensor) -> Row:
    """Each group planted and named."""
    for group in groups:
        found, seconds = timed(*planted(group, pixels))
        names, families = [cause.name for cause in found.causes], {entry.family for entry in group}
        right = names[:1] == [*families] if len(group) == 1 else same_thing({*names}, group)
        needless = 0 if same_thing({*names}, group) else len({*names} - families)
        row.add(" + ".join(entry.name for entry in group), right, needless, found, seconds)
    return row


def further(row: Row, pixels: Tensor) -> Row:
    """Causes that the catalogue has not."""
    for name, (accepted, trained, deployed) in (cases.NAMED | more.ARRANGED | more.MEASURED).items():
        found, seconds = timed(trained(pixels), deployed(pixels))
        first = [cause.name for cause in found.causes if cause.confidence > SURE][:1]
        needless = sum(cause.name not in accepted and cause.confidence > SURE for cause in found.causes)
        row.add(name, not first or first[0] in accepted, needless, found, seconds)
    return row


def without_name(row: Row, pixels: Tensor) -> Row:
    """Differences without a name."""
    for name, change in (cases.UNKNOWN | more.UNNAMED).items():
        found, seconds = timed(pixels, change(pixels))
        sure = sum(cause.confidence > SURE for cause in found.causes)
        row.add(name, not sure, sure, found, seconds)
    return row


def rows(pixels: Tensor, taken: slice, verbose: bool, only: str) -> Iterator[Row]:
    """The rows of the table."""
    triples = random.Random(0).sample(of_families(3), TRIPLES)
    if "none" in only:
        found, seconds = timed(pixels, pixels.clone())
        row = Row("nothing", verbose)
        row.add("nothing", not found.causes, len(found.causes), found, seconds)
        yield row
    if "one" in only:
        yield of_catalogue(Row("one cause", verbose), of_families(1), pixels)
    if "two" in only:
        yield of_catalogue(Row("two causes", verbose), of_families(2)[taken], pixels)
    if "three" in only:
        yield of_catalogue(Row("three causes", verbose), triples[taken], pixels)
    if "further" in only:
        yield further(Row("further causes", verbose), pixels)
    if "unnamed" in only:
        yield without_name(Row("no name", verbose), pixels)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recording", type=Path)
    parser.add_argument("--cifar", type=Path)
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--only", default="none,one,two,three,further,unnamed", help="rows, by comma")
    parser.add_argument("--verbose", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.cifar is not None:
        pictures = cases.cifar(args.cifar, 8 * args.pictures)
    else:
        pictures = rendered(args.pictures) if args.recording is None else recorded(args.recording, args.pictures)
    table = [row.cells() for row in rows(pictures, slice(args.start, None, args.every), args.verbose, args.only)]
    print(markdown(["planted", "cases", "right", "%", "named", "needless causes", "CPU seconds a case"], table))
