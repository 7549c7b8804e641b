"""What sits on the lens or on the windscreen: dirt and drops, at the same place in all pictures of a size."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from lightning_robust.deployment.pixels.corruptions.blur import disc_kernel
from lightning_robust.deployment.pixels.corruptions.patterns import cloud, coloured, convolve, kept, places, seeded

COVERED = (0.03, 0.06, 0.1, 0.15, 0.21)
"""Of dirt: the share of the picture that lies behind it."""
_OPACITY = 0.95
_MUD = (63 / 255, 42 / 255, 20 / 255)
_SOFTNESS = 0.025  # of the height: the lens is far out of focus
_DROPS = (8, 14, 22, 32, 46)
_SMALLEST, _LARGEST = 0.03, 0.09
_MINIFIED, _NARROWER, _RIM, _EDGE = 4.0, 1.15, 0.45, 0.003


@kept
def dirt_mask(height: int, width: int, severity: int) -> Tensor:
    """How much of the light dirt takes, ``(H, W)``: spots that grow with the severity and keep their places."""
    shapes = cloud((height, width), seeded("dirt"), 1.6, coarsest=4)
    behind = max(1, round(COVERED[severity - 1] * shapes.numel()))
    limit = shapes.flatten().sort(descending=True).values[behind - 1]
    hard = (shapes >= limit).float()[None, None]
    soft: Tensor = convolve(hard, disc_kernel(_SOFTNESS * height))[0, 0]
    return _OPACITY * soft.clamp(0, 1)


def dirt(pictures: Tensor, severity: int) -> Tensor:
    """Spots of mud on the lens, out of focus: ``(1 - mask) * picture + mask * mud``."""
    mask = dirt_mask(*pictures.shape[-2:], severity).to(pictures)
    return pictures + mask * (coloured(_MUD, pictures) - pictures)


@kept
def drop_lenses(height: int, width: int, severity: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where each pixel's light comes from, how much of it, and how much of the pixel is water.

    The first is a grid ``(1, H, W, 2)`` as ``grid_sample`` takes it, the others are ``(H, W)``.
    """
    drawn = torch.rand(_DROPS[-1], 3, generator=seeded("drops"))[: _DROPS[severity - 1]]
    rows, columns = (each.expand(height, width) for each in places(height, width))
    from_rows, from_columns, shade = rows, columns, torch.ones_like(rows)
    water = torch.zeros_like(rows, dtype=torch.bool)
    for row, column, size in drawn.tolist():
        down, right = rows - row, columns - column * width / height
        radius = _SMALLEST + (_LARGEST - _SMALLEST) * size**2
        away = (down**2 + (_NARROWER * right) ** 2).sqrt() / radius
        inside = away < 1
        from_rows = torch.where(inside, row - _MINIFIED * down, from_rows)
        from_columns = torch.where(inside, column * width / height - _MINIFIED * right, from_columns)
        shade = torch.where(inside, 1 - _RIM * away.clamp(max=1) ** 6, shade)
        water |= inside
    grid = torch.stack([2 * from_columns * height / width - 1, 2 * from_rows - 1], -1)[None]
    soft: Tensor = convolve(water.float()[None, None], disc_kernel(max(0.5, _EDGE * height)))[0, 0]
    return grid, shade, soft.clamp(0, 1)


def drops(pictures: Tensor, severity: int) -> Tensor:
    """Drops of water on the glass: small lenses, each of which shows the scene upside down and dark at its rim."""
    grid, shade, water = (each.to(pictures) for each in drop_lenses(*pictures.shape[-2:], severity))
    seen = grid_sample(pictures, grid, padding_mode="reflection", align_corners=False)
    return pictures + water * (seen * shade - pictures)
