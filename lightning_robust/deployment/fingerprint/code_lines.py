"""Each cause as lines of code, and why there are none for some. ``code.py`` puts them together and runs them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from torch import Tensor

from lightning_robust.deployment.fingerprint.words import Cause

Found = Mapping[str, float | str]
COLOURS = (*("compression", "grey", "color_matrix", "color_range", "cut", "gamma", "channel_order", "gain_offset"),)
"""The causes that change colours in place, in the order of a camera's pipeline; ``cut`` is a rounding."""
PLACES = ("orientation", "memory_layout", "frame_sequence")
"""The causes that arrange values."""
_TURNS = {
    "left-right": "images.flip(3)",
    "up-down": "images.flip(2)",
    "half turn": "images.flip(2, 3)",
    "quarter turn right": "images.rot90(-1, (2, 3))",
    "quarter turn left": "images.rot90(1, (2, 3))",
    "transpose": "images.transpose(2, 3)",
    "transpose and half turn": "images.transpose(2, 3).flip(2, 3)",
}


def lines_for(cause: Cause, deployed: Tensor) -> list[str]:
    """A comment and the code of a cause.

    Args:
        cause: Of a fingerprint.
        deployed: The deployed side's pictures in [0, 1], as training arranges them.
    """
    lack = lack_of(cause)
    lacking = [f"# no code can do all of it: {lack}"] if lack else []
    return [f"# {cause}", *lacking, *_CODES[code_name(cause)](cause.parameters, deployed)]


def code_name(cause: Cause) -> str:
    """The name of a cause, or of the part of it that has code of its own."""
    cut = cause.name == "rounding" and cause.parameters["kind"] == "cut off"
    return "cut" if cut else cause.name


def lack_of(cause: Cause) -> str:
    """Why training's pictures do not hold what the deployed side's show; empty where they do.

    Example:
        >>> from lightning_robust.deployment.fingerprint.words import describe_cause
        >>> lack_of(describe_cause("grey", {"kind": "trained", "luma": "green alone"}, 2.0))
        "training's pictures have lost their colours"
    """
    found = cause.parameters
    kind = f"{cause.name}/{found.get('kind')}"
    if cause.name == "frame_sequence" and "?" in str(found["order"]).split():
        return "training's pictures lack the frames marked ?, and those at their places stay"
    return _LACKS.get(kind, "")


_LACKS = {
    "grey/trained": "training's pictures have lost their colours",
    "crop/wider": "training's pictures end where the deployed side's go on; their border is repeated",
    "memory_layout/padded rows": "what the padding holds is not known and becomes 0",
    "memory_layout/skipped values": "some rows are read from beyond the picture and become 0",
}


def _code_of_color_matrix(found: Found, _: Tensor) -> list[str]:
    written, read = str(found["read"]).split(" read as ")
    return [f"pixels = transform.change_matrix(pixels, written={written!r}, read={read!r})"]


def _code_of_color_range(found: Found, _: Tensor) -> list[str]:
    name = "wrong_range" if str(found["read"]).startswith("full") else "unexpanded_range"
    return [f"pixels = operations.{name}(pixels)"]


def _code_of_compression(found: Found, _: Tensor) -> list[str]:
    if found["kind"] != "jpeg":
        nearest = "" if found["kind"] == "nv12" else "  # the nearest that is known"
        return [f"pixels = operations.nv12(pixels){nearest}"]
    full = ", full_color=True" if found.get("colors") == "4:4:4" else ""
    if "quality" not in found:
        return [f"pixels = operations.jpeg(pixels, 90{full})  # its quality is not known"]
    return [f"pixels = operations.jpeg(pixels, {round(float(found['quality']))}{full})"]


def _code_of_levels(found: Found, _: Tensor) -> list[str]:
    """Two lines, of which one is right."""
    bits = round(8 + math.log2(float(found["levels"]) / float(found["expected"])))
    return [f"pixels = {side}.{name}(pixels, {bits})" for side, name in _LEVELS.items()]


