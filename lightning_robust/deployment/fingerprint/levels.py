"""The units of dumped pictures (bytes, [0, 1], [0, 255], or normalised), and their conversion to levels of 8 bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lightning_robust.functional.pixels import PixelSpace

_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_OFF_GRID = 0.2  # of a level; half precision moves normalised pixels by less


@dataclass(frozen=True)
class Units:
    """Black and the step of one level of each channel, so that ``levels = (values - black) / step``.

    Args:
        black: The value of level 0, one a channel.
        step: The distance between the values of two levels, one a channel.
        description: In words.
        guessed: Whether black is a guess, the darkest value of the pictures.
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
        mean: The mean that floating pictures in [0, 1] were normalised with, if known.
        std: The standard deviation, if known.

    Example:
        >>> find_units(torch.zeros(1, 1, 2, 2)).description
        '[0, 1]'
    """
    channels = images.shape[1]
    if not images.is_floating_point():
        return _uniform_units(1.0, channels, "levels from 0 to 255")
    if mean is not None or std is not None:
        return _known_units(PixelSpace(0.0 if mean is None else mean, 1.0 if std is None else std), channels)
    low, high = map(float, images.double().aminmax())
    if low >= -1e-3 and high <= 1 + 1e-3:
        return _uniform_units(1 / 255, channels, "[0, 1]")
    if low >= -0.5 and 8 < high <= 255.5:
        return _uniform_units(1.0, channels, "levels from 0 to 255")
    return _guess_normalisation(images.double())


def _uniform_units(step: float, channels: int, description: str) -> Units:
    return Units((0.0,) * channels, (step,) * channels, description)


def _known_units(space: PixelSpace, channels: int) -> Units:
    ends = space.from_pixels(torch.tensor([0.0, 1 / 255]).double()[:, None, None, None].expand(2, channels, 1, 1))
    black, first = (end.flatten().tolist() for end in ends)
    steps = tuple(f - b for b, f in zip(black, first, strict=True))
    return Units(tuple(black), steps, "normalised with the given mean and std")


def _guess_normalisation(images: Tensor) -> Units:
    darkest, steps = zip(*(_find_steps(channel.flatten()) for channel in images.unbind(1)), strict=True)
    for name, (mean, std) in {"ImageNet's": _IMAGENET, "0.5 as": ((0.5,) * 3, (0.5,) * 3)}.items():
        if len(steps) == 3 and all(abs(step * 255 * s - 1) < 5e-3 for step, s in zip(steps, std, strict=True)):
            black = tuple(-m / s for m, s in zip(mean, std, strict=True))
            return Units(black, tuple(1 / (255 * s) for s in std), f"normalised with {name} mean and std")
    return Units(darkest, steps, "normalised with an unknown mean and std", guessed=True)


def _find_steps(values: Tensor) -> tuple[float, float]:
    """The darkest value and the step between levels; where no levels show, the step is a 255th of the range."""
    occurring = torch.from_numpy(np.unique(values.numpy()))
    low, span = float(occurring[0]), float(occurring[-1] - occurring[0])
    gaps = occurring.diff()
    gaps = gaps[gaps > span / 255 / 3]
    if span == 0 or gaps.numel() == 0:
        return low, 1.0
    step = span / round(span / float(gaps.min()))
    levels = (occurring - low) / step
    on_grid = float((levels - levels.round()).abs().max()) < _OFF_GRID and span / step < 255.5
    return low, step if on_grid else span / 255
