"""A fingerprint as settings for training: the perturbations of PreprocessingMixin that are what was found."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from operator import attrgetter

from lightning_robust.deployment.fingerprint.words import Cause, Fingerprint
from lightning_robust.deployment.pixels.draws import PARAMETERS

_NAME = attrgetter("name")
WEIGHT = 4.0
"""The weight of the consistency in what is written: that of the recipe for lanes, and about that for CIFAR-10."""
_AROUND = 1.5  # the neighbourhood: from nothing to so many times what was found
_QUALITY = 15.0
_FILTERS = {
    "nearest": ["resize_nearest", "resize_asymmetric"],
    "align_corners": ["resize_align_corners"],
    "sharper": ["resize_bilinear", "resize_bicubic", "resize_pil_bicubic", "resize_lanczos"],
    "smoother": ["resize_area", "resize_bilinear"],
}
Trained = tuple[list[str], dict[str, list[float]]]
"""Entries of the catalogue, and the ranges of their parameters."""


def refusal(found: Fingerprint) -> str:
    """Why nothing should be trained or built on a fingerprint; empty where something can be.

    Example:
        >>> refusal(Fingerprint((), 0.0, 0.0))
        'nothing differs'
    """
    if not found.conclusive:
        return "the pictures do not tell what differs"
    if not found.differs:
        return "nothing differs"
    if not found.causes:
        return "no known cause explains what differs"
    if found.mostly_unexplained:
        return f"most of it is not explained ({found.unexplained:.2f} of {found.distance:.2f} levels are left)"
    return ""


def trained_against(cause: Cause) -> Trained | None:
    """The entries and ranges that train against a cause; None where training cannot or should not.

    A flip, another channel order, another layout or a late frame is wrong on the deployed side, and a network that
    bears it would be worse at everything else.

    Args:
        cause: Of a fingerprint.

    Example:
        >>> from lightning_robust.deployment.fingerprint.words import describe_cause
        >>> trained_against(describe_cause("gamma", {"gamma": 0.9}, 2.0))
        (['gamma_09'], {'gamma': [0.85, 1.0]})
    """
    make = _MADE.get(cause.name)
    return None if make is None else make(cause.parameters)


def _train_shift(found: Mapping[str, float | str]) -> Trained:
    furthest = max(abs(float(found["dx"])), abs(float(found["dy"])))
    return ["shift_half_pixel"], {"shift": _up_to("shift", furthest)}


def _train_crop(found: Mapping[str, float | str]) -> Trained | None:
    zooms = [float(found.get(name, 1.0)) for name in ("zoom_x", "zoom_y")]
    if min(zooms) < 1:
        return ["letterbox"], {"letterbox": _up_to("letterbox", (1 - min(zooms)) / 2)}
    return ["crop"], {"crop": _up_to("crop", (1 - 1 / max(zooms)) / 2)}


def _train_filter(found: Mapping[str, float | str]) -> Trained:
    return _FILTERS.get(str(found["kind"]), ["resize_filter"]), {}


def _train_matrix(found: Mapping[str, float | str]) -> Trained:
    known = {"BT.601 read as BT.709": ["color_matrix"], "BT.709 read as BT.601": ["color_matrix_709"]}
    return known.get(str(found["read"]), ["color_matrix", "color_matrix_709"]), {}


def _train_range(found: Mapping[str, float | str]) -> Trained:
    return ["color_range" if str(found["read"]).startswith("full") else "color_range_limited"], {}


def _train_compression(found: Mapping[str, float | str]) -> Trained:
    if found["kind"] != "jpeg":  # colours of less detail, or beside their brightness
        return ["nv12"], {}
    quality = float(found.get("quality", 85.0))
    return ["jpeg_90"], {"quality": [max(quality - _QUALITY, 1.0), min(quality + _QUALITY, 98.0)]}


def _train_rounding(found: Mapping[str, float | str]) -> Trained:
    if found["kind"] == "cut off":
        return ["truncation"], {}
    bits = 8 + math.log2(float(found["levels"]) / float(found["expected"]))
    return ["levels_6_bit"], {"bits": [max(round(bits) - 1.0, 1.0), min(round(bits) + 1.0, 8.0)]}


def _train_gain(found: Mapping[str, float | str]) -> Trained | None:
    if "trained" in found:  # other units: the network is fed what it has never seen
        return None
    gains, offsets = (
        [float(value) for name, value in found.items() if name.startswith(kind)] for kind in ("gain", "offset")
    )
    entries, ranges = [], {}
    if any(abs(gain - 1) > 1e-3 for gain in gains):
        entries, ranges = ["brightness"], {"gain": _between("gain", gains, 1.0)}
    if any(abs(offset) > 0.5 for offset in offsets):
        entries, ranges = [*entries, "offset_8"], ranges | {"offset": _between("offset", offsets, 0.0)}
    return entries or ["brightness"], ranges


def _train_gamma(found: Mapping[str, float | str]) -> Trained:
    return ["gamma_09"], {"gamma": _between("gamma", [float(found["gamma"])], 1.0)}


def _train_noise(found: Mapping[str, float | str]) -> Trained:
    return ["noise_2"], {"noise": _up_to("noise", float(found["std"]))}


_MADE = {
    "shift": _train_shift,
    "crop": _train_crop,
    "resize_filter": _train_filter,
    "color_matrix": _train_matrix,
    "color_range": _train_range,
    "compression": _train_compression,
    "rounding": _train_rounding,
    "gain_offset": _train_gain,
    "gamma": _train_gamma,
    "noise": _train_noise,
}


def _up_to(name: str, value: float) -> list[float]:
    """From the least to a neighbourhood of a value, within what the parameter may be."""
    most = min(max(_AROUND * value, PARAMETERS[name].low), PARAMETERS[name].most)
    return [PARAMETERS[name].least, round(most, 3)]


def _between(name: str, values: Sequence[float], neutral: float) -> list[float]:
    """From nothing to a neighbourhood of values, within what the parameter may be."""
    reached = [neutral, *(neutral + _AROUND * (value - neutral) for value in values)]
    least, most = PARAMETERS[name].least, PARAMETERS[name].most
    return [round(min(max(end, least), most), 3) for end in (min(reached), max(reached))]


def write_switch(found: Fingerprint, line: str = "") -> str:
    """The YAML that trains against what was found and its neighbourhood, for ``fit -c base.yaml -c this.yaml``.

    Args:
        found: A fingerprint that :func:`refusal` has nothing against.
        line: The command line, for a comment.

    Raises:
        ValueError: If training can remove none of the causes.
    """
    against = {cause.name: trained_against(cause) for cause in found.causes}
    trained = [made for made in against.values() if made]
    mended = [cause for cause in found.causes if not against[cause.name]]
    if not trained:
        names = ", ".join(map(_NAME, mended))
        raise ValueError(f"training cannot or should not remove what was found ({names}): mend it on the deployed side")
    head = [
        f"# {line or 'lightning-robust fingerprint'}",
        f"# The pictures differ by {found.distance:.2f} levels of 255, {found.unexplained:.2f} are not explained.",
        "# Trained against, from nothing to somewhat more than what was found:",
        *[f"#   {cause}" for cause in found.causes if cause not in mended],
        *_say_mended(mended),
        *_say_next(_names_of(trained)),
    ]
    return "\n".join([*head, *_write_settings(trained)]) + "\n"


def _say_next(entries: Sequence[str]) -> list[str]:
    """The commands that use the file and show what it did."""
    return [
        f"# Next, both runs with --deployment_parity.perturbations=[{','.join(entries)}]:",
        "#   lightning-robust fit -c base.yaml",
        "#   lightning-robust fit -c base.yaml -c <this file>",
        "#   lightning-robust compare <the run without> <the run with>",
        "# From random weights let the weight rise over two thirds of the epochs (preprocessing_warmup_epochs). Places",
        "# in pixels want a preprocessing_unit. Clean error grew: a smaller weight. Too little effect: a larger one.",
    ]


def _names_of(trained: Sequence[Trained]) -> list[str]:
    return list(dict.fromkeys(name for names, _ in trained for name in names))


def _say_mended(causes: Sequence[Cause]) -> list[str]:
    if not causes:
        return []
    lines = [text for cause in causes for text in (f"#   {cause}", f"#     {cause.line}")]
    return ["# NOT trained against, for a network should not have to bear it. Mend it on the deployed side:", *lines]


def _write_settings(trained: Sequence[Trained]) -> list[str]:
    """The keys of PreprocessingMixin."""
    entries = _names_of(trained)
    ranges = {name: limits for _, limits_of in trained for name, limits in limits_of.items()}
    lines = ["model:", f"  preprocessing_weight: {WEIGHT}", f"  preprocessing_entries: {json.dumps(entries)}"]
    return (
        lines
        + ["  preprocessing_ranges:" for _ in ranges][:1]
        + [f"    {n}: {json.dumps(v)}" for n, v in ranges.items()]
    )
