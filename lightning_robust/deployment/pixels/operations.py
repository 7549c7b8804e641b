"""Operations on the values of pixels: rounding, colour, compression, gain, noise.

Pictures are ``(N, C, H, W)`` in [0, 1]. ``geometry.py`` has the operations that place content; ``catalogue.py`` names
and groups both.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, pad


def quantise(pixels: Tensor) -> Tensor:
    """Round to the 256 levels of 8 bits, as a frame buffer does."""
    return from_levels(pixels * 255)


def whole_levels(pixels: Tensor) -> Tensor:
    """Pixels as whole numbers from 0 to 255, on which weights like 1/4 or 3/16 and ties in rounding are exact."""
    return (pixels * 255).round_()


def from_levels(levels: Tensor) -> Tensor:
    """Pixels of levels, rounded and clipped. Works in place, so that no frame is held twice."""
    return levels.round_().clamp_(0, 255).div_(255)


def unchanged(pixels: Tensor) -> Tensor:
    """The training side of an operation that only the deployed side applies."""
    return pixels.clone()


def _luma(kr: float, kb: float) -> Tensor:
    """The matrix from RGB in [0, 1] to Y in [0, 1] and Cb, Cr in [-0.5, 0.5] (ITU-R BT.601, BT.709 and BT.2020)."""
    y = torch.tensor([kr, 1 - kr - kb, kb], dtype=torch.float64)
    red, blue = torch.tensor([1.0, 0, 0]).double(), torch.tensor([0, 0, 1.0]).double()
    return torch.stack([y, (blue - y) / (2 * (1 - kb)), (red - y) / (2 * (1 - kr))])


_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
BT601, BT709, BT2020 = _luma(0.299, 0.114), _luma(0.2126, 0.0722), _luma(0.2627, 0.0593)


def mix_channels(matrix: Tensor, pixels: Tensor) -> Tensor:
    """Three channels times a matrix ``(3, 3)``, one after the other, so that a picture does not depend on its batch."""
    first, second, third = pixels.unbind(1)
    return torch.stack([a * first + b * second + c * third for a, b, c in matrix.tolist()], 1)


def wrong_matrix(pixels: Tensor, reverse: bool = False) -> Tensor:
    """Written as YCbCr with BT.601's matrix, read with BT.709's; or the reverse."""
    written, read = (BT709, BT601) if reverse else (BT601, BT709)
    return quantise(mix_channels(read.inverse() @ written, pixels))


def wrong_range(pixels: Tensor) -> Tensor:
    """Full-range YCbCr (BT.601) read as limited range: luma 16 becomes black, 235 white, colours gain 255 / 224.

    Grey pictures are luma alone.
    """
    return _reread_range(pixels, lambda luma: (luma * 255 - 16) / 219, 255 / 224)


def unexpanded_range(pixels: Tensor) -> Tensor:
    """Limited-range YCbCr (BT.601) read as full range: black becomes 16, white 235, colours lose 224 / 255.

    Grey pictures are luma alone.
    """
    return _reread_range(pixels, lambda luma: (luma * 219 + 16) / 255, 224 / 255)


def _reread_range(pixels: Tensor, change_luma: Callable[[Tensor], Tensor], chroma_gain: float) -> Tensor:
    if pixels.shape[1] == 1:
        return quantise(change_luma(pixels))
    ycc = mix_channels(BT601, pixels)
    read = torch.cat([change_luma(ycc[:, :1]), ycc[:, 1:] * chroma_gain], 1)
    return quantise(mix_channels(BT601.inverse(), read))


def nv12(pixels: Tensor) -> Tensor:
    """Through NV12: BT.601, limited range, 8 bits, chroma at half the resolution both ways."""
    height, width = pixels.shape[-2:]
    even = pad(pixels, (0, width % 2, 0, height % 2), mode="replicate")
    ycc = mix_channels(BT601, even)
    luma = (ycc[:, :1] * 219 + 16).round()
    chroma = (avg_pool2d(ycc[:, 1:], 2) * 224 + 128).round()
    full = interpolate((chroma - 128) / 224, scale_factor=2.0, mode="nearest")
    rgb = mix_channels(BT601.inverse(), torch.cat([(luma - 16) / 219, full], 1))
    return quantise(rgb[..., :height, :width])


def jpeg(pixels: Tensor, quality: int, *, full_color: bool = False) -> Tensor:
    """Through libjpeg (in Pillow) at a quality of 1 to 100, chroma subsampled 4:2:0, or not with ``full_color``.

    Differentiable approximations such as kornia's are a level or two away from libjpeg at quality 90.
    """
    from PIL import Image

    def decoded(picture: Image.Image) -> Image.Image:
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=quality, subsampling=0 if full_color else 2)
        return Image.open(stream)

    return through_pillow(pixels, decoded)


def through_pillow(pixels: Tensor, change: Callable[..., Any]) -> Tensor:
    """Apply a function of Pillow's images to each picture, in 8 bits."""
    if not len(pixels):
        return pixels.clone()
    from PIL import Image

    levels = (pixels * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
    grey = levels.shape[3] == 1
    changed = [np.asarray(change(Image.fromarray(picture[..., 0] if grey else picture))) for picture in levels]
    stacked = torch.from_numpy(np.stack(changed))
    return (stacked[:, None] if grey else stacked.permute(0, 3, 1, 2)).to(pixels) / 255


def swap_channels(pixels: Tensor) -> Tensor:
    """RGB read as BGR."""
    return pixels.flip(1)


def brighten(pixels: Tensor, gain: float) -> Tensor:
    """All pixels times ``gain``, clipped."""
    bright = whole_levels(pixels).double() * gain  # in fp32 the error of 1.1 itself would decide the ties
    return from_levels(bright).to(pixels.dtype)


def offset(pixels: Tensor, levels: int) -> Tensor:
    """All pixels plus a number of levels, clipped."""
    return from_levels(whole_levels(pixels) + levels)


def gamma(pixels: Tensor, exponent: float) -> Tensor:
    """All pixels to the power of ``exponent``."""
    return quantise(pixels.double() ** exponent).to(pixels.dtype)


def fewer_levels(pixels: Tensor, bits: int) -> Tensor:
    """Cut off to the upper ``bits``, the others zero."""
    step = 2 ** (8 - bits)
    return from_levels((whole_levels(pixels) / step).floor_() * step)


def divided_by_256(pixels: Tensor) -> Tensor:
    """Scaled by 1 / 256 instead of 1 / 255."""
    return pixels * (255 / 256)


def other_normalisation(pixels: Tensor) -> Tensor:
    """Normalised with mean and deviation 0.5 where training used ImageNet's, as pixels of training's normalisation.

    Grey pictures take the mean of ImageNet's three channels.
    """
    mean, std = pixels.new_tensor(_IMAGENET[0]), pixels.new_tensor(_IMAGENET[1])
    if pixels.shape[1] == 1:
        mean, std = mean.mean(0, keepdim=True), std.mean(0, keepdim=True)
    return (pixels - 0.5) / 0.5 * std[:, None, None] + mean[:, None, None]


def noise(pixels: Tensor, deviation: float) -> Tensor:
    """Gaussian noise with a standard deviation in levels, seeded by the picture: equal pictures get equal noise."""
    noisy = [levels + deviation * _standard_normal(levels) for levels in whole_levels(pixels)]
    return from_levels(torch.stack(noisy)) if noisy else pixels.clone()


def _standard_normal(picture: Tensor) -> Tensor:
    seed = zlib.crc32(picture.byte().contiguous().cpu().numpy().tobytes())
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(picture.shape, generator=generator, dtype=torch.float64).to(picture)
