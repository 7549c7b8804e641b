"""Operations on the values of pixels, batched, with a parameter for each picture: what training can afford each step.

Pictures are ``(N, C, H, W)`` in [0, 1] and parameters ``(N,)``. Nothing leaves the device, and no codec runs. At the
catalogue's points they are its operations, to a level where a tie is decided by rounding in fp32; for JPEG see
:func:`approximate_jpeg`.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, pad

from lightning_robust.deployment.pixels.operations import BT601, from_levels, mix_channels, whole_levels

_LUMA = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMA = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *[(99,) * 8] * 4,
)
"""Annex K of ITU-T T.81, which libjpeg scales by the quality."""
_BLOCK = 8


def scale_pixels(pixels: Tensor, gains: Tensor) -> Tensor:
    """Times a gain, in 8 bits."""
    return from_levels(whole_levels(pixels) * _of_pictures(gains, pixels))


def add_levels(pixels: Tensor, offsets: Tensor) -> Tensor:
    """Plus a number of levels, in 8 bits."""
    return from_levels(whole_levels(pixels) + _of_pictures(offsets, pixels))


def raise_pixels(pixels: Tensor, exponents: Tensor) -> Tensor:
    """To the power of an exponent, in 8 bits."""
    return from_levels((pixels ** _of_pictures(exponents, pixels)).mul_(255))


def cut_bits(pixels: Tensor, bits: Tensor) -> Tensor:
    """Cut off to the upper bits; their number is rounded."""
    step = 2.0 ** (8 - _of_pictures(bits, pixels).round())
    return from_levels((whole_levels(pixels) / step).floor_() * step)


def add_noise(pixels: Tensor, deviations: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Gaussian noise with a standard deviation in levels."""
    noise = torch.randn(pixels.shape, generator=generator, device=pixels.device, dtype=pixels.dtype)
    return from_levels(noise.mul_(_of_pictures(deviations, pixels)).add_(whole_levels(pixels)))


def approximate_jpeg(pixels: Tensor, qualities: Tensor) -> Tensor:
    """JPEG at a quality of 1 to 100, chroma at half the resolution: the same rounding of coefficients as libjpeg's.

    libjpeg computes in integers, so that a coefficient near a tie may fall to the other side, and it spreads colour in
    a way of its own. At qualities 75 to 95 that leaves 0.5 levels on average on rendered roads, which libjpeg moves by
    2.5 to 3.3, and 1.0 on texture, which it moves by 7.5 to 9.3 (``tests/deployment/pixels/test_batched.py``).
    """
    height, width = pixels.shape[-2:]
    side = 2 * _BLOCK if pixels.shape[1] == 3 else _BLOCK
    padded = pad(pixels, (0, -width % side, 0, -height % side), mode="replicate")
    if pixels.shape[1] == 1:
        return from_levels(_round_coefficients(whole_levels(padded) - 128, qualities, _LUMA) + 128)[
            ..., :height, :width
        ]
    ycc = mix_channels(BT601 * 255, padded)
    luma = _round_coefficients(ycc[:, :1].round() - 128, qualities, _LUMA) + 128
    halved = _round_coefficients(avg_pool2d(ycc[:, 1:].round(), 2).round(), qualities, _CHROMA)
    chroma = interpolate(halved.round(), scale_factor=2.0, mode="bilinear")
    rgb = mix_channels(BT601.inverse(), torch.cat([luma.round(), chroma], 1))
    return from_levels(rgb[..., :height, :width])


def _round_coefficients(levels: Tensor, qualities: Tensor, table: tuple[tuple[int, ...], ...]) -> Tensor:
    """Levels around 0 after their DCT coefficients, block by block, were rounded to multiples of the table's."""
    count, channels, height, width = levels.shape
    rows, columns = height // _BLOCK, width // _BLOCK
    blocks = levels.reshape(count, channels, rows, _BLOCK, columns, _BLOCK).transpose(3, 4).reshape(count, -1, 64)
    cosines, steps = _cosines().to(levels), _scaled_table(table, qualities).to(levels)[:, None]
    coefficients = (blocks @ cosines.T).div_(steps).round_().mul_(steps)
    back = (coefficients @ cosines).reshape(count, channels, rows, columns, _BLOCK, _BLOCK)
    return back.transpose(3, 4).reshape(levels.shape)


def _scaled_table(table: tuple[tuple[int, ...], ...], qualities: Tensor) -> Tensor:
    """The table at each quality, as libjpeg scales it: ``(N, 64)``."""
    quality = qualities.double().round()
    percent = torch.where(quality < 50, (5000 / quality).floor(), 200 - 2 * quality)
    base = torch.tensor(table, dtype=torch.float64, device=qualities.device).flatten()
    return ((base * percent[:, None] + 50) / 100).floor().clamp(1, 255)


@functools.lru_cache(maxsize=1)
def _cosines() -> Tensor:
    """The orthonormal DCT of a block of 8 x 8 as a matrix ``(64, 64)``."""
    place, wave = torch.arange(_BLOCK, dtype=torch.float64), torch.arange(_BLOCK, dtype=torch.float64)[:, None]
    axis = torch.cos((2 * place + 1) * wave * math.pi / (2 * _BLOCK)) / 2
    axis[0] /= math.sqrt(2)
    return torch.kron(axis, axis)


def _of_pictures(values: Tensor, pixels: Tensor) -> Tensor:
    return values.to(pixels)[:, None, None, None]
