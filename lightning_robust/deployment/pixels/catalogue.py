"""The catalogue of differences between training's and the deployed side's preprocessing, before normalisation.

Each entry is a pair of functions on pictures ``(N, C, H, W)`` in [0, 1]: training's side and the deployed side. Both
take multiples of 1/255 in fp32 or fp64 and return the same shape and type. They are deterministic, and a picture's
result does not depend on its batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import Tensor

from lightning_robust.deployment.pixels import geometry, operations
from lightning_robust.suggest import did_you_mean

Pixels = Callable[[Tensor], Tensor]
Severity = Literal["mild", "typical", "severe"]
Names = Literal["typical", "all", "none"] | list[str]
FAMILIES = (
    *("resize_filter", "shift", "crop", "color_matrix", "color_range", "compression", "rounding"),
    *("channel_order", "gain_offset", "gamma", "noise"),
)
"""The kinds of difference, which are also the causes that a fingerprint names."""


@dataclass(frozen=True)
class Perturbation:
    """One difference between training's and the deployed side's preprocessing.

    Args:
        name: As in the tags ``sensitivity/<name>/...``.
        family: One of :data:`FAMILIES`.
        severity: A parity pass measures the ``"typical"`` ones by default.
        description: What the deployed side does differently, as a predicate.
        deployed: The deployed side's pixels of ``(N, C, H, W)`` in [0, 1].
        trained: Training's. Entries with the same training side share the function object, so that its outputs can be
            cached by it.
        colour: Whether it needs three channels.
        in_levels: Whether the deployed pixels lie on the 256 levels of [0, 1]. Where they do not, the difference comes
            after the conversion to floating point.
    """

    name: str
    family: str
    severity: Severity
    description: str
    deployed: Pixels
    trained: Pixels = operations.unchanged
    colour: bool = False
    in_levels: bool = True

    def applies_to(self, channels: int) -> bool:
        """Whether pictures with this number of channels can be perturbed."""
        return channels == 3 or (channels == 1 and not self.colour)


def perturbations(names: Names = "typical") -> tuple[Perturbation, ...]:
    """Entries of the catalogue, in its order.

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
        return tuple(CATALOGUE.values())
    if names == "typical":
        return tuple(entry for entry in CATALOGUE.values() if entry.severity == "typical")
    return _select([names] if isinstance(names, str) else names)


def _select(names: list[str]) -> tuple[Perturbation, ...]:
    known = [*CATALOGUE, *FAMILIES]
    for name in names:
        if name not in known:
            raise ValueError(
                f"Expected perturbations 'typical', 'all', 'none' or names out of {known}, but got {name!r}."
                f"{did_you_mean(name, known)}"
            )
    families = {name for name in names if name not in CATALOGUE}
    return tuple(entry for name, entry in CATALOGUE.items() if name in names or entry.family in families)


_TRAINED_RESIZE = partial(geometry.resize, filter="antialias")


def _resize(filter: str, severity: Severity, description: str) -> Perturbation:  # noqa: A002 - the field's word
    deployed = partial(geometry.resize, filter=filter)
    return Perturbation(f"resize_{filter}", "resize_filter", severity, description, deployed, _TRAINED_RESIZE)


def _shift(name: str, pixels: float, severity: Severity, description: str) -> Perturbation:
    return Perturbation(name, "shift", severity, description, partial(geometry.shift, by=pixels))


def _jpeg(quality: int, severity: Severity) -> Perturbation:
    description = f"takes frames through JPEG of quality {quality}"
    deployed = partial(operations.jpeg, quality=quality)
    return Perturbation(f"jpeg_{quality}", "compression", severity, description, deployed)


def _gain(name: str, gain: float, severity: Severity, description: str) -> Perturbation:
    return Perturbation(name, "gain_offset", severity, description, partial(operations.brighten, gain=gain))


def _gamma(name: str, exponent: float, severity: Severity, effect: str) -> Perturbation:
    description = f"is {effect} by a gamma of {exponent}"
    return Perturbation(name, "gamma", severity, description, partial(operations.gamma, exponent=exponent))


def _noise(levels: int, severity: Severity) -> Perturbation:
    deployed = partial(operations.noise, deviation=float(levels))
    return Perturbation(f"noise_{levels}", "noise", severity, f"has noise of {levels} levels", deployed)


