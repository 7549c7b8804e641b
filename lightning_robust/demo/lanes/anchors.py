"""Row anchors, the rows at which lines are located, and pixel positions between pictures of different sizes."""

from __future__ import annotations

import torch
from torch import Tensor

STRIDE = 4
"""Rows between anchors, and columns a cell, in the rendered picture."""


def crop_top(height: int) -> int:
    """First row the network looks at: the sky above it says nothing about lanes."""
    return int(height * 0.45) // 16 * 16


def first_anchor(height: int) -> int:
    """Number of the first anchor among the rows of the network's map, which start at `crop_top`."""
    return round((0.53 * height - crop_top(height)) / STRIDE)


def row_anchors(height: int = 144) -> Tensor:
    """Rows at which lines are located, in pixels of a picture of that height, float64, (R,).

    Each lies in the middle of four rows, between 0.53 and 0.99 of the height.

    Example:
        >>> row_anchors(144)[[0, -1]].tolist()
        [77.5, 141.5]
    """
    top = crop_top(height)
    numbers = torch.arange(first_anchor(height), (height - top) // STRIDE, dtype=torch.float64)
    return top + numbers * STRIDE + (STRIDE - 1) / 2


def rescale(positions: Tensor, source: int, target: int) -> Tensor:
    """Pixel positions in a picture of one size as positions in the same picture of another size.

    Pixel 0 is the centre of the first pixel, so its left edge is at -0.5 in both sizes.

    Args:
        positions: Any shape.
        source: Height or width of the first picture.
        target: Height or width of the second picture.

    Example:
        >>> import torch
        >>> rescale(torch.tensor([-0.5, 255.5]), 256, 960).tolist()
        [-0.5, 959.5]
    """
    return (positions + 0.5) * (target / source) - 0.5
