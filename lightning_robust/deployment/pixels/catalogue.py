"""The catalogue of differences between training's and the deployed side's preprocessing, before normalisation.

Each entry is a pair of functions on pictures ``(N, C, H, W)`` in [0, 1]: training's side and the deployed side. Both
take multiples of 1/255 in fp32 or fp64 and return the same shape and type. They are deterministic, and a picture's
result does not depend on its batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_robust.deployment.pixels import motions
from lightning_robust.deployment.pixels.geometry import crop, letterbox, resize, shift, truncated_resize
from lightning_robust.deployment.pixels.names import Names, check_perturbation_names
from lightning_robust.deployment.pixels.operations import (
    brighten,
    divided_by_256,
    fewer_levels,
    gamma,
    jpeg,
    noise,
    nv12,
    offset,
    other_normalisation,
    swap_channels,
    unchanged,
    unexpanded_range,
    wrong_matrix,
    wrong_range,
)
from lightning_robust.extensions import load_extensions

Pixels = Callable[[Tensor], Tensor]
Severity = Literal["mild", "typical", "severe"]


@dataclass(frozen=True)
class Perturbation:
    """One difference between training's and the deployed side's preprocessing.

    Args:
        name: As in the tags ``sensitivity/<name>/...``.
        family: One of :data:`~.names.FAMILIES`.
        severity: A parity pass measures the ``"typical"`` ones by default.
        description: What the deployed side does differently, as a predicate.
        deployed: The deployed side's pixels of ``(N, C, H, W)`` in [0, 1].
        trained: Training's. Entries with the same training side share the function object, so that its outputs can be
            cached by it.
        colour: Whether it needs three channels.
        in_levels: Whether the deployed pixels lie on the 256 levels of [0, 1]. Where they do not, the difference comes
            after the conversion to floating point.
        motion: Where the deployed side puts the content, if that is elsewhere: the matrix for a height and a width.
    """

    name: str
    family: str
    severity: Severity
    description: str
    deployed: Pixels
    trained: Pixels = unchanged
    colour: bool = False
    in_levels: bool = True
    motion: Callable[[int, int], Tensor] | None = None

    def matrix(self, height: int, width: int) -> Tensor:
        """The motion of the content in pictures of a size, ``(3, 3)`` in fp64, as ``picture_motion`` takes it.

        It takes a place ``(x, y, 1)`` of training's picture, 0 in the centre of the first pixel, to where the deployed
        picture has its content. The identity where nothing moves.
        """
        return torch.eye(3, dtype=torch.float64) if self.motion is None else self.motion(height, width)

    def applies_to(self, channels: int) -> bool:
        """Whether pictures with this number of channels can be perturbed."""
        return channels == 3 or (channels == 1 and not self.colour)


def perturbations(names: Names = "typical") -> tuple[Perturbation, ...]:
    """Entries of the catalogue, in its order, then those of installed packages.

    Args:
        names: ``"typical"`` (one or a few of each kind), ``"all"``, ``"none"``, or names of entries and of families.
            Where an entry has its family's name, the name means the entry.

    Raises:
        ValueError: For an unknown name; the message names the nearest.

    Example:
        >>> [entry.name for entry in perturbations(["bgr", "gamma"])]
        ['bgr', 'gamma_11', 'gamma_09', 'gamma_07']
    """
    if names == "none":
        return ()
    if names == "all":
        return tuple(_with_packages().values())
    if names == "typical":
        return tuple(entry for entry in _with_packages().values() if entry.severity == "typical")
    return _select([names] if isinstance(names, str) else names)


def _select(names: list[str]) -> tuple[Perturbation, ...]:
    check_perturbation_names(names)
    known = _with_packages()
    families = {name for name in names if name not in known}
    return tuple(entry for name, entry in known.items() if name in names or entry.family in families)


def _with_packages() -> dict[str, Perturbation]:
    """The catalogue, and the entry points ``lightning_robust.perturbations``, which replace none of its entries."""
    found = load_extensions("perturbations", _is_perturbation, "a Perturbation")
    return CATALOGUE | {name: replace(entry, name=name) for name, entry in found.items() if name not in CATALOGUE}


def _is_perturbation(value: Any) -> bool:
    return isinstance(value, Perturbation)


_TRAINED_RESIZE = partial(resize, filter="antialias")


def _resize_entry(filter: str, severity: Severity, description: str) -> Perturbation:  # noqa: A002 - the field's word
    deployed, motion = partial(resize, filter=filter), motions.RESIZES.get(filter)
    name = f"resize_{filter}"
    return Perturbation(name, "resize_filter", severity, description, deployed, _TRAINED_RESIZE, motion=motion)


def _shift_entry(name: str, by: float, severity: Severity, description: str) -> Perturbation:
    motion = partial(motions.shifted, by=by)
    return Perturbation(name, "shift", severity, description, partial(shift, by=by), motion=motion)


def _jpeg_entry(quality: int, severity: Severity) -> Perturbation:
    description = f"takes frames through JPEG of quality {quality}"
    return Perturbation(f"jpeg_{quality}", "compression", severity, description, partial(jpeg, quality=quality))


_ENTRIES = (
    _resize_entry(
        "bilinear", "typical", "resizes bilinearly without antialiasing (OpenCV's INTER_LINEAR) instead of with"
    ),
    _resize_entry("nearest", "typical", "resizes to the nearest pixel instead of bilinearly with antialiasing"),
    _resize_entry("area", "typical", "resizes by area (OpenCV's INTER_AREA) instead of bilinearly with antialiasing"),
    _resize_entry("bicubic", "typical", "resizes bicubically without antialiasing instead of bilinearly with"),
    _resize_entry("pil_bicubic", "mild", "resizes bicubically with antialiasing (PIL's BICUBIC) instead of bilinearly"),
    _resize_entry("lanczos", "mild", "resizes with PIL's LANCZOS instead of bilinearly with antialiasing"),
    _resize_entry(
        "align_corners", "typical", "resizes between corner pixels (align_corners) instead of half-pixel centres"
    ),
    _resize_entry("asymmetric", "severe", "resizes bilinearly from pixel corners instead of half-pixel centres"),
    _shift_entry("shift_quarter_pixel", 0.25, "mild", "crops a quarter of a pixel further left and up"),
    _shift_entry("shift_half_pixel", 0.5, "typical", "crops half a pixel further left and up"),
    _shift_entry("shift_one_pixel", 1.0, "severe", "crops a pixel further left and up"),
    Perturbation(
        "crop",
        "crop",
        "typical",
        "cuts off 2 % at each side and stretches",
        partial(crop, share=0.02),
        motion=partial(motions.cropped, share=0.02),
    ),
    Perturbation(
        "letterbox",
        "crop",
        "severe",
        "adds grey bars above and below",
        partial(letterbox, share=0.05),
        motion=partial(motions.letterboxed, share=0.05),
    ),
    Perturbation(
        "color_matrix", "color_matrix", "typical", "reads YCbCr of BT.601 as BT.709", wrong_matrix, colour=True
    ),
    Perturbation(
        "color_matrix_709",
        "color_matrix",
        "severe",
        "reads YCbCr of BT.709 as BT.601",
        partial(wrong_matrix, reverse=True),
        colour=True,
    ),
    Perturbation("color_range", "color_range", "typical", "reads full-range YCbCr as limited range", wrong_range),
    Perturbation(
        "color_range_limited", "color_range", "mild", "reads limited-range YCbCr as full range", unexpanded_range
    ),
    Perturbation("nv12", "compression", "typical", "takes frames through NV12 (4:2:0)", nv12, colour=True),
    _jpeg_entry(95, "mild"),
    _jpeg_entry(90, "typical"),
    _jpeg_entry(75, "severe"),
    Perturbation(
        "truncation", "rounding", "typical", "cuts off to 8 bits instead of rounding", truncated_resize, _TRAINED_RESIZE
    ),
    Perturbation("levels_6_bit", "rounding", "severe", "cuts off to 6 bits", partial(fewer_levels, bits=6)),
    Perturbation("bgr", "channel_order", "typical", "feeds BGR instead of RGB", swap_channels, colour=True),
    Perturbation("gain_105", "gain_offset", "mild", "is 5 % brighter", partial(brighten, gain=1.05)),
    Perturbation("brightness", "gain_offset", "typical", "is 10 % brighter", partial(brighten, gain=1.1)),
    Perturbation("gain_080", "gain_offset", "severe", "is 20 % darker", partial(brighten, gain=0.8)),
    Perturbation("offset_8", "gain_offset", "mild", "adds eight levels", partial(offset, levels=8)),
    Perturbation("scale_256", "gain_offset", "mild", "divides by 256 instead of 255", divided_by_256, in_levels=False),
    Perturbation(
        "mean_std",
        "gain_offset",
        "severe",
        "normalises with mean and deviation 0.5 instead of ImageNet's",
        other_normalisation,
        in_levels=False,
    ),
    Perturbation("gamma_11", "gamma", "mild", "is darkened by a gamma of 1.1", partial(gamma, exponent=1.1)),
    Perturbation("gamma_09", "gamma", "typical", "is brightened by a gamma of 0.9", partial(gamma, exponent=0.9)),
    Perturbation("gamma_07", "gamma", "severe", "is brightened by a gamma of 0.7", partial(gamma, exponent=0.7)),
    Perturbation("noise_2", "noise", "typical", "has noise of 2 levels", partial(noise, deviation=2.0)),
    Perturbation("noise_6", "noise", "severe", "has noise of 6 levels", partial(noise, deviation=6.0)),
)
CATALOGUE: dict[str, Perturbation] = {entry.name: entry for entry in _ENTRIES}
"""All perturbations by name."""
