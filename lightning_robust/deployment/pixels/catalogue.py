"""The catalogue of what a car's preprocessing does differently from training's, in pixels before normalisation.

Each entry is a pair of functions on pictures ``(N, C, H, W)`` in [0, 1]: what training did, and what the car does.
Both take multiples of 1/255 in fp32 or fp64 and return the same shape and type; nothing is drawn at random, and a
picture comes out the same in whatever batch it goes in. The functions themselves stand in ``pixel_operations.py``. How
far a model's outputs move is measured in ``parity/measure.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import Tensor

from lightning_robust.deployment.pixels import operations
from lightning_robust.suggest import did_you_mean

Pixels = Callable[[Tensor], Tensor]
Severity = Literal["mild", "typical", "severe"]
Names = Literal["typical", "all", "none"] | list[str]
FAMILIES = (
    *("resize_filter", "shift", "crop", "color_matrix", "color_range", "compression", "rounding"),
    *("channel_order", "gain_offset", "gamma", "noise"),
)
"""What kinds of difference there are; the causes that a fingerprint names."""


@dataclass(frozen=True)
class Perturbation:
    """One thing that may differ between training and car.

    Args:
        name: As in the tags ``sensitivity/<name>/...``.
        family: One of :data:`FAMILIES`.
        severity: ``"typical"`` ones are those that a parity pass measures unless told otherwise.
        description: What the car does differently.
        deployed: What the car makes of the pixels, ``(N, C, H, W)`` in [0, 1] to the same.
        trained: What training makes of them. Entries that share it share the function object, so that its outputs can
            be kept by it.
        colour: Whether it needs three channels.
        in_levels: Whether what the car makes lies on the 256 levels of [0, 1]. Where it does not, the car's mistake
            comes after the frame was turned into floating point.
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
        """Whether pictures of so many channels can be perturbed like this."""
        return channels == 3 or (channels == 1 and not self.colour)


def perturbations(names: Names = "typical") -> tuple[Perturbation, ...]:
    """Entries of the catalogue in its order.

    Args:
        names: ``"typical"`` (one or a few of each kind), ``"all"``, ``"none"``, or names of entries and of families;
            where an entry is called like its family the entry is meant.

    Raises:
        ValueError: For an unknown name; the message names the nearest.

    Example:
        >>> [entry.name for entry in perturbations(["bgr", "gamma"])]
        ['bgr', 'gamma_11', 'gamma_09', 'gamma_07']
    """
    if isinstance(names, str) and names in ("typical", "all", "none"):
        chosen = CATALOGUE.values() if names != "none" else ()
        return tuple(entry for entry in chosen if names == "all" or entry.severity == "typical")
    wanted = [names] if isinstance(names, str) else names
    known = [*CATALOGUE, *FAMILIES]
    for name in wanted:
        if name not in known:
            raise ValueError(
                f"Expected perturbations 'typical', 'all', 'none' or names out of {known}, but got {name!r}."
                f"{did_you_mean(name, known)}"
            )
    families = {name for name in wanted if name not in CATALOGUE}
    return tuple(entry for name, entry in CATALOGUE.items() if name in wanted or entry.family in families)


_TRAINED_RESIZE = partial(operations.resize, filter="antialias")


def _resized(filter: str, severity: Severity, description: str) -> Perturbation:  # noqa: A002 - the field's word
    deployed = partial(operations.resize, filter=filter)
    return Perturbation(f"resize_{filter}", "resize_filter", severity, description, deployed, _TRAINED_RESIZE)


def _shifted(name: str, by: float, severity: Severity, description: str) -> Perturbation:
    return Perturbation(name, "shift", severity, description, partial(operations.shift, by=by))


def _compressed(quality: int, severity: Severity) -> Perturbation:
    description = f"takes frames through JPEG of quality {quality}"
    return Perturbation(
        f"jpeg_{quality}", "compression", severity, description, partial(operations.jpeg, quality=quality)
    )


_ENTRIES = (
    _resized("bilinear", "typical", "resizes bilinearly without antialiasing (OpenCV's INTER_LINEAR) instead of with"),
    _resized("nearest", "typical", "resizes to the nearest pixel instead of bilinearly with antialiasing"),
    _resized("area", "typical", "resizes by area (OpenCV's INTER_AREA) instead of bilinearly with antialiasing"),
    _resized("bicubic", "typical", "resizes bicubically without antialiasing instead of bilinearly with"),
    _resized("pil_bicubic", "mild", "resizes bicubically with antialiasing (PIL's BICUBIC) instead of bilinearly"),
    _resized("lanczos", "mild", "resizes with PIL's LANCZOS instead of bilinearly with antialiasing"),
    _resized("align_corners", "typical", "resizes between corner pixels (align_corners) instead of half-pixel centres"),
    _resized("asymmetric", "severe", "resizes bilinearly from pixel corners instead of half-pixel centres"),
    _shifted("shift_quarter_pixel", 0.25, "mild", "crops a quarter of a pixel further left and up"),
    _shifted("shift_half_pixel", 0.5, "typical", "crops half a pixel further left and up"),
    _shifted("shift_one_pixel", 1.0, "severe", "crops a pixel further left and up"),
    Perturbation(
        "crop", "crop", "typical", "cuts off 2 % at each side and stretches", partial(operations.crop, share=0.02)
    ),
    Perturbation(
        "letterbox", "crop", "severe", "adds grey bars above and below", partial(operations.letterbox, share=0.05)
    ),
    Perturbation(
        "color_matrix",
        "color_matrix",
        "typical",
        "reads YCbCr of BT.601 as BT.709",
        operations.wrong_matrix,
        colour=True,
    ),
    Perturbation(
        "color_matrix_709",
        "color_matrix",
        "severe",
        "reads YCbCr of BT.709 as BT.601",
        partial(operations.wrong_matrix, reverse=True),
        colour=True,
    ),
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
    _compressed(95, "mild"),
    _compressed(90, "typical"),
    _compressed(75, "severe"),
    Perturbation(
        "truncation",
        "rounding",
        "typical",
        "cuts off to 8 bits instead of rounding",
        operations.truncated_resize,
        _TRAINED_RESIZE,
    ),
    Perturbation("levels_6_bit", "rounding", "severe", "cuts off to 6 bits", partial(operations.fewer_levels, bits=6)),
    Perturbation("bgr", "channel_order", "typical", "feeds BGR instead of RGB", operations.swap_channels, colour=True),
    Perturbation("gain_105", "gain_offset", "mild", "is 5 % brighter", partial(operations.brighten, gain=1.05)),
    Perturbation("brightness", "gain_offset", "typical", "is 10 % brighter", partial(operations.brighten, gain=1.1)),
    Perturbation("gain_080", "gain_offset", "severe", "is 20 % darker", partial(operations.brighten, gain=0.8)),
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
    Perturbation("gamma_11", "gamma", "mild", "is darkened by a gamma of 1.1", partial(operations.gamma, exponent=1.1)),
    Perturbation(
        "gamma_09", "gamma", "typical", "is brightened by a gamma of 0.9", partial(operations.gamma, exponent=0.9)
    ),
    Perturbation(
        "gamma_07", "gamma", "severe", "is brightened by a gamma of 0.7", partial(operations.gamma, exponent=0.7)
    ),
    Perturbation("noise_2", "noise", "typical", "has noise of 2 levels", partial(operations.noise, deviation=2.0)),
    Perturbation("noise_6", "noise", "severe", "has noise of 6 levels", partial(operations.noise, deviation=6.0)),
)
CATALOGUE: dict[str, Perturbation] = {entry.name: entry for entry in _ENTRIES}
"""All perturbations by name."""
