"""What ``fingerprint.py`` plants beside the catalogue: further causes that have a name, and differences that have none.

Pictures are ``(N, C, H, W)`` in [0, 1]; what a case returns lies on the 256 levels of 8 bits.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import affine_grid, avg_pool2d, conv2d, grid_sample, interpolate, pad

from lightning_robust.deployment.pixels.geometry import camera_frame
from lightning_robust.deployment.pixels.operations import BT601, BT709, BT2020, nv12, quantise, through_pillow

Pixels = Callable[[Tensor], Tensor]


def _mixed(matrix: Tensor, x: Tensor) -> Tensor:
    return quantise(torch.einsum("ij,njhw->nihw", matrix.to(x), x))


def _filtered(x: Tensor, taps: list[list[float]]) -> Tensor:
    kernel = x.new_tensor(taps)
    margin = [side // 2 for side in kernel.shape]
    padded = pad(x.flatten(0, 1)[:, None], (margin[1], margin[1], margin[0], margin[0]), mode="replicate")
    return conv2d(padded, kernel[None, None]).reshape(x.shape)


def _sampled(x: Tensor, grid: Tensor) -> Tensor:
    grid = grid.to(x).expand(len(x), *grid.shape[-3:])
    return quantise(grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=True))


def _rotated(x: Tensor, degrees: float, shear: float = 0.0) -> Tensor:
    a, (height, width) = math.radians(degrees), x.shape[-2:]
    ratio = (height - 1) / (width - 1)
    rows = [[math.cos(a), math.sin(a) * ratio + shear, 0.0], [-math.sin(a) / ratio, math.cos(a), 0.0]]
    return _sampled(x, affine_grid(torch.tensor([rows]), [1, 1, height, width], align_corners=True))


def _lens(x: Tensor, k: float) -> Tensor:
    """Content at a distance r from the centre comes from r (1 + k r^2), where half the diagonal is 1."""
    height, width = x.shape[-2:]
    grid = affine_grid(torch.eye(2, 3)[None], [1, 1, height, width], align_corners=True)
    square = grid.square() * torch.tensor([width**2, height**2]) / (width**2 + height**2)
    return _sampled(x, grid * (1 + k * square.sum(-1, keepdim=True)))


def _overlaid(x: Tensor, kind: str) -> Tensor:
    x, (height, width) = x.clone(), x.shape[-2:]
    box = slice(height // 8, height // 4), slice(width // 16, width // 16 + width // 4)
    if kind == "text":
        lines = torch.rand(box[0].stop - box[0].start, box[1].stop - box[1].start, generator=_seeded()) < 0.4
        x[..., box[0], box[1]] = torch.where(lines, 1.0, x[..., box[0], box[1]])
    elif kind == "black":
        x[..., height * 7 // 8 :, :] = 0.0
    else:
        x[..., box[0], box[1]] = x.new_tensor([0.9, 0.1, 0.2])[:, None, None]
    return quantise(x)


def _seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _grey(x: Tensor, weights: tuple[float, float, float]) -> Tensor:
    return quantise((x * x.new_tensor(weights)[:, None, None]).sum(1, keepdim=True).expand_as(x))


def _resized(x: Tensor, *filters: str) -> Tensor:
    """A camera's frame brought to the network's size by Pillow, by way of 1.5 times that size for each further step."""
    sides, frame = x.shape[-2:], camera_frame(x)
    for step, name in enumerate(filters):
        size = [round(side * 1.5 ** (len(filters) - 1 - step)) for side in sides]
        frame = _pillow_resize(frame, (size[1], size[0]), name)
    return frame


def _pillow_resize(x: Tensor, size: tuple[int, int], name: str) -> Tensor:
    return through_pillow(x, lambda picture: picture.resize(size, Image.Resampling[name]))


def _at_source(x: Tensor, change: Pixels) -> Tensor:
    size = x.shape[-1], x.shape[-2]
    return _pillow_resize(change(camera_frame(x)), size, "BILINEAR")


def _encoded(x: Tensor, form: str, **options: object) -> Tensor:
    def decoded(picture: Image.Image) -> Image.Image:
        stream = io.BytesIO()
        picture.save(stream, form, **options)
        return Image.open(stream).convert("RGB")

    return through_pillow(x, decoded)


def _trained_resize(x: Tensor) -> Tensor:
    return _resized(x, "BILINEAR")


NAMED: dict[str, tuple[set[str], Pixels, Pixels]] = {
    "rotation_1": ({"rotation"}, torch.clone, partial(_rotated, degrees=1.0)),
    "rotation_-3": ({"rotation"}, torch.clone, partial(_rotated, degrees=-3.0)),
    "lens_barrel": ({"lens"}, torch.clone, partial(_lens, k=0.05)),
    "lens_pincushion": ({"lens"}, torch.clone, partial(_lens, k=-0.04)),
    "overlay_logo": ({"overlay"}, torch.clone, partial(_overlaid, kind="logo")),
    "overlay_text": ({"overlay"}, torch.clone, partial(_overlaid, kind="text")),
    "overlay_black": ({"overlay"}, torch.clone, partial(_overlaid, kind="black")),
    "grey_601": ({"grey"}, torch.clone, partial(_grey, weights=(0.299, 0.587, 0.114))),
    "grey_mean": ({"grey"}, torch.clone, partial(_grey, weights=(1 / 3, 1 / 3, 1 / 3))),
    "bt2020_as_709": ({"color_matrix"}, torch.clone, partial(_mixed, BT709.inverse() @ BT2020)),
    "bt709_as_2020": ({"color_matrix"}, torch.clone, partial(_mixed, BT2020.inverse() @ BT709)),
    "bt2020_as_601": ({"color_matrix"}, torch.clone, partial(_mixed, BT601.inverse() @ BT2020)),
    "pillow_box": ({"resize_filter"}, _trained_resize, lambda x: _resized(x, "BOX")),
    "pillow_nearest": ({"resize_filter"}, _trained_resize, lambda x: _resized(x, "NEAREST")),
    "two_steps": ({"resize_filter"}, _trained_resize, lambda x: _resized(x, "BILINEAR", "BILINEAR")),
    "jpeg_444": ({"compression"}, torch.clone, partial(_encoded, form="JPEG", quality=90, subsampling=0)),
    "jpeg_93": ({"compression"}, torch.clone, partial(_encoded, form="JPEG", quality=93)),
    "webp": ({"compression"}, torch.clone, partial(_encoded, form="WEBP", quality=80)),
    "nv12_at_source": ({"compression", "resize_filter"}, _trained_resize, partial(_at_source, change=nv12)),
    "jpeg_at_source": (
        {"compression", "resize_filter"},
        _trained_resize,
        partial(_at_source, change=partial(_encoded, form="JPEG", quality=70)),
    ),
}
"""Name -> the causes of which one may be named, training's side and the deployed side."""


