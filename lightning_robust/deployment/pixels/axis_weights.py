"""The catalogue's geometry as a matrix for each axis: what it does to the columns and to the rows of a picture.

Every operation here is linear and separable, but for rounding and clipping: resizing a camera frame back, shift, crop,
letterbox. The product of two small matrices with a batch does the same as ``geometry.py`` does step by step.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from lightning_robust.deployment.pixels.geometry import FILTERS, frame_side

_GREY = 114 / 255
_LANCZOS = 3
_BLOCK = 32


@functools.lru_cache(maxsize=256)
def resize_weights(side: int, filter: str) -> Tensor:  # noqa: A002 - the field's word
    """Bringing a camera frame back to a side's length with a filter, after enlarging it: ``(side, side)`` in fp64."""
    frame = frame_side(side)
    enlarge = _of(lambda rows: interpolate(rows, size=(frame, side), mode="bicubic"), side)
    return _filter_weights(frame, side, filter) @ enlarge


def _filter_weights(frame: int, side: int, filter: str) -> Tensor:  # noqa: A002
    """The weights of a filter along one axis; Pillow's, which it applies to whole levels, by their formula."""
    if filter == "pil_bicubic":
        return _of(lambda rows: interpolate(rows, size=(side, frame), mode="bicubic", antialias=True), frame)
    if filter == "lanczos":
        return _lanczos(frame, side)
    return _of(lambda rows: FILTERS[filter](rows, size=(side, frame)), frame)


def _of(resized: Callable[[Tensor], Tensor], side: int) -> Tensor:
    """The matrix of a linear map of columns: what it makes of the unit vectors."""
    unit = torch.eye(side, dtype=torch.float64)[None, None]
    return resized(unit)[0, 0]


def _lanczos(inputs: int, outputs: int) -> Tensor:
    """Pillow's LANCZOS: ``sinc(x) sinc(x / 3)`` stretched by the scale, normalised to 1."""
    scale = inputs / outputs
    centres = (torch.arange(outputs, dtype=torch.float64)[:, None] + 0.5) * scale
    places = (torch.arange(inputs, dtype=torch.float64) + 0.5 - centres) / max(scale, 1.0)
    weights = torch.sinc(places) * torch.sinc(places / _LANCZOS) * (places.abs() < _LANCZOS)
    return weights / weights.sum(1, keepdim=True)


@functools.lru_cache(maxsize=256)
def crop_weights(side: int, margin: int) -> Tensor:
    """Cutting a margin off each end and stretching the rest, as :func:`~.geometry.crop` does."""
    inner = side - 2 * margin
    stretch = _of(lambda rows: interpolate(rows, size=(side, inner), mode="bilinear", antialias=True), inner)
    weights = torch.zeros(side, side, dtype=torch.float64)
    weights[:, margin : side - margin] = stretch
    return weights


@functools.lru_cache(maxsize=256)
def letterbox_weights(side: int, bar: int) -> Tensor:
    """Shrinking to make room for a bar at each end, as :func:`~.geometry.letterbox` does; 0 in the bars."""
    inner = side - 2 * bar
    weights = torch.zeros(side, side, dtype=torch.float64)
    weights[bar : side - bar] = _of(
        lambda rows: interpolate(rows, size=(inner, side), mode="bilinear", antialias=True), side
    )
    return weights


def shift_weights(side: int, by: float) -> Tensor:
    """Moving content by ``by`` pixels to higher places (or lower ones, if negative), the border repeated."""
    whole = math.floor(by)
    share = by - whole
    places = torch.arange(side)
    weights = torch.zeros(side, side, dtype=torch.float64)
    weights[places, (places - whole).clamp(0, side - 1)] += 1 - share
    weights[places, (places - whole - 1).clamp(0, side - 1)] += share
    return weights


def grey_bars(height: int, bar: int) -> Tensor:
    """The grey that a letterbox adds to each row, ``(height, 1)``."""
    grey = torch.zeros(height, 1, dtype=torch.float64)
    grey[:bar] = grey[height - bar :] = _GREY
    return grey


def across(pictures: Tensor, columns: Tensor) -> Tensor:
    """Apply the weights of the columns, ``(W, W)``, to pictures ``(N, C, H, W)``."""
    blocks = [pictures[..., used] @ weights.T.to(pictures) for weights, used in _blocks(columns)]
    return torch.cat(blocks, -1)


def down(pictures: Tensor, rows: Tensor) -> Tensor:
    """Apply the weights of the rows, ``(H, H)``, to pictures ``(N, C, H, W)``."""
    return torch.cat([weights.to(pictures) @ pictures[..., used, :] for weights, used in _blocks(rows)], -2)


def _blocks(weights: Tensor) -> Iterator[tuple[Tensor, slice]]:
    """The weights of a few outputs at a time, and the inputs that they use: a third of the work of the whole matrix."""
    for block in torch.split(weights, _BLOCK):
        used = (block != 0).any(0).nonzero()[:, 0].tolist() or [0]
        part = slice(used[0], used[-1] + 1)
        yield block[:, part], part
