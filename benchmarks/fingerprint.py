"""How often a fingerprint names what was planted: each entry of the catalogue, pairs from different families, none.

    python benchmarks/fingerprint.py [--recording solidWhiteRight.mp4] [--every 7] [--verbose]

Eight rendered roads of 144 x 256 (seed 0), or eight frames of a recording brought to that size as training does. A pair
is planted in the order of a camera's pipeline: decoding, geometry, levels, channels, normalisation. A single is named
right if its family comes first, a pair if the first two causes are its two families. ``--every 7`` takes each seventh
pair.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from lightning_robust.deployment.fingerprint.search import fingerprint
from lightning_robust.deployment.pixels.catalogue import CATALOGUE, Perturbation
from lightning_robust.deployment.pixels.names import FAMILIES
from lightning_robust.deployment.replay.frames import open_recording
from lightning_robust.tables import markdown

PIPELINE = (
    *("compression", "color_matrix", "color_range", "shift", "crop", "resize_filter", "rounding", "noise"),
    *("gamma", "channel_order", "gain_offset"),
)
SIZE = (144, 256)


def rendered(count: int = 8) -> Tensor:
    """Rendered roads in [0, 1] on 256 levels."""
    from lightning_robust.demo.lanes import LaneData
    from lightning_robust.functional.pixels import PixelSpace

    data = LaneData(num_train=8, num_val=count)
    data.setup("fit")
    images = data.on_after_batch_transfer(next(iter(data.val_dataloader())), 0)[0][:count]
    return (PixelSpace(data.mean, data.std).to_pixels(images) * 255).round().clamp(0, 255) / 255


def recorded(path: Path, count: int = 8) -> Tensor:
    """Frames of a recording, evenly spread, brought to the network's size with antialiasing."""
    frames = torch.cat([chunk.pictures for chunk in open_recording(path, stride=25, limit=count)])
    images = frames.permute(0, 3, 1, 2).float()
    return interpolate(images, SIZE, mode="bilinear", antialias=True).round().clamp(0, 255) / 255


def planted(first: Perturbation, second: Perturbation, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Training's and the deployed side's pictures where two things differ."""
    a, b = sorted((first, second), key=lambda entry: PIPELINE.index(entry.family))
    return b.trained(a.trained(pixels)), b.deployed(a.deployed(pixels))


def singles(pixels: Tensor, verbose: bool) -> list[bool]:
    """Whether each entry is named right."""
    right = []
    for name, entry in CATALOGUE.items():
        found = fingerprint(entry.trained(pixels), entry.deployed(pixels))
        right.append(bool(found.causes) and found.causes[0].name == entry.family)
        if verbose or not right[-1]:
            _tell("" if right[-1] else "wrong", name, [c.name for c in found.causes])
    return right


def pairs(pixels: Tensor, every: int, verbose: bool) -> list[bool]:
    """Whether each pair is named right."""
    entries = list(CATALOGUE.values())
    chosen = [(a, b) for a, b in itertools.combinations(entries, 2) if a.family != b.family][::every]
    right = []
    for a, b in chosen:
        found = fingerprint(*planted(a, b, pixels))
        right.append({c.name for c in found.causes[:2]} == {a.family, b.family})
        if verbose or not right[-1]:
            _tell("" if right[-1] else "wrong", f"{a.name} + {b.name}", [c.name for c in found.causes])
    return right


def _tell(verdict: str, planted_names: str, found: list[str]) -> None:
    print(f"{verdict:6s} {planted_names:45s} {', '.join(found) or 'nothing'}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recording", type=Path)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--verbose", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    pictures = rendered() if args.recording is None else recorded(args.recording)
    unchanged = fingerprint(pictures, pictures)
    alone, two = singles(pictures, args.verbose), pairs(pictures, args.every, args.verbose)
    rows = [
        ["none", 1, int(not unchanged.causes)],
        ["one cause", len(alone), sum(alone)],
        [f"two causes of {len(FAMILIES)} families", len(two), sum(two)],
    ]
    print(markdown(["planted", "cases", "named right", "%"], [[*row, f"{100 * row[2] / row[1]:.1f}"] for row in rows]))
