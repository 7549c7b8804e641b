"""What the camera makes of the light: glare, blur, exposure, noise, compression."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from lightning_robust.demo.lanes.scene import Light, Sensor
from lightning_robust.demo.lanes.textures import blend, tint, white_noise


def _per_picture(value: Tensor) -> Tensor:
    """(N,) float64 to (N, 1, 1, 1) float32."""
    return value.float()[:, None, None, None]


def _axes(size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Rows (H, 1) and columns (1, W) in shares of the picture."""
    return (torch.arange(size[0])[:, None] + 0.5) / size[0], (torch.arange(size[1])[None] + 0.5) / size[1]


def add_glare(picture: Tensor, light: Light) -> Tensor:
    """The sun's veil around a point, and its reflection on a wet road below it, (N, 3, H, W)."""
    rows, columns = _axes((picture.shape[2], picture.shape[3]))
    width = _per_picture(light.glare_width)
    x = (columns - _per_picture(light.glare_column)) / width
    y = (rows - _per_picture(light.glare_row)) / width
    veil = _per_picture(light.glare) / (1 + x * x + y * y)
    streak = _per_picture(light.wet) / (1 + 4 * x * x) * rows
    return blend(picture, torch.tensor(1.1), (veil + streak).clamp_(max=0.9))


def draw_bonnet(picture: Tensor, sensor: Sensor) -> Tensor:
    """The rim of the car's own bonnet along the lower edge of some pictures."""
    return blend(picture, tint(sensor.bonnet_colour), bonnet_cover(sensor, (picture.shape[2], picture.shape[3])))


def bonnet_cover(sensor: Sensor, size: tuple[int, int]) -> Tensor:
    """The share of each pixel that the car's own bonnet covers, (N, 1, H, W)."""
    rows, columns = _axes(size)
    edge = 1 - _per_picture(sensor.bonnet) * (1 - 1.6 * (columns - 0.5) * (columns - 0.5))
    return ((rows - edge) * size[0]).clamp(0.0, 1.0) * (_per_picture(sensor.bonnet) > 0)


def expose(picture: Tensor, sensor: Sensor) -> Tensor:
    """Light to grey values: blur, vignette, white balance, contrast, gamma; result in [0, 1]."""
    picture = _blur(picture, _per_picture(sensor.blur), _per_picture(sensor.blur + sensor.motion))
    rows, columns = _axes((picture.shape[2], picture.shape[3]))
    corner = ((rows - 0.5) * (rows - 0.5) + (columns - 0.5) * (columns - 0.5)) * 2
    pivot, gain = _per_picture(sensor.pivot), _per_picture(sensor.gain)
    picture.mul_((1 - _per_picture(sensor.vignette) * corner) * (tint(sensor.balance) * gain))
    picture.add_(pivot - pivot * gain).clamp_(0.0, 1.0)
    # between x**2 and sqrt(x), through x: a gamma without a transcendental function
    bend = _per_picture(sensor.gamma)
    bent = torch.where(bend > 0, picture.sqrt(), picture * picture)
    picture = blend(picture, bent, torch.where(bend > 0, bend * 0.7, -bend))
    grey = (picture[:, :1] + 2 * picture[:, 1:2] + picture[:, 2:]) / 4
    return picture.sub_(grey).mul_(_per_picture(sensor.saturation)).add_(grey)


def _blur(picture: Tensor, across: Tensor, down: Tensor) -> Tensor:
    """Three-tap blur; the weights are the shares of each neighbour, (N, 1, 1, 1)."""
    padded = functional.pad(picture, (1, 1, 0, 0), mode="replicate")
    picture = picture * (1 - 2 * across) + (padded[..., :-2] + padded[..., 2:]).mul_(across)
    padded = functional.pad(picture, (0, 0, 1, 1), mode="replicate")
    down = (down * 0.75).clamp(max=0.33)
    return picture.mul_(1 - 2 * down).add_((padded[..., :-2, :] + padded[..., 2:, :]).mul_(down))


def digitise(picture: Tensor, sensor: Sensor) -> Tensor:
    """Noise, sharpening and compression, then bytes, (N, 3, H, W) uint8."""
    shape = (3, picture.shape[2], picture.shape[3])
    picture = picture + white_noise(sensor.noise_at, shape).mul_(_per_picture(sensor.noise))
    which = sensor.sharpen.nonzero()[:, 0]
    if len(which):
        amount = _per_picture(-0.3 * sensor.sharpen[which])
        picture[which] = _blur(picture[which], amount, amount)
    which = sensor.codec.nonzero()[:, 0]
    if len(which) and picture.shape[2] % 8 == 0 and picture.shape[3] % 8 == 0:
        picture[which] = _compress(picture[which], _per_picture(sensor.codec[which]))
    return picture.mul_(255).add_(0.5).clamp_(0.0, 255.0).to(torch.uint8)


def _compress(picture: Tensor, step: Tensor) -> Tensor:
    """Quantises the Walsh-Hadamard coefficients of 8 x 8 blocks, coarser for fine detail, as JPEG does.

    The transform needs additions only, so the result is the same bit for bit in any batch.
    """
    count, channels, height, width = picture.shape
    blocks = picture.reshape(count, channels, height // 8, 8, width // 8, 8)
    coefficients = _hadamard(_hadamard(blocks, 3), 5) / 8
    frequency = torch.tensor([1.0, 8, 4, 5, 2, 7, 3, 6]) / 8
    grid = step[..., None, None] * (frequency[:, None, None] + frequency).clamp(min=0.25)
    coefficients = (coefficients / grid).round() * grid
    return (_hadamard(_hadamard(coefficients, 3), 5) / 8).reshape_as(picture)


def _hadamard(values: Tensor, dim: int) -> Tensor:
    """Walsh-Hadamard transform along a dimension of 8, unnormalised, natural order."""
    for half in (4, 2, 1):
        pairs = values.reshape(*values.shape[:dim], 4 // half, 2, half, *values.shape[dim + 1 :])
        low, high = pairs.unbind(dim + 1)
        values = torch.stack([low + high, low - high], dim + 1).flatten(dim, dim + 2)
    return values
