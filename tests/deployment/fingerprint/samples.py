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
