"""The operations of a transform that a fingerprint writes, beside those of ``deployment/pixels/operations.py``."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from lightning_robust.deployment.fingerprint.memory import reordered, strided
from lightning_robust.deployment.fingerprint.motion import Motion, warp


def show_part(
    pixels: Tensor, left: float, right: float, top: float, bottom: float, bars: float | None = None
) -> Tensor:
    """A part of the pictures, given by its borders in pixels, stretched to the whole.

    Args:
        pixels: Pictures ``(N, C, H, W)`` in [0, 1].
        left: In pixels from the left border, which is 0.
        right: In the same unit.
        top: From the upper border.
        bottom: In the same unit.
        bars: The level of what lies beyond the pictures; by default their border is repeated.

    Example:
        >>> show_part(torch.tensor([[[[0.0, 1.0, 2.0, 3.0]]]]), 1, 3, 0, 1).flatten().tolist()
        [0.75, 1.25, 1.75, 2.25]
    """
    height, width = pixels.shape[-2:]
    zoom_x, zoom_y = width / (right - left), height / (bottom - top)
    dx, dy = zoom_x * (width / 2 - (left + right) / 2), zoom_y * (height / 2 - (top + bottom) / 2)
    motion = Motion(dx, dy, zoom_x, zoom_y)
    shown = warp(pixels.double(), motion).to(pixels.dtype)
    return shown if bars is None else torch.where(motion.inside(height, width), shown, bars / 255)


def move(pixels: Tensor, dx: float, dy: float) -> Tensor:
    """Content moved right and down, linearly interpolated, the border repeated."""
    return warp(pixels.double(), Motion(dx, dy)).to(pixels.dtype)


def zoom_and_move(pixels: Tensor, dx: float, dy: float, zoom_x: float, zoom_y: float) -> Tensor:
    """Content zoomed about the centre and then moved right and down, interpolated with a cubic kernel."""
    return warp(pixels.double(), Motion(dx, dy, zoom_x, zoom_y), "cubic").to(pixels.dtype)


def apply_taps(pixels: Tensor, taps: list[list[float]]) -> Tensor:
    """Each channel correlated with a filter of an odd size, the border repeated."""
    kernel = pixels.new_tensor(taps).expand(pixels.shape[1], 1, len(taps), len(taps))
    padded = pad(pixels, [len(taps) // 2] * 4, mode="replicate")
    return conv2d(padded, kernel, groups=pixels.shape[1]).clamp(0, 1)


def scale(pixels: Tensor, gains: list[float], offsets: list[float]) -> Tensor:
    """Each channel times its gain, plus an offset in levels."""
    gain, offset = (pixels.new_tensor(values)[:, None, None] for values in (gains, offsets))
    return (pixels * gain + offset / 255).clamp(0, 1)


def reread_memory(pixels: Tensor, written: str, read: str) -> Tensor:
    """Memory written in one order of the axes C, H and W, and read in another."""
    return reordered(pixels.shape[1:], written, read).apply(pixels)


def change_stride(pixels: Tensor, padding: int, *, interleaved: bool) -> Tensor:
    """Rows written with one stride and read with another, as :func:`~.memory.strided` has it."""
    return strided(pixels.shape[1:], padding, interleaved=interleaved).apply(pixels)
