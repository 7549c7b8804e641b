"""What corruptions are made of: kernels from points, clouds of octaves, generators that a picture or a name seeds.

Pictures are ``(1, C, H, W)`` in [0, 1]. Lengths are shares of the height, so that a corruption looks the same at any
size; the published ones were given for pictures of 224 pixels.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from lightning_robust.deployment.pixels.operations import whole_levels

T = TypeVar("T")
PUBLISHED_HEIGHT = 224
"""Pixels of the pictures that lengths were published for."""


def kept(make: Callable[..., T]) -> Callable[..., T]:
    """Keeps the last few results of a function of sizes and severities, which all pictures of a batch share."""

    @functools.lru_cache(5)
    @functools.wraps(make)
    def made(*arguments: int) -> T:
        # what inference mode makes could not take part in autograd later
        with torch.inference_mode(False):
            return make(*arguments)

    return made


def seeded(name: str, picture: Tensor | None = None) -> torch.Generator:
    """A generator that depends on a name alone, or also on the levels of a picture.

    Example:
        >>> torch.rand(1, generator=seeded("rain")) == torch.rand(1, generator=seeded("rain"))
        tensor([True])
    """
    seed = zlib.crc32(name.encode())
    if picture is not None:
        seed = zlib.crc32(whole_levels(picture).byte().contiguous().cpu().numpy().tobytes(), seed)
    return torch.Generator().manual_seed(seed)


def splat(points: Tensor, radius: int) -> Tensor:
    """A kernel ``(2 r + 1, 2 r + 1)`` of equal weights at points ``(n, 2)`` of (x, y), each shared by four pixels.

    Sums to one; its mean is that of the points.

    Example:
        >>> splat(torch.tensor([[0.5, 0.0]]), 1)[1].tolist()
        [0.0, 0.5, 0.5]
    """
    side = 2 * radius + 1
    kernel = torch.zeros(side * side, dtype=torch.float64)
    points = points.double()
    corner = points.floor()
    part = points - corner
    for x, y in ((0, 0), (1, 0), (0, 1), (1, 1)):
        share = (part[:, 0] if x else 1 - part[:, 0]) * (part[:, 1] if y else 1 - part[:, 1])
        place = (corner[:, 1] + y + radius) * side + corner[:, 0] + x + radius
        kernel.index_add_(0, place.long().clamp(0, side * side - 1), share)
    return (kernel / len(points)).view(side, side)


def convolve(pictures: Tensor, kernel: Tensor) -> Tensor:
    """Pictures through a kernel of odd sides, their borders repeated; by FFT, so that long kernels cost no more."""
    height, width = pictures.shape[-2:]
    radius = kernel.shape[0] // 2
    # to lengths that FFT is fast for
    below, right = (-(side + 2 * radius) % 16 + radius for side in (height, width))
    wide = pad(pictures, (radius, right, radius, below), mode="replicate")
    size = wide.shape[-2:]
    # the kernel lies around the first pixel, so that nothing moves
    centred = torch.zeros(size, dtype=pictures.dtype, device=pictures.device)
    side = kernel.shape[0]
    centred[:side, :side] = kernel.to(pictures)
    spectrum = torch.fft.rfft2(centred.roll((-radius, -radius), (0, 1)))
    whole = torch.fft.irfft2(torch.fft.rfft2(wide) * spectrum, s=size)
    return whole[..., radius : radius + height, radius : radius + width]


def cloud(size: tuple[int, int], generator: torch.Generator, decay: float, coarsest: int = 2) -> Tensor:
    """Random shapes of all sizes, ``(H, W)`` in [0, 1]: octaves of a random grid, each weaker by ``decay``.

    The grid counts in heights, so that pictures of another size and the same shape show the same.

    Args:
        size: Height and width.
        generator: Draws the grid.
        decay: What the amplitude of an octave is divided by for the next one; smaller is rougher.
        coarsest: Cells of the coarsest octave in a height.
    """
    height, width = size
    total = torch.zeros(height, width)
    cells, amplitude = coarsest, 1.0
    while cells <= max(coarsest, min(height, PUBLISHED_HEIGHT)):
        grid = torch.rand(1, 1, cells + 1, round(cells * width / height) + 2, generator=generator)
        octave = interpolate(grid, size=size, mode="bicubic", align_corners=True)[0, 0]
        total += amplitude * octave
        cells, amplitude = 2 * cells, amplitude / decay
    low, high = total.aminmax()
    return (total - low) / (high - low).clamp(min=1e-6)


def luma(pictures: Tensor) -> Tensor:
    """The brightness of pictures by BT.601, ``(N, 1, H, W)``; of grey ones themselves."""
    if pictures.shape[1] == 1:
        return pictures
    weights = pictures.new_tensor([0.299, 0.587, 0.114])
    return (pictures * weights[:, None, None]).sum(1, keepdim=True)


def coloured(rgb: tuple[float, float, float], pictures: Tensor) -> Tensor:
    """A colour that broadcasts to pictures; for grey ones its brightness."""
    colour = pictures.new_tensor(rgb)[None, :, None, None]
    return colour if pictures.shape[1] == 3 else luma(colour)


def places(height: int, width: int) -> tuple[Tensor, Tensor]:
    """The centres of all rows ``(H, 1)`` and columns ``(1, W)`` from the upper left corner, as shares of the height."""
    rows = (torch.arange(height, dtype=torch.float32) + 0.5) / height
    columns = (torch.arange(width, dtype=torch.float32) + 0.5) / height
    return rows[:, None], columns[None]
