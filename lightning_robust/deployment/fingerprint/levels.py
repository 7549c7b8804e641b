"""The units of dumped pictures (bytes, [0, 1], [0, 255], or normalised), and their conversion to levels of 8 bits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from lightning_robust.functional.pixels import PixelSpace

_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_WHOLE = 0.02  # of a level
_UP = 0.4  # levels that the deployed side may be brighter by; values cut off are half a level darker
_LEAST_STEP, _OFF_STEP, _FEWEST = 0.1, 0.08, 16  # levels between values, share of a step off the grid, and values
FLAT = 1.0
"""Levels of standard deviation below which pictures are constant."""
_OTHER_UNITS = 8.0  # times the spread
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

    def from_levels(self, levels: Tensor) -> Tensor:
        """Values in fp64 of levels ``(N, C, H, W)``."""
        black, step = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (self.black, self.step))
        return levels.double() * step + black


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


def units_of_both(
    trained: Tensor,
    deployed: Tensor,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
) -> tuple[Units, Units]:
    """The units of both sides; the deployed side's are training's, unless its type or its spread is another.

    Args:
        trained: Training's pictures ``(N, C, H, W)``.
        deployed: The deployed side's.
        mean: The mean that training's were normalised with, if known.
        std: The standard deviation, if known.
    """
    here = find_units(trained, mean, std)
    if trained.is_floating_point() != deployed.is_floating_point():
        there = find_units(deployed)
        return _with_black_of(here, there.to_levels(deployed)) if here.guessed else here, there
    before, after = spread(here.to_levels(trained)), spread(here.to_levels(deployed))
    alike = 1 / _OTHER_UNITS < after / max(before, 1e-9) < _OTHER_UNITS or before < FLAT
    return here, here if alike else find_units(deployed)


def _with_black_of(here: Units, levels: Tensor) -> Units:
    """Guessed units under which the darkest value is that of other levels, in each channel."""
    darkest = levels.amin((0, 2, 3)).tolist()
    black = tuple(b - step * dark for b, step, dark in zip(here.black, here.step, darkest, strict=True))
    return replace(here, black=black)


def spread(levels: Tensor) -> float:
    """Mean standard deviation of a picture's channels."""
    return float(levels.flatten(2).std(2).mean())


def _uniform_units(step: float, channels: int, description: str) -> Units:
    return Units((0.0,) * channels, (step,) * channels, description)


def _known_units(space: PixelSpace, channels: int) -> Units:
    ends = space.from_pixels(torch.tensor([0.0, 1 / 255]).double()[:, None, None, None].expand(2, channels, 1, 1))
    black, first = (end.flatten().tolist() for end in ends)
    steps = tuple(f - b for b, f in zip(black, first, strict=True))
    return Units(tuple(black), steps, "normalised with the given mean and std")


def _guess_normalisation(images: Tensor) -> Units:
    darkest, steps = zip(*(_find_steps(channel.flatten()) for channel in images.unbind(1)), strict=True)
    half = (0.5,) * len(steps)
    for name, (mean, std) in {"ImageNet's": _IMAGENET, "0.5 as": (half, half)}.items():
        if len(steps) == len(std) and all(abs(step * 255 * s - 1) < 5e-3 for step, s in zip(steps, std, strict=True)):
            black = tuple(-m / s for m, s in zip(mean, std, strict=True))
            return Units(black, tuple(1 / (255 * s) for s in std), f"normalised with {name} mean and std")
    return Units(darkest, steps, "normalised with an unknown mean and std", guessed=True)


def _find_steps(values: Tensor) -> tuple[float, float]:
    """The darkest value and the step between levels; where no levels show, the step is a 255th of the range."""
    occurring = torch.from_numpy(np.unique(values.numpy()))
    low, span = float(occurring[0]), float(occurring[-1] - occurring[0])
    return low, _grid_step(occurring, span / 255 / 3, _OFF_GRID) or span / 255 or 1.0


def _grid_step(occurring: Tensor, noise: float, tolerance: float) -> float | None:
    """The step of a grid on which sorted values lie, but for a share of the step; gaps up to ``noise`` are none."""
    span = float(occurring[-1] - occurring[0])
    gaps = occurring.diff()
    gaps = gaps[gaps > noise]
    if span == 0 or gaps.numel() == 0:
        return None
    least = float(gaps[gaps < 1.3 * gaps.min()].mean())
    counts = (occurring.diff() / least).round().cumsum(0)
    step = float((counts * (occurring[1:] - occurring[0])).sum() / counts.square().sum())
    levels = (occurring - occurring[0]) / step
    on_grid = float((levels[1:] - counts).abs().max()) < tolerance and span / step < 255.5
    return step if on_grid else None


def find_gains(trained: Tensor, deployed: Tensor) -> tuple[Tensor, Tensor] | None:
    """Gain and offset of each channel that were applied after the deployed side's rounding, ``(C, 1, 1)`` each.

    Values that lie on a grid whose step is not 1 level were whole levels before. The offset is known but for whole
    steps, of which it has those that bring the means of both sides together, or none where all grids go through 0.

    Args:
        trained: Levels, ``(N, C, H, W)``.
        deployed: Levels in training's units.
    """
    if float((deployed - deployed.round()).abs().max()) < _WHOLE:
        return None
    grids = [_read_grid(channel) for channel in deployed.unbind(1)]
    known = [grid for grid in grids if grid is not None]
    if len(known) < len(grids):
        return None
    whole = [0] * len(known)
    if max(abs(phase) for _, phase in known) >= _WHOLE:
        means = zip(trained.mean((0, 2, 3)).tolist(), deployed.mean((0, 2, 3)).tolist(), strict=True)
        pairs = zip(known, means, strict=True)
        whole = [math.floor(before - (after - phase) / step + _UP) for (step, phase), (before, after) in pairs]
    found = [(step, phase - count * step) for (step, phase), count in zip(known, whole, strict=True)]
    gains, offsets = torch.tensor(found, dtype=torch.float64).unbind(1)
    return gains[:, None, None], offsets[:, None, None]


def _read_grid(channel: Tensor) -> tuple[float, float] | None:
    """The step of the grid on which values lie, and where it passes 0."""
    occurring = torch.from_numpy(np.unique(channel.numpy().round(2)))
    step = _grid_step(occurring, _LEAST_STEP, _OFF_STEP) if _FEWEST < len(occurring) <= 256 else None
    if step is None:
        return None
    step /= max(round(step), 1)
    low = float(occurring[0])
    return step, low - step * round(low / step)
