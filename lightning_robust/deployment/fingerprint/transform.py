"""The operations of a transform that a fingerprint writes, beside those of ``deployment/pixels/operations.py``."""

from __future__ import annotations

import base64
import io
import math

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from lightning_robust.deployment.fingerprint.colours import STANDARDS
from lightning_robust.deployment.fingerprint.grey import LUMAS
from lightning_robust.deployment.fingerprint.levels import Units
from lightning_robust.deployment.fingerprint.memory import reordered, strided
from lightning_robust.deployment.fingerprint.motion import Kernel, Motion, warp
from lightning_robust.deployment.pixels.operations import mix_channels

Numbers = float | list[float]


def to_pixels(images: Tensor, black: Numbers, step: Numbers) -> Tensor:
    """Pictures ``(N, C, H, W)`` in [0, 1] and fp64, of what a side stores.

    Args:
        images: As they are stored.
        black: The value of black, one or one a channel.
        step: That of one level of 8 bits.

    Example:
        >>> to_pixels(torch.tensor([[[[0, 255]]]], dtype=torch.uint8), black=0, step=1).tolist()
        [[[[0.0, 1.0]]]]
    """
    return _units(black, step, images.shape[1]).to_levels(images) / 255


def from_pixels(
    pixels: Tensor, black: Numbers, step: Numbers, dtype: str, *, scale: float = 1.0, zero_point: float = 0.0
) -> Tensor:
    """What a side stores of pictures in [0, 1]: the opposite of :func:`to_pixels`, in a type, or quantised.

    Args:
        pixels: Pictures ``(N, C, H, W)``.
        black: The value of black, one or one a channel.
        step: That of one level of 8 bits.
        dtype: The type. Whole numbers are rounded and clipped.
        scale: A value of 1 is stored as so many.
        zero_point: What 0 is stored as.

    Example:
        >>> from_pixels(torch.tensor([[[[0.0, 1.0]]]]), 0, 1, "int8", zero_point=-128).tolist()
        [[[[-128, 127]]]]
    """
    values = _units(black, step, pixels.shape[1]).from_levels(255 * pixels) / scale + zero_point
    kind: torch.dtype = getattr(torch, dtype)
    if not kind.is_floating_point:
        limits = torch.iinfo(kind)
        values = values.round().clamp(limits.min, limits.max)
    return values.to(kind)


def _units(black: Numbers, step: Numbers, channels: int) -> Units:
    first, second = (tuple(n) if isinstance(n, list) else (float(n),) * channels for n in (black, step))
    return Units(first, second, "")


def grey(pixels: Tensor, luma: str) -> Tensor:
    """Grey in three channels, by one of the lumas of ``grey.py``."""
    return mix_channels(LUMAS[luma].expand(3, 3), pixels)


def change_matrix(pixels: Tensor, written: str, read: str) -> Tensor:
    """Written as YCbCr with one standard's matrix, read with another's.

    Example:
        >>> red = torch.tensor([1.0, 0.0, 0.0]).reshape(1, 3, 1, 1)
        >>> [round(value, 2) for value in change_matrix(red, "BT.601", "BT.709").flatten().tolist()]
        [1.09, 0.1, -0.01]
    """
    return mix_channels(STANDARDS[read].inverse() @ STANDARDS[written], pixels)


def move_content(
    pixels: Tensor,
    *,
    dx: float = 0.0,
    dy: float = 0.0,
    zoom_x: float = 1.0,
    zoom_y: float = 1.0,
    degrees: float = 0.0,
    lens: float = 0.0,
    kernel: Kernel = "linear",
) -> Tensor:
    """Content bent by a lens, turned clockwise and zoomed about the centre, then moved; the border is repeated.

    Args:
        pixels: Pictures ``(N, C, H, W)``.
        dx: Pixels to the right.
        dy: Pixels down.
        zoom_x: Factor of the content's width.
        zoom_y: Of its height.
        degrees: Clockwise.
        lens: As :class:`~.motion.Motion` has it.
        kernel: Of the interpolation.

    Example:
        >>> move_content(torch.tensor([[[[0.0, 0.25, 0.5, 0.75]]]]), dx=0.5).flatten().tolist()
        [0.0, 0.125, 0.375, 0.625]
    """
    motion = Motion(dx, dy, zoom_x, zoom_y, math.radians(degrees), lens)
    return warp(pixels.double(), motion, kernel).clamp(0, 1).to(pixels.dtype)


def apply_taps(pixels: Tensor, taps: list[list[float]]) -> Tensor:
    """Each channel correlated with a filter of an odd size, the border repeated."""
    kernel = pixels.new_tensor(taps).expand(pixels.shape[1], 1, len(taps), len(taps))
    padded = pad(pixels, [len(taps) // 2] * 4, mode="replicate")
    return conv2d(padded, kernel, groups=pixels.shape[1]).clamp(0, 1)


def add_bars(pixels: Tensor, left: int, right: int, top: int, bottom: int, levels: list[float]) -> Tensor:
    """Pictures with bars of one colour around the columns and rows that are kept.

    Args:
        pixels: Pictures ``(N, C, H, W)``.
        left: The first column that is kept.
        right: The first that is not.
        top: The first row that is kept.
        bottom: The first that is not.
        levels: The bars' level in each channel.
    """
    framed = (pixels.new_tensor(levels)[:, None, None] / 255).expand_as(pixels).clone()
    framed[..., top:bottom, left:right] = pixels[..., top:bottom, left:right]
    return framed


def scale(pixels: Tensor, gains: list[float], offsets: list[float]) -> Tensor:
    """Each channel times its gain, plus an offset in levels."""
    gain, offset = (pixels.new_tensor(values)[:, None, None] for values in (gains, offsets))
    return pixels * gain + offset / 255


def nearest_levels(pixels: Tensor, bits: int) -> Tensor:
    """Rounded to the nearest of the levels that the upper ``bits`` have, where ``operations.fewer_levels`` cuts off.

    Example:
        >>> (255 * nearest_levels(torch.tensor([3 / 255]), bits=6)).round().tolist()
        [4.0]
    """
    step = 2 ** (8 - bits) / 255
    return (pixels / step).round() * step


def cover(pixels: Tensor, left: int, top: int, picture: str) -> Tensor:
    """Pictures that are covered by another one from a place on.

    Args:
        pixels: Pictures ``(N, C, H, W)``.
        left: The first column that is covered.
        top: The first row.
        picture: A PNG with opacity, in base64.
    """
    from PIL import Image

    with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
        values = torch.from_numpy(np.array(image)).permute(2, 0, 1).to(pixels.dtype) / 255
    colour, opacity = values[: pixels.shape[1]], values[3:]
    height, width = opacity.shape[1:]
    covered = pixels.clone()
    region = covered[..., top : top + height, left : left + width]
    region += opacity * (colour - region)
    return covered


def reread_memory(pixels: Tensor, written: str, read: str) -> Tensor:
    """Memory written in one order of the axes C, H and W, and read in another."""
    return reordered(pixels.shape[1:], written, read).apply(pixels)


def change_stride(pixels: Tensor, padding: int, *, interleaved: bool) -> Tensor:
    """Rows written with one stride and read with another, as :func:`~.memory.strided` has it."""
    return strided(pixels.shape[1:], padding, interleaved=interleaved).apply(pixels)
