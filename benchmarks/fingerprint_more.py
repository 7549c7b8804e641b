"""More of what ``fingerprint.py`` plants: arrangements, types, chroma planes, and differences of a camera or a bug.

Pictures are ``(N, 3, H, W)`` in [0, 1] on the 256 levels of 8 bits. Memory is rearranged by numpy, so that nothing of
what undoes it is used.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, interpolate, pad

from lightning_robust.deployment.pixels.geometry import camera_frame
from lightning_robust.deployment.pixels.operations import BT601, jpeg, mix_channels, quantise, through_pillow

Pixels = Callable[[Tensor], Tensor]


def _memory(x: Tensor, change: Callable[[Any], Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(change(x.numpy())))


def _interleaved_as_planes(a: Any) -> Any:
    return a.transpose(0, 2, 3, 1).reshape(a.shape)


def _planes_as_interleaved(a: Any) -> Any:
    return a.reshape(len(a), *a.shape[2:], 3).transpose(0, 3, 1, 2)


def _padded_rows(x: Tensor, padding: int) -> Tensor:
    """Interleaved rows that end in zeros, read without the stride."""
    rows = x.permute(0, 2, 3, 1).reshape(len(x), x.shape[2], -1)
    flat = pad(rows, (0, padding)).reshape(len(x), -1)[:, : x[0].numel()]
    return flat.reshape(len(x), x.shape[2], x.shape[3], 3).permute(0, 3, 1, 2).contiguous()


def _quantised(x: Tensor) -> Tensor:
    return (x * 255 / 2 - 64).round().clamp(-128, 127).to(torch.int8)


def _late(x: Tensor, by: int) -> Tensor:
    return torch.cat([x[:1].expand(by, -1, -1, -1), x[:-by]])


ARRANGED: dict[str, tuple[set[str], Pixels, Pixels]] = {
    "left_right": ({"orientation"}, torch.clone, lambda x: x.flip(3)),
    "up_down": ({"orientation"}, torch.clone, lambda x: x.flip(2)),
    "half_turn": ({"orientation"}, torch.clone, lambda x: x.flip(2, 3)),
    "quarter_turn": ({"orientation"}, torch.clone, lambda x: x.transpose(2, 3).flip(3)),
    "hwc_as_chw": (
        {"memory_layout"},
        torch.clone,
        lambda x: _memory(x, lambda a: a.transpose(0, 2, 3, 1).reshape(a.shape)),
    ),
    "chw_as_hwc": (
        {"memory_layout"},
        torch.clone,
        lambda x: _memory(x, lambda a: a.reshape(len(a), *a.shape[2:], 3).transpose(0, 3, 1, 2)),
    ),
    "channels_last": ({"memory_layout"}, torch.clone, lambda x: x.permute(0, 2, 3, 1).contiguous()),
    "row_stride": ({"memory_layout"}, torch.clone, partial(_padded_rows, padding=8)),
    "order_gbr": ({"channel_order"}, torch.clone, lambda x: x[:, [1, 2, 0]]),
    "order_grb": ({"channel_order"}, torch.clone, lambda x: x[:, [1, 0, 2]]),
    "red_twice": ({"channel_order"}, torch.clone, lambda x: x[:, [0, 0, 2]]),
    "blue_lost": ({"channel_order"}, torch.clone, lambda x: x * x.new_tensor([1.0, 1.0, 0.0])[:, None, None]),
    "frames_reversed": ({"frame_sequence"}, torch.clone, lambda x: x.flip(0)),
    "frames_late": ({"frame_sequence"}, torch.clone, partial(_late, by=1)),
    "frames_rotated": ({"frame_sequence"}, torch.clone, lambda x: x.roll(1, 0)),
    "int8": ({"input_type"}, torch.clone, lambda x: (x * 255 - 128).round().to(torch.int8)),
    "int8_of_two_levels": ({"input_type", "rounding"}, torch.clone, _quantised),
    "bytes_for_normalised": ({"input_type"}, lambda x: (x - 0.45) / 0.225, lambda x: (x * 255).round().byte()),
}
"""Name -> the causes of which one may be named, training's side and the deployed side."""


def _rgb(luma: Tensor, chroma: Tensor) -> Tensor:
    return quantise(mix_channels(BT601.inverse(), torch.cat([luma, chroma], 1)))