_LEVELS = {"operations": "fewer_levels", "transform": "nearest_levels"}


def _code_of_channel_order(found: Found, deployed: Tensor) -> list[str]:
    order = str(found["order"])
    lines = [f"pixels = pixels[:, {['RGB'.find(c) if c in 'RGB' else 0 for c in order]}]"]
    empty = [place for place, channel in enumerate(order) if channel == "0"]
    return lines + [f"pixels[:, {place}] = {float(deployed[:, place].mean()):.6g}" for place in empty]


def _code_of_gain_offset(found: Found, deployed: Tensor) -> list[str]:
    if "trained" in found:
        return []  # other units, which are those of the deployed side's dump
    gains, offsets = ([float(f"{value:.5g}") for value in values] for values in gains_of(found, 1))
    clipped = ".clamp(0, 1)" if float(deployed.min()) >= 0 and float(deployed.max()) <= 1 else ""
    return [f"pixels = transform.scale(pixels, {gains}, {offsets}){clipped}"]


def gains_of(found: Found, channels: int) -> tuple[list[float], list[float]]:
    """The gains and offsets of a cause: one each, or as many as a picture has channels.

    Example:
        >>> gains_of({"gain": 1.1}, 3)
        ([1.1, 1.1, 1.1], [0.0, 0.0, 0.0])
    """
    given = ([float(v) for name, v in found.items() if name.startswith(kind)] for kind in ("gain", "offset"))
    gains, offsets = (values or [neutral] for values, neutral in zip(given, (1.0, 0.0), strict=True))
    return gains * (channels // len(gains)) or gains, offsets * (channels // len(offsets)) or offsets


def _code_of_memory_layout(found: Found, _: Tensor) -> list[str]:
    kind = found["kind"]
    if kind == "channels last":
        return ["images = images.permute(0, 2, 3, 1)"]
    if kind == "exchanged":
        return ["images = images.reshape(*images.shape[:2], images.shape[3], images.shape[2])"]
    if kind == "order":
        return [f"images = transform.reread_memory(images, {found['written']!r}, {found['read']!r})"]
    padding = int(float(found["padding"])) * (1 if kind == "padded rows" else -1)
    return [f"images = transform.change_stride(images, {padding}, interleaved={found['layout'] == 'HWC'})"]


def _code_of_frame_sequence(found: Found, _: Tensor) -> list[str]:
    sources = [at if source == "?" else int(source) for at, source in enumerate(str(found["order"]).split())]
    return [f"images = images[{sources}]"]


def _code_of_grey(found: Found, _: Tensor) -> list[str]:
    return [] if found["kind"] == "trained" else [f"pixels = transform.grey(pixels, {found['luma']!r})"]


_CODES: dict[str, Callable[[Found, Tensor], list[str]]] = {
    "compression": _code_of_compression,
    "grey": _code_of_grey,
    "color_matrix": _code_of_color_matrix,
    "color_range": _code_of_color_range,
    "cut": lambda *_: ["pixels = (pixels - 0.5 / 255).clamp(0, 1)  # what cutting off takes away on average"],
    # black of normalised pixels may lie a rounding below 0, where no power is real
    "gamma": lambda found, _: [f"pixels = operations.gamma(pixels.clamp(min=0), {float(found['gamma']):.4f})"],
    "channel_order": _code_of_channel_order,
    "gain_offset": _code_of_gain_offset,
    "rounding": _code_of_levels,
    "noise": lambda found, _: [f"pixels = operations.noise(pixels, {float(found['std']):.3f})  # another draw of it"],
    "orientation": lambda found, _: ["images = " + _TURNS[str(found["kind"])]],
    "memory_layout": _code_of_memory_layout,
    "frame_sequence": _code_of_frame_sequence,
    # what is said of both dumps, and what is fitted on them, is written in code.py
    **dict.fromkeys(("input_type", "crop", "shift", "rotation", "lens", "resize_filter", "overlay"), lambda *_: []),
}
