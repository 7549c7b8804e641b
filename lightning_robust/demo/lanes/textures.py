"""Patterns that surfaces are made of: tiles of noise, stripes and dashes averaged exactly over a pixel."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

_TILE = 256
_WHITE = 1 << 20


@lru_cache(maxsize=1)
def tile() -> Tensor:
    """Four patterns that repeat without a seam, (1, 4, 257, 257), each with mean 0 and deviation 1.

    Channels: grain, blotches, clouds, veins (thin and mostly zero). The last row and column repeat the first.
    """
    generator = torch.Generator().manual_seed(20)
    grain = _octaves([128, 256], [0.5, 1.0], generator)
    blotches = _octaves([16, 32, 64, 128], [1.0, 0.7, 0.5, 0.35], generator)
    clouds = _octaves([4, 8, 16, 32, 64], [1.0, 0.8, 0.5, 0.3, 0.2], generator)
    ridge = _octaves([8, 16, 32], [1.0, 0.6, 0.3], generator)
    veins = (1 - ridge.abs() / 0.035).clamp(min=0.0)
    stack = torch.stack([grain, blotches, clouds, veins])
    stack = torch.cat([stack, stack[:, :1]], 1)
    return torch.cat([stack, stack[:, :, :1]], 2)[None]


def _octaves(sizes: list[int], weights: list[float], generator: torch.Generator) -> Tensor:
    """Sum of smooth random fields of several sizes that wrap around, normalised, (256, 256)."""
    total = torch.zeros(_TILE, _TILE)
    for size, weight in zip(sizes, weights, strict=True):
        field = torch.randn(1, 1, size, size, generator=generator)
        field = functional.pad(field, (2, 2, 2, 2), mode="circular")
        scale = _TILE // size
        field = functional.interpolate(field, scale_factor=scale, mode="bicubic", align_corners=False)
        total += weight * field[0, 0, 2 * scale : 2 * scale + _TILE, 2 * scale : 2 * scale + _TILE]
    return (total - total.mean()) / total.std()


@lru_cache(maxsize=1)
def _white() -> Tensor:
    return torch.randn(_WHITE, generator=torch.Generator().manual_seed(21)).clamp(-3.5, 3.5)


def wide(value: Tensor) -> Tensor:
    """One number a picture, (N,) float64, as (N, 1, 1) float32 to meet its pixels."""
    return value.float()[:, None, None]


def tint(value: Tensor) -> Tensor:
    """One colour a picture, (N, 3) float64, as (N, 3, 1, 1) float32 to meet its pixels."""
    return value.float()[:, :, None, None]


def look_up(x: Tensor, y: Tensor, channels: slice) -> Tensor:
    """Reads the tile at the given positions with bilinear interpolation.

    Args:
        x: Position in tiles; any real number, the tile repeats, (N, h, w).
        y: Position in tiles across the other axis, (N, h, w).
        channels: Which patterns of `tile`.

    Returns:
        (N, C, h, w)
    """
    grid = torch.stack([x, y], -1)
    grid = (grid - grid.floor()) * 2 - 1
    pattern = tile()[:, channels].expand(x.shape[0], -1, -1, -1)
    return functional.grid_sample(pattern, grid, mode="bilinear", padding_mode="border", align_corners=True)


def white_noise(offsets: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Normal noise, a stretch of one long table for each picture.

    Args:
        offsets: Any non-negative integers, (N,).
        shape: Shape of one picture's noise.

    Returns:
        (N, *shape)
    """
    count = 1
    for size in shape:
        count *= size
    table = _white()
    if count >= len(table):
        raise ValueError(f"Expected a picture of at most {len(table)} values, but got {count}. Render it smaller.")
    windows = table.unfold(0, count, 1)
    return windows[offsets % len(windows)].reshape(-1, *shape)


def stripe(position: Tensor, half_width: Tensor, footprint: Tensor) -> Tensor:
    """Share of a pixel that a stripe about zero covers.

    Args:
        position: Distance of the pixel's centre from the stripe's centre.
        half_width: Half the stripe's width.
        footprint: Width of the pixel on the ground, in the same unit.
    """
    half = footprint / 2
    upper = torch.minimum(torch.maximum(position + half, -half_width), half_width)
    lower = torch.minimum(torch.maximum(position - half, -half_width), half_width)
    return (upper - lower) / footprint


def dashes(position: Tensor, duty: Tensor, footprint: Tensor) -> Tensor:
    """Share of a pixel that a row of dashes of period 1 covers.

    Args:
        position: Position of the pixel's centre along the line, in periods; a dash starts at every integer.
        duty: Length of a dash, in periods.
        footprint: Length of the pixel, in periods.
    """
    half = footprint / 2
    return (_dashed_length(position + half, duty) - _dashed_length(position - half, duty)) / footprint


def _dashed_length(position: Tensor, duty: Tensor) -> Tensor:
    """Painted length between zero and the position."""
    whole = position.floor()
    return whole * duty + torch.minimum(position - whole, duty)


def blend(picture: Tensor, colour: Tensor, cover: Tensor) -> Tensor:
    """Covers the picture with a colour, in place.

    Args:
        picture: Changed and returned.
        colour: Broadcasts to the picture.
        cover: Opacity in [0, 1]; broadcasts to the picture.
    """
    return picture.add_((colour - picture).mul_(cover))
