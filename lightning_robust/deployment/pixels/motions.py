"""Where the operations of ``geometry.py`` put the content: matrices that ``functional/picture_motion.py`` takes.

Each takes the height and the width of the network's input and gives a matrix ``(3, 3)`` in fp64, from places in
training's picture to places in the deployed one; pixels count from the centre of the first.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from lightning_robust.deployment.pixels.geometry import crop_margin, frame_side

_Axis = Callable[[int], tuple[float, float]]
"""From a side's length to the factor and the offset of places along it."""


def shifted(height: int, width: int, by: float) -> Tensor:
    """Of :func:`~.geometry.shift`."""
    return _matrix((1.0, by), (1.0, by))


def cropped(height: int, width: int, share: float) -> Tensor:
    """Of :func:`~.geometry.crop`."""

    def axis(side: int) -> tuple[float, float]:
        margin = crop_margin(side, share)
        factor = side / (side - 2 * margin)
        return factor, (0.5 - margin) * factor - 0.5

    return _matrix(axis(width), axis(height))


def letterboxed(height: int, width: int, share: float) -> Tensor:
    """Of :func:`~.geometry.letterbox`."""
    bar = crop_margin(height, share)
    factor = (height - 2 * bar) / height
    return _matrix((1.0, 0.0), (factor, 0.5 * factor - 0.5 + bar))


def _resized(height: int, width: int, axis: _Axis) -> Tensor:
    return _matrix(axis(width), axis(height))


def _corners(side: int) -> tuple[float, float]:
    """Training takes place ``x`` from ``(x + 0.5) s - 0.5`` of the frame, whose corners now lie in corners."""
    step, frame = frame_side(side) / side, frame_side(side)
    factor = (side - 1) / (frame - 1)
    return step * factor, (0.5 * step - 0.5) * factor


def _pixel_corners(side: int) -> tuple[float, float]:
    step = frame_side(side) / side
    return 1.0, 0.5 - 0.5 / step


def _floored(side: int) -> tuple[float, float]:
    """Place ``x`` shows pixel ``floor(x s)`` of the frame, on average that much before the one it should."""
    step = frame_side(side) / side
    places = torch.arange(side, dtype=torch.float64)
    behind = (places + 0.5) * step - 0.5 - (places * step).floor()
    return 1.0, float(behind.mean()) / step


RESIZES = {
    "align_corners": partial(_resized, axis=_corners),
    "asymmetric": partial(_resized, axis=_pixel_corners),
    "nearest": partial(_resized, axis=_floored),
}
"""Filter of :func:`~.geometry.resize` -> its motion, for those that move anything."""


def _matrix(x: tuple[float, float], y: tuple[float, float]) -> Tensor:
    return torch.tensor([[x[0], 0, x[1]], [0, y[0], y[1]], [0, 0, 1]], dtype=torch.float64)
