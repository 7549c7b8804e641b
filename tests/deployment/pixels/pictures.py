"""Pictures that the tests of pixel operations share, and ways to read them."""

import numpy as np
import torch
from torch.nn.functional import interpolate

from lightning_robust.deployment.pixels.operations import quantise


def picture(batch=2, channels=3, height=48, width=64):
    """Smooth shapes, fine texture and a hard edge, in 8 bits."""
    coarse = interpolate(torch.rand(batch, channels, 5, 6), size=(height, width), mode="bicubic").clamp(0, 1)
    x = 0.85 * coarse + 0.15 * torch.rand(batch, channels, height, width)
    x[..., height // 2 :, width // 3 : width // 3 + 3] = 0.95
    return quantise(x)


def levels(pixels):
    """As 8-bit pictures (N, H, W, C) in numpy; fails unless the pixels are multiples of 1/255."""
    scaled = pixels.double() * 255
    assert (scaled - scaled.round()).abs().max() < 1e-4
    return scaled.round().byte().permute(0, 2, 3, 1).numpy()


def distance(ours, theirs):
    difference = np.abs(levels(ours).astype(float) - np.asarray(theirs, dtype=float))
    return difference.mean(), difference.max()


def flat(*rgb, height=8, width=8):
    return torch.tensor(rgb, dtype=torch.float64).div(255)[None, :, None, None].expand(1, len(rgb), height, width)


def one_level(pixels):
    """The level of each channel of a picture of one colour."""
    colours = np.unique(levels(pixels).reshape(-1, pixels.shape[1]), axis=0)
    assert len(colours) == 1
    return colours[0].tolist()
