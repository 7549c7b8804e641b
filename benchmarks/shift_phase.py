"""Where what is left of a shift beyond geometry comes from: interpolation, the head's cell, the view or the strides.

    python benchmarks/shift_phase.py --checkpoint lanes.ckpt --recording solidWhiteRight.mp4

Every eighth frame moves to the right by whole pixels of the network's input, which interpolates nothing. If the cell of
the head were to blame, 4 pixels would cost nothing; if the strides, 16. The last column leaves the global view as it
was for the picture that did not move. In pixels of 960 beyond the motion, mean and 99th percentile of all points.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from lanes_recording import read_frames
from torch import Tensor

from lightning_robust.demo.lanes.detector import LaneDetector
from lightning_robust.demo.lanes.inference import load_detector
from lightning_robust.tables import markdown

SHIFTS = (1, 2, 3, 4, 6, 8, 12, 16)


def moved_right(images: Tensor, pixels: int) -> Tensor:
    """Content moved to the right by whole pixels, the border repeated."""
    border = images[..., :1].expand(*images.shape[:-1], pixels)
    return torch.cat([border, images[..., : images.shape[-1] - pixels]], -1)


@contextmanager
def view_of(model: LaneDetector, images: Tensor) -> Iterator[None]:
    """Inside, the layer that sees the whole picture gives what it gave for these."""
    kept = model.features(images)
    handle = model.network.view.register_forward_hook(lambda module, args, output: kept)
    try:
        yield
    finally:
        handle.remove()


def lines(model: LaneDetector, images: Tensor) -> Tensor:
    """Columns, NaN where there is no line."""
    return model.decode(model(images))["lateral_px"]


@torch.inference_mode()
def row(model: LaneDetector, images: Tensor, pixels: int) -> list[str]:
    """One line of the table."""
    motion = torch.tensor([[1, 0, pixels], [0, 1, 0], [0, 0, 1]], dtype=torch.float64)
    expected = model.moved({"lateral_px": lines(model, images)}, motion)["lateral_px"]
    other = moved_right(images, pixels)
    found = lines(model, other)
    with view_of(model, images):
        same_view = lines(model, other)
    cells = [str(pixels)]
    for each in (found, same_view):
        distance = (each - expected).abs()
        distance = distance[~distance.isnan()]
        cells.append(f"{distance.mean():.2f}, {distance.quantile(0.99):.1f}")
    return cells


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--recording", type=Path, required=True)
    given = parser.parse_args()
    model = load_detector(given.checkpoint)
    images = model.preprocess(torch.from_numpy(read_frames(given.recording)[::8]))
    heads = ["pixels to the right", "beyond the motion: mean, p99", "with the view of the picture that stands"]
    print(markdown(heads, [row(model, images, pixels) for pixels in SHIFTS]))


if __name__ == "__main__":
    main()
