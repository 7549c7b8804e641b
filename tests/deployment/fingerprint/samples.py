"""Colours and pictures that the tests of a fingerprint share."""

import torch
from torch.nn.functional import interpolate


def colours(count=800):
    return 20 + 200 * torch.rand(count, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def texture(count=2, height=64, width=96):
    """Smooth pictures with some detail, in levels."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(count, 1, height // 4, width // 4, dtype=torch.float64, generator=generator)
    return 255 * interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1)[:, 0]


def sampled(shift_x, shift_y, height=64, width=96):
    """A sum of waves known everywhere, its content moved right and down: no interpolation is involved."""
    y, x = torch.arange(height).double()[:, None] - shift_y, torch.arange(width).double() - shift_x
    waves = [(0.31, 0.17, 40), (0.11, 0.43, 30), (0.52, -0.23, 20), (-0.09, 0.06, 50), (0.71, 0.37, 10)]
    return sum(a * torch.sin(fx * x + fy * y + a) for fx, fy, a in waves)[None] + 128


def scenes(count=6, height=64, width=96):
    """Different pictures in three related channels, with detail at all scales, on the levels of [0, 1]."""
    generator = torch.Generator().manual_seed(2)
    total = torch.zeros(count, 3, height, width)
    for cells, share in ((4, 0.45), (16, 0.3), (32, 0.2)):
        grey = torch.rand(count, 1, cells, cells * 3 // 2, generator=generator)
        colour = 0.7 * grey + 0.3 * torch.rand(count, 3, cells, cells * 3 // 2, generator=generator)
        total += share * interpolate(colour, size=(height, width), mode="bilinear")
    return (total * 255).round() / 255
