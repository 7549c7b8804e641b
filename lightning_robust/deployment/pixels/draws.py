"""Draws of the catalogue's differences for training: batched, on the pictures' device, with continuous parameters.

The catalogue holds points (a shift of half a pixel, JPEG of quality 90); here each entry stands for its neighbourhood
too. At the catalogue's points a draw is the catalogue's entry, to a level but for what ``batched.py`` and
``axis_weights.py`` say. A draw costs a few passes over the pictures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from lightning_robust.checks import check_known
from lightning_robust.deployment.pixels import axis_weights, batched, motions
from lightning_robust.deployment.pixels.catalogue import CATALOGUE, Perturbation, Pixels
from lightning_robust.deployment.pixels.geometry import crop_margin
from lightning_robust.deployment.pixels.operations import from_levels

Size = tuple[int, int, int]
"""How many pictures, their height and their width."""


@dataclass(frozen=True)
class Parameter:
    """What is drawn of an entry.

    Args:
        low: Smallest value by default.
        high: Largest value by default.
        least: No value is below.
        most: No value is above.
        meaning: What the number is.
    """

    low: float
    high: float
    least: float
    most: float
    meaning: str


PARAMETERS: dict[str, Parameter] = {
    "shift": Parameter(0.0, 1.0, 0.0, 16.0, "pixels of the network's input, along each axis to either side"),
    "crop": Parameter(0.005, 0.04, 0.0, 0.4, "share of each side that is cut off, at least one pixel"),
    "letterbox": Parameter(0.01, 0.1, 0.0, 0.4, "height of a grey bar as a share, at least one pixel"),
    "gain": Parameter(0.8, 1.2, 0.01, 100.0, "factor of the pixels"),
    "offset": Parameter(-8.0, 8.0, -255.0, 255.0, "levels that are added"),
    "gamma": Parameter(0.7, 1.4, 0.01, 100.0, "exponent of the pixels"),
    "quality": Parameter(60.0, 98.0, 1.0, 100.0, "JPEG's quality"),
    "bits": Parameter(5.0, 7.0, 1.0, 8.0, "bits that are kept"),
    "noise": Parameter(0.0, 6.0, 0.0, 255.0, "standard deviation in levels"),
}
"""Parameters that are drawn, by name."""
PARAMETER_OF: dict[str, str] = {
    **dict.fromkeys(("shift_quarter_pixel", "shift_half_pixel", "shift_one_pixel"), "shift"),
    "crop": "crop",
    "letterbox": "letterbox",
    "offset_8": "offset",
    "levels_6_bit": "bits",
    **dict.fromkeys(("gain_105", "brightness", "gain_080"), "gain"),
    **dict.fromkeys(("gamma_11", "gamma_09", "gamma_07"), "gamma"),
    **dict.fromkeys(("jpeg_95", "jpeg_90", "jpeg_75"), "quality"),
    **dict.fromkeys(("noise_2", "noise_6"), "noise"),
}
"""Entry -> its parameter; the others have none and are drawn as they are."""
Ranges = Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class DrawnEntry:
    """One entry with the parameters that were drawn for a group of pictures.

    Args:
        entry: Of the catalogue.
        pixels: What it does to pictures ``(N, C, H, W)`` in [0, 1], or to the frames of as many clips, one clip after
            the other.
        motion: Where it puts their content, ``(3, 3)`` in fp64 as ``picture_motion`` takes it; None if nothing moves.
    """

    entry: Perturbation
    pixels: Pixels
    motion: Tensor | None = None


def draw(
    entry: Perturbation, size: Size, ranges: Ranges | None = None, generator: torch.Generator | None = None
) -> DrawnEntry:
    """Draw the parameters of an entry for a group of pictures.

    Values have a parameter for each picture or clip, geometry one for the group.

    Args:
        entry: Of the catalogue.
        size: How many pictures or clips, their height and their width.
        ranges: Parameter -> smallest and largest value; what is not given has those of :data:`PARAMETERS`.
        generator: On the CPU; the noise has its own, seeded by it.

    Example:
        >>> from lightning_robust.deployment.pixels.catalogue import CATALOGUE
        >>> drawn = draw(CATALOGUE["brightness"], (2, 1, 1), {"gain": [0.5, 0.5]})
        >>> drawn.pixels(torch.full((2, 1, 1, 1), 0.8)).flatten().tolist()
        [0.4000000059604645, 0.4000000059604645]
    """
    name = PARAMETER_OF.get(entry.name) if _is_ours(entry) else None
    if name is None:
        return at(entry, torch.zeros(0), size)
    low, high = (ranges or {}).get(name, (PARAMETERS[name].low, PARAMETERS[name].high))
    count = {"shift": 2, "crop": 1, "letterbox": 1}.get(name, size[0])
    values = low + (high - low) * torch.rand(count, generator=generator, dtype=torch.float64)
    if name == "shift":
        values *= 1 - 2 * torch.randint(2, (2,), generator=generator)
    seed = int(torch.randint(2**62, (), generator=generator)) if name == "noise" else 0
    return at(entry, values, size, seed)


def at(entry: Perturbation, values: Tensor, size: Size, seed: int = 0) -> DrawnEntry:
    """An entry with given parameters.

    Args:
        entry: Of the catalogue.
        values: A value for each picture or clip; of a shift the way to the right and down; of a crop or a letterbox
            one; of an entry without parameter none.
        size: How many pictures, their height and their width.
        seed: Of the noise.

    Example:
        >>> from lightning_robust.deployment.pixels.catalogue import CATALOGUE
        >>> drawn = at(CATALOGUE["shift_half_pixel"], torch.tensor([1.0, 0.0]), (1, 1, 2))
        >>> drawn.pixels(torch.tensor([[[[0.0, 1.0]]]])).tolist(), drawn.motion[0].tolist()
        ([[[[0.0, 0.0]]]], [1.0, 0.0, 1.0])
    """
    if not _is_ours(entry):
        return DrawnEntry(entry, entry.deployed, None if entry.motion is None else entry.matrix(*size[1:]))
    name = PARAMETER_OF.get(entry.name, entry.name)
    if name in _VALUES:
        return DrawnEntry(entry, partial(_with_values, change=_VALUES[name], values=values))
    if name == "noise":
        return DrawnEntry(entry, partial(_with_noise, deviations=values, seed=seed))
    places = {"shift": _shift, "crop": _crop, "letterbox": _letterbox, "truncation": _truncation}.get(name)
    if places is not None:
        return places(entry, values, *size[1:])
    return _resize(entry, *size[1:]) if entry.family == "resize_filter" else DrawnEntry(entry, entry.deployed)


def _is_ours(entry: Perturbation) -> bool:
    """Whether an entry is of the catalogue, and not of a package that adds one, which is taken as it is."""
    return entry.name in CATALOGUE


_VALUES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gain": batched.scale_pixels,
    "offset": batched.add_levels,
    "gamma": batched.raise_pixels,
    "quality": batched.approximate_jpeg,
    "bits": batched.cut_bits,
}


def _with_values(pixels: Tensor, change: Callable[[Tensor, Tensor], Tensor], values: Tensor) -> Tensor:
    return change(pixels, _of_frames(values, pixels))


def _with_noise(pixels: Tensor, deviations: Tensor, seed: int) -> Tensor:
    generator = torch.Generator(pixels.device).manual_seed(seed)
    return batched.add_noise(pixels, _of_frames(deviations, pixels), generator)


def _of_frames(values: Tensor, pixels: Tensor) -> Tensor:
    """A value for each picture, the same one for all frames of a clip."""
    return values.to(pixels.device).repeat_interleave(len(pixels) // len(values))


def _shift(entry: Perturbation, values: Tensor, height: int, width: int) -> DrawnEntry:
    right, down = values.tolist()
    motion = torch.tensor([[1, 0, right], [0, 1, down], [0, 0, 1]], dtype=torch.float64)
    rows, columns = axis_weights.shift_weights(height, down), axis_weights.shift_weights(width, right)
    return DrawnEntry(entry, partial(resample, rows=rows, columns=columns), motion)


def _crop(entry: Perturbation, values: Tensor, height: int, width: int) -> DrawnEntry:
    share = float(values)
    rows, columns = (axis_weights.crop_weights(side, crop_margin(side, share)) for side in (height, width))
    return DrawnEntry(entry, partial(resample, rows=rows, columns=columns), motions.cropped(height, width, share))


def _letterbox(entry: Perturbation, values: Tensor, height: int, width: int) -> DrawnEntry:
    share = float(values)
    rows = axis_weights.letterbox_weights(height, crop_margin(height, share))
    change = partial(resample, rows=rows, bars=axis_weights.grey_bars(height, crop_margin(height, share)))
    return DrawnEntry(entry, change, motions.letterboxed(height, width, share))


def _resize(entry: Perturbation, height: int, width: int) -> DrawnEntry:
    rows, columns = (axis_weights.resize_weights(side, entry.name.removeprefix("resize_")) for side in (height, width))
    motion = None if entry.motion is None else entry.motion(height, width)
    return DrawnEntry(entry, partial(resample, rows=rows, columns=columns), motion)


def _truncation(entry: Perturbation, values: Tensor, height: int, width: int) -> DrawnEntry:
    rows, columns = (axis_weights.resize_weights(side, "antialias") for side in (height, width))
    return DrawnEntry(entry, partial(resample, rows=rows, columns=columns, cut=True))


def resample(
    pixels: Tensor, rows: Tensor, columns: Tensor | None = None, bars: Tensor | None = None, cut: bool = False
) -> Tensor:
    """Apply the weights of both axes, in 8 bits.

    Args:
        pixels: ``(N, C, H, W)`` in [0, 1].
        rows: ``(H, H)``.
        columns: ``(W, W)``; None leaves them.
        bars: What is added to each row, ``(H, 1)``.
        cut: Whether the result is cut off to 8 bits instead of rounded.
    """
    wide = pixels if columns is None else axis_weights.across(pixels, columns)
    levels = axis_weights.down(wide, 255 * rows)
    if bars is not None:
        levels += (255 * bars).to(pixels)
    return from_levels(levels.add_(1e-3).floor_() if cut else levels)


def check_ranges(ranges: Ranges) -> None:
    """Refuse parameters that are not drawn, and ranges outside of sense.

    Raises:
        ValueError: Naming the parameter, with the nearest name for an unknown one.

    Example:
        >>> check_ranges({"gain": [1.2, 0.8]})
        Traceback (most recent call last):
            ...
        ValueError: Expected a range of 'gain' (factor of the pixels) from low to high within [0.01, 100], but got \
[1.2, 0.8].
    """
    check_known("parameters", ranges, PARAMETERS)
    for name, ends in ranges.items():
        known = PARAMETERS[name]
        sound = len(ends) == 2 and all(map(math.isfinite, ends)) and known.least <= ends[0] <= ends[1] <= known.most
        if not sound:
            raise ValueError(
                f"Expected a range of {name!r} ({known.meaning}) from low to high within [{known.least:g}, "
                f"{known.most:g}], but got {list(ends)}."
            )
