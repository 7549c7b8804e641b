"""Pictures in whatever units a dump has, brought to levels of 8 bits: bytes, [0, 1], [0, 255], or normalised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lightning_robust.functional.pixels import PixelSpace

_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_OFF_GRID = 0.2  # of a level: what half precision does to normalised pixels is less


@dataclass(frozen=True)
class Units:
    """Black and the step of one level of each channel, so that ``levels = (values - black) / step``.

    Args:
        black: The value of level 0, one a channel.
        step: How far the values of two levels are apart, likewise.
        description: In words.
        guessed: Whether black is only the darkest value that was seen.
    """

    black: tuple[float, ...]
    step: tuple[float, ...]
    description: str
    guessed: bool = False

    def to_levels(self, images: Tensor) -> Tensor:
        """Levels in fp64 of pictures ``(N, C, H, W)``."""
        black, step = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (self.black, self.step))
        return (images.double() - black) / step


def find_units(
    images: Tensor, mean: float | Sequence[float] | None = None, std: float | Sequence[float] | None = None
) -> Units:
    """The units of pictures ``(N, C, H, W)``.

    Args:
        images: Bytes or floating.
        mean: What floating pictures in [0, 1] were normalised with, if known.
        std: Likewise.

    Example:
        >>> find_units(torch.zeros(1, 1, 2, 2)).description
        '[0, 1]'
    """
    channels = images.shape[1]
    if not images.is_floating_point():
        return Units((0.0,) * channels, (1.0,) * channels, "levels from 0 to 255")
    if mean is not None or std is not None:
        space = PixelSpace(0.0 if mean is None else mean, 1.0 if std is None else std)
        ends = space.from_pixels(torch.tensor([0.0, 1 / 255]).double()[:, None, None, None].expand(2, channels, 1, 1))
        black, first = (end.flatten().tolist() for end in ends)
        steps = tuple(f - b for b, f in zip(black, first, strict=True))
        return Units(tuple(black), steps, "normalised with the given mean and std")
    low, high = (float(bound) for bound in images.double().aminmax())
    if low >= -1e-3 and high <= 1 + 1e-3:
        return Units((0.0,) * channels, (1 / 255,) * channels, "[0, 1]")
    if low >= -0.5 and 8 < high <= 255.5:
        return Units((0.0,) * channels, (1.0,) * channels, "levels from 0 to 255")
    return _normalised(images.double())


def _normalised(images: Tensor) -> Units:
    grids = [_grid(channel.flatten()) for channel in images.unbind(1)]
    steps = [grid[1] for grid in grids]
    for name, (mean, std) in {"ImageNet's": _IMAGENET, "0.5 as": ((0.5,) * 3, (0.5,) * 3)}.items():
        if len(grids) == 3 and all(abs(step * 255 * s - 1) < 5e-3 for step, s in zip(steps, std, strict=True)):
            black = tuple(-m / s for m, s in zip(mean, std, strict=True))
            return Units(black, tuple(1 / (255 * s) for s in std), f"normalised with {name} mean and std")
    return Units(
        tuple(grid[0] for grid in grids), tuple(steps), "normalised with an unknown mean and std", guessed=True
    )


def _grid(values: Tensor) -> tuple[float, float]:
    """The darkest value and the step between levels; where there are no levels, a 255th of the range."""
    distinct = torch.from_numpy(np.unique(values.numpy()))
    low, span = float(distinct[0]), float(distinct[-1] - distinct[0])
    gaps = distinct.diff()
    gaps = gaps[gaps > span / 255 / 3]
    if span == 0 or gaps.numel() == 0:
        return low, 1.0
    step = span / round(span / float(gaps.min()))
    places = (distinct - low) / step
    on_grid = float((places - places.round()).abs().max()) < _OFF_GRID and span / step < 255.5
    return low, step if on_grid else span / 255