def _solarised(x: Tensor) -> Tensor:
    return torch.where(x > 0.6, 1 - x, x)


def _swapped_blocks(x: Tensor) -> Tensor:
    x, (height, width) = x.clone(), x.shape[-2:]
    a, b = (slice(0, height // 4), slice(0, width // 4)), (slice(height // 2, height * 3 // 4), slice(0, width // 4))
    x[(..., *a)], x[(..., *b)] = x[(..., *b)].clone(), x[(..., *a)].clone()
    return x


def _local_contrast(x: Tensor) -> Tensor:
    side = max(x.shape[-1] // 8, 3) | 1
    return quantise(x + 0.6 * (x - avg_pool2d(x, side, 1, side // 2, count_include_pad=False)))


def _vignette(x: Tensor) -> Tensor:
    y, z = (torch.linspace(-1, 1, side)[(...,) + (None,) * axis] for axis, side in ((1, x.shape[2]), (0, x.shape[3])))
    return quantise(x * (1 - 0.35 * (y.square() + z.square()) / 2))


def _row_noise(x: Tensor) -> Tensor:
    return quantise(x + 5 / 255 * torch.randn(*x.shape[:3], 1, generator=_seeded()))


def _hue_turned(x: Tensor, degrees: float = 20) -> Tensor:
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turn = torch.tensor([[1, 0, 0], [0, c, -s], [0, s, c]]).double()
    return _mixed(BT601.inverse() @ turn @ BT601, x)


def _saturated(x: Tensor, by: float = 1.4) -> Tensor:
    return _mixed(BT601.inverse() @ torch.diag(torch.tensor([1.0, by, by]).double()) @ BT601, x)


def _mirrored_half(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return torch.cat([x[..., :half], x[..., :half].flip(-1)], -1)


def _ghosted(x: Tensor) -> Tensor:
    return quantise(0.7 * x + 0.3 * x.roll(1, 0))


def _dead_pixels(x: Tensor) -> Tensor:
    dead = torch.rand(x.shape[-2:], generator=_seeded()) < 0.003
    return torch.where(dead, 1.0, x)


def _watermark(x: Tensor) -> Tensor:
    stripes = torch.sin(torch.arange(x.shape[-1]) / 3.0 + torch.arange(x.shape[-2])[:, None] / 5.0)
    return quantise(0.85 * x + 0.15 * (stripes > 0.3).to(x))


def _toned(x: Tensor) -> Tensor:
    return quantise(x + 0.08 * torch.sin(2 * math.pi * x))


def _median(x: Tensor) -> Tensor:
    padded = pad(x, (1, 1, 1, 1), mode="replicate")
    return padded.unfold(2, 3, 1).unfold(3, 3, 1).flatten(-2).median(-1).values


def _half_brighter(x: Tensor) -> Tensor:
    gain = torch.where(torch.arange(x.shape[-1]) < x.shape[-1] // 2, 1.0, 1.25)
    return quantise(x * gain)


def _flicker(x: Tensor) -> Tensor:
    return quantise(x * torch.linspace(0.8, 1.2, len(x))[:, None, None, None])


def _equalised(x: Tensor) -> Tensor:
    from PIL import ImageOps

    return through_pillow(x, ImageOps.equalize)


def _sheared_rows(x: Tensor) -> Tensor:
    rows = [row.roll(round(3 * math.sin(i / 5)), -1) for i, row in enumerate(x.unbind(-2))]
    return torch.stack(rows, -2)


def _perspective(x: Tensor) -> Tensor:
    height, width = x.shape[-2:]
    grid = affine_grid(torch.eye(2, 3)[None], [1, 1, height, width], align_corners=True)
    return _sampled(x, grid / (1 + 0.08 * grid[..., 1:]))


def _false_colour(x: Tensor) -> Tensor:
    mixed = x.new_tensor([[0.6, 0.5, -0.1], [-0.2, 0.9, 0.3], [0.3, -0.3, 1.0]])
    return _mixed(mixed, x)


def _low_frame(x: Tensor) -> Tensor:
    small = avg_pool2d(x, 4)
    return quantise(x - interpolate(small, x.shape[-2:]) + interpolate(small.roll(1, -1), x.shape[-2:]))


UNKNOWN: dict[str, Pixels] = {
    "solarised": _solarised,
    "blocks_swapped": _swapped_blocks,
    "local_contrast": _local_contrast,
    "vignette": _vignette,
    "row_noise": _row_noise,
    "hue_turned": _hue_turned,
    "saturated": _saturated,
    "desaturated": partial(_saturated, by=0.5),
    "half_mirrored": _mirrored_half,
    "ghost_of_another_frame": _ghosted,
    "dead_pixels": _dead_pixels,
    "watermark": _watermark,
    "tone_curve": _toned,
    "median_filter": _median,
    "half_brighter": _half_brighter,
    "flicker": _flicker,
    "equalised": _equalised,
    "rows_waving": _sheared_rows,
    "perspective": _perspective,
    "false_colour": _false_colour,
    "inverted": lambda x: 1 - x,
    "sheared": partial(_rotated, degrees=0.0, shear=0.05),
    "coarse_shift": _low_frame,
    "one_channel_shifted": lambda x: torch.cat([x[:, :2], x[:, 2:].roll(2, -1)], 1),
    "posterised_by_channel": lambda x: quantise(torch.cat([(x[:, :1] * 5).round() / 5, x[:, 1:]], 1)),
    "contrast_by_region": lambda x: quantise((x - 0.5) * (1 + torch.linspace(-0.5, 0.5, x.shape[-2])[:, None]) + 0.5),
}
"""Differences that no cause is named for: what would be named wrong is counted."""


def cifar(path: str, count: int = 64) -> Tensor:
    """Pictures of the CIFAR-10 archive ``train/<class>/<number>.jpg``, as many of each class, in [0, 1].

    They begin with number 4000: limits were set while those from 0, 1000, 2000 and 3000 on were looked at.
    """
    import tarfile

    each = -(-count // 10)
    with tarfile.open(path) as archive:
        wanted = [
            member
            for member in archive
            if member.name.startswith("train/") and member.isfile() and 4000 <= int(member.name[-8:-4]) < 4000 + each
        ]
        chosen = sorted(wanted, key=lambda member: (member.name[-8:], member.name))[:count]
        pictures = [np.asarray(Image.open(archive.extractfile(member)).convert("RGB")) for member in chosen]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