def _matrix(name: str, severity: Severity, description: str, reverse: bool) -> Perturbation:
    deployed = partial(operations.wrong_matrix, reverse=reverse)
    return Perturbation(name, "color_matrix", severity, description, deployed, colour=True)


_ENTRIES = (
    _resize("bilinear", "typical", "resizes bilinearly without antialiasing (OpenCV's INTER_LINEAR) instead of with"),
    _resize("nearest", "typical", "resizes to the nearest pixel instead of bilinearly with antialiasing"),
    _resize("area", "typical", "resizes by area (OpenCV's INTER_AREA) instead of bilinearly with antialiasing"),
    _resize("bicubic", "typical", "resizes bicubically without antialiasing instead of bilinearly with"),
    _resize("pil_bicubic", "mild", "resizes bicubically with antialiasing (PIL's BICUBIC) instead of bilinearly"),
    _resize("lanczos", "mild", "resizes with PIL's LANCZOS instead of bilinearly with antialiasing"),
    _resize("align_corners", "typical", "resizes between corner pixels (align_corners) instead of half-pixel centres"),
    _resize("asymmetric", "severe", "resizes bilinearly from pixel corners instead of half-pixel centres"),
    _shift("shift_quarter_pixel", 0.25, "mild", "crops a quarter of a pixel further left and up"),
    _shift("shift_half_pixel", 0.5, "typical", "crops half a pixel further left and up"),
    _shift("shift_one_pixel", 1.0, "severe", "crops a pixel further left and up"),
    Perturbation(
        "crop", "crop", "typical", "cuts off 2 % at each side and stretches", partial(geometry.crop, share=0.02)
    ),
    Perturbation(
        "letterbox", "crop", "severe", "adds grey bars above and below", partial(geometry.letterbox, share=0.05)
    ),
    _matrix("color_matrix", "typical", "reads YCbCr of BT.601 as BT.709", reverse=False),
    _matrix("color_matrix_709", "severe", "reads YCbCr of BT.709 as BT.601", reverse=True),
    Perturbation(
        "color_range", "color_range", "typical", "reads full-range YCbCr as limited range", operations.wrong_range
    ),
    Perturbation(
        "color_range_limited",
        "color_range",
        "mild",
        "reads limited-range YCbCr as full range",
        operations.unexpanded_range,
    ),
    Perturbation("nv12", "compression", "typical", "takes frames through NV12 (4:2:0)", operations.nv12, colour=True),
    _jpeg(95, "mild"),
    _jpeg(90, "typical"),
    _jpeg(75, "severe"),
    Perturbation(
        "truncation",
        "rounding",
        "typical",
        "cuts off to 8 bits instead of rounding",
        geometry.truncated_resize,
        _TRAINED_RESIZE,
    ),
    Perturbation("levels_6_bit", "rounding", "severe", "cuts off to 6 bits", partial(operations.fewer_levels, bits=6)),
    Perturbation("bgr", "channel_order", "typical", "feeds BGR instead of RGB", operations.swap_channels, colour=True),
    _gain("gain_105", 1.05, "mild", "is 5 % brighter"),
    _gain("brightness", 1.1, "typical", "is 10 % brighter"),
    _gain("gain_080", 0.8, "severe", "is 20 % darker"),
    Perturbation("offset_8", "gain_offset", "mild", "adds eight levels", partial(operations.offset, levels=8)),
    Perturbation(
        "scale_256", "gain_offset", "mild", "divides by 256 instead of 255", operations.divided_by_256, in_levels=False
    ),
    Perturbation(
        "mean_std",
        "gain_offset",
        "severe",
        "normalises with mean and deviation 0.5 instead of ImageNet's",
        operations.other_normalisation,
        in_levels=False,
    ),
    _gamma("gamma_11", 1.1, "mild", "darkened"),
    _gamma("gamma_09", 0.9, "typical", "brightened"),
    _gamma("gamma_07", 0.7, "severe", "brightened"),
    _noise(2, "typical"),
    _noise(6, "severe"),
)
CATALOGUE: dict[str, Perturbation] = {entry.name: entry for entry in _ENTRIES}
"""All perturbations by name."""