def _planes(x: Tensor) -> tuple[Tensor, Tensor]:
    ycc = mix_channels(BT601, x)
    return ycc[:, :1], ycc[:, 1:]


def _left_sited(x: Tensor) -> Tensor:
    """4:2:0 with chroma above the left pixels, as MPEG-2 has it, read as if it lay between the pixels."""
    luma, chroma = _planes(x)
    taps = x.new_tensor([[0.125, 0.25, 0.125], [0.125, 0.25, 0.125]])
    padded = pad(chroma.flatten(0, 1)[:, None], (1, 1, 0, 0), mode="replicate")
    half = conv2d(padded, taps[None, None], stride=2).reshape(*chroma.shape[:2], x.shape[2] // 2, -1)
    return _rgb(luma, interpolate(half, x.shape[-2:], mode="bilinear"))


def _soft_chroma(x: Tensor) -> Tensor:
    """4:2:0 whose upsampling is bilinear."""
    luma, chroma = _planes(x)
    return _rgb(luma, interpolate(avg_pool2d(chroma, 2), x.shape[-2:], mode="bilinear"))


def _resized(x: Tensor, size: Any) -> Tensor:
    return interpolate(x, size, mode="bilinear", antialias=True)


def _converted_first(x: Tensor) -> Tensor:
    """A camera's 4:2:0 frame converted to RGB, each colour repeated for its 2 x 2 pixels, and then resized."""
    luma, chroma = _planes(camera_frame(x)[..., : x.shape[2] * 5 // 4 * 2, : x.shape[3] * 5 // 4 * 2])
    return quantise(_resized(_rgb(luma, interpolate(avg_pool2d(chroma, 2), scale_factor=2.0)), x.shape[-2:]))


def _resized_first(x: Tensor) -> Tensor:
    """The planes of the same frame resized each by itself without antialiasing, and then converted."""
    luma, chroma = _planes(camera_frame(x)[..., : x.shape[2] * 5 // 4 * 2, : x.shape[3] * 5 // 4 * 2])
    return _rgb(_resized(luma, x.shape[-2:]), interpolate(avg_pool2d(chroma, 2), x.shape[-2:], mode="nearest"))


def _pillow(x: Tensor, name: Any) -> Tensor:
    return through_pillow(x, lambda picture: picture.filter(name))


def _motion_blur(x: Tensor) -> Tensor:
    padded = pad(x, (2, 2, 0, 0), mode="replicate")
    return quantise(sum(padded[..., i : i + x.shape[3]] for i in range(5)) / 5)


def _clahe(x: Tensor, tiles: int = 4) -> Tensor:
    """Each tile's histogram equalised halfway."""
    x, (height, width) = x.clone(), (x.shape[2] // tiles, x.shape[3] // tiles)
    for picture in x:
        for at in range(tiles * tiles):
            top, left = at // tiles * height, at % tiles * width
            tile = picture[:, top : top + height, left : left + width]
            grey = tile.mean(0).flatten()
            ranks = torch.searchsorted(grey.sort().values, tile.mean(0).contiguous()) / grey.numel()
            tile.mul_((0.5 + 0.5 * ranks / tile.mean(0).clamp(min=0.02)).clamp(max=3)[None])
    return quantise(x)


def _dithered(x: Tensor) -> Tensor:
    matrix = x.new_tensor([[0, 2], [3, 1]]).add(0.5).div(4)
    tiled = matrix.repeat(-(-x.shape[2] // 2), -(-x.shape[3] // 2))[: x.shape[2], : x.shape[3]]
    return quantise((x * 15 + tiled - 0.5).round() / 15)


def _knees(x: Tensor) -> Tensor:
    bright = torch.where(x < 0.7, 0.175 + (x - 0.25) * 1.3, 0.76 + (x - 0.7) * 0.8)
    return quantise(torch.where(x < 0.25, x * 0.7, bright))


def _salted(x: Tensor) -> Tensor:
    return torch.where(torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) < 0.01, 0.0, x)


def _doubled_rows(x: Tensor) -> Tensor:
    return x[..., ::2, :].repeat_interleave(2, -2)[..., : x.shape[-2], :]


def _dead_row(x: Tensor) -> Tensor:
    x = x.clone()
    x[..., x.shape[2] // 3, :] = 0
    return x


def _interlaced(x: Tensor) -> Tensor:
    return torch.where(torch.arange(x.shape[2])[:, None] % 2 == 1, x.roll(1, 0), x)


def _other_crops(x: Tensor) -> Tensor:
    margin = max(x.shape[2] // 16, 2)
    parts = [
        _resized(p[None, :, i % 4 * margin // 2 :, : x.shape[3] - i * 3 % 5 * margin // 2], x.shape[-2:])
        for i, p in enumerate(x)
    ]
    return quantise(torch.cat(parts))


def _per_picture(x: Tensor) -> Tensor:
    return quantise(0.5 + 0.2 * (x - x.mean((1, 2, 3), keepdim=True)) / x.std((1, 2, 3), keepdim=True))


def _erased(x: Tensor) -> Tensor:
    x, generator = x.clone(), torch.Generator().manual_seed(0)
    for picture in x:
        top, left = (int(torch.randint(side * 2 // 3, (), generator=generator)) for side in x.shape[2:])
        picture[:, top : top + x.shape[2] // 4, left : left + x.shape[3] // 4] = 0.5
    return quantise(x)


def _palette(x: Tensor) -> Tensor:
    return through_pillow(x, lambda p: p.quantize(32, dither=Image.Dither.NONE).convert("RGB"))


def _highlights(x: Tensor) -> Tensor:
    return quantise(torch.where(x > 0.5, 0.5 + (x - 0.5) * 0.5, x))


MEASURED: dict[str, tuple[set[str], Pixels, Pixels]] = {
    "chroma_420_left": ({"compression"}, torch.clone, _left_sited),
    "chroma_420_bilinear": ({"compression"}, torch.clone, _soft_chroma),
    "chroma_moved": ({"compression"}, torch.clone, lambda x: _rgb(_planes(x)[0], _planes(x)[1].roll(2, 3))),
    "resize_before_conversion": ({"compression", "resize_filter"}, _converted_first, _resized_first),
    "white_balance": (
        {"gain_offset"},
        torch.clone,
        lambda x: quantise(x * x.new_tensor([1.1, 1.0, 0.85])[:, None, None]),
    ),
    "sharpened": ({"resize_filter"}, torch.clone, partial(_pillow, name=ImageFilter.UnsharpMask(1.5, 60, 0))),
    "gaussian_blur": ({"resize_filter"}, torch.clone, partial(_pillow, name=ImageFilter.GaussianBlur(0.8))),
    "motion_blur": ({"resize_filter"}, torch.clone, _motion_blur),
    "rows_doubled": ({"resize_filter"}, torch.clone, _doubled_rows),
    "dead_row": ({"overlay"}, torch.clone, _dead_row),
    "normalised_each": ({"gain_offset"}, torch.clone, _per_picture),
    "missing_top": ({"crop"}, torch.clone, lambda x: quantise(_resized(x[..., x.shape[2] // 10 :, :], x.shape[-2:]))),
    "quality_98": ({"compression"}, torch.clone, partial(jpeg, quality=98)),
}
"""The same of what is measured."""

UNNAMED: dict[str, Pixels] = {
    "clahe": _clahe,
    "dithered": _dithered,
    "two_knees": _knees,
    "highlights_pressed": _highlights,
    "interlaced": _interlaced,
    "temporal_average": lambda x: quantise((x + x.roll(1, 0)) / 2),
    "another_crop_each": _other_crops,
    "erased": _erased,
    "palette": _palette,
    "salt_and_pepper": _salted,
    "border_doubled": lambda x: pad(x[..., 4:-4, 4:-4], (4, 4, 4, 4), mode="replicate"),
    "mean_of_each_column_gone": lambda x: quantise(x - x.mean(2, keepdim=True) + x.mean((2, 3), keepdim=True)),
    "bloom": lambda x: quantise(x + 0.3 * avg_pool2d((x > 0.7).to(x), 15, 1, 7)),
    "weak_vignette": lambda x: quantise(x * (1 - 0.1 * torch.linspace(-1, 1, x.shape[3]).square())),
    "flare": lambda x: quantise(x + 0.15 * torch.linspace(0, 1, x.shape[3]).square()),
}
"""Differences that no cause is named for."""
