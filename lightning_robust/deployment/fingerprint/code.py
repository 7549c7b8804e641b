"""A fingerprint as code: the function that makes the deployed side's pictures of training's.

What is written is made of the library's own operations, in the order of a camera's pipeline. It is run before it is
written, so that the file says how much of the difference it leaves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from lightning_robust.deployment.fingerprint.arrangement import Arranged, undo_arrangement
from lightning_robust.deployment.fingerprint.filters import fit_filter
from lightning_robust.deployment.fingerprint.registration import estimate_motion
from lightning_robust.deployment.fingerprint.transform import zoom_and_move
from lightning_robust.deployment.fingerprint.words import Cause, Fingerprint

Found = Mapping[str, float | str]
_VALUES = (
    *("compression", "color_matrix", "color_range", "crop", "shift", "rounding", "gamma", "channel_order"),
    *("gain_offset",),
)
_PLACES = ("orientation", "memory_layout", "frame_sequence")
_STIRRED = 0.02  # pixels
_RADIUS = 2
_USELESS = 0.75  # of the distance
_FILE = '''"""What the deployed side does to training's pictures, as a fingerprint found it.

{told}
"""

from torch import Tensor

from lightning_robust.deployment.fingerprint import transform
from lightning_robust.deployment.pixels import operations


def deployed(pixels: Tensor) -> Tensor:
    """The deployed side's pictures of training's, (N, C, H, W) in [0, 1]."""
{lines}    return pixels
'''


def write_transform(found: Fingerprint, trained: Tensor, deployed: Tensor, line: str = "") -> str:
    """Python code with a function ``deployed(pixels)`` that does what was found.

    Args:
        found: A fingerprint with causes.
        trained: Training's pictures ``(N, C, H, W)`` in [0, 1], from which a resize filter is fitted.
        deployed: The deployed side's, as they are arranged there.
        line: The command line, for a comment.

    Raises:
        ValueError: If a cause has no code, or the code does not make the deployed side's pictures.
    """
    unknown = [c.name for c in found.causes if c.name not in (*_CODES, "resize_filter") or _has_other_units(c)]
    if unknown:
        raise ValueError(f"there is no operation for {', '.join(unknown)}")
    causes = {cause.name: cause for cause in found.causes}
    lines = _lines_of_all(causes, _VALUES)
    if "resize_filter" in causes:
        arranged = undo_arrangement(trained, deployed)
        lines += [f"# {causes['resize_filter']}", *_fit_resize(_run_lines(lines, arranged.trained), arranged)]
    lines += _lines_of_all(causes, _PLACES)
    left = 255 * float((_run_lines(lines, trained).double() - deployed).square().mean().sqrt())
    if left > _USELESS * found.distance and "noise" not in causes:
        raise ValueError(f"the operations would leave {left:.2f} of {found.distance:.2f} levels")
    told = f"{left:.2f} of {found.distance:.2f} levels are left{', the noise included' * ('noise' in causes)}."
    lines += _lines_of_all(causes, ("noise",))
    return _write_file([line, f"On the pictures that it was found on, {told}"], lines)


def _lines_of_all(causes: Mapping[str, Cause], names: Sequence[str]) -> list[str]:
    return [text for name in names if name in causes for text in _lines_for(causes[name])]


def _write_file(told: Sequence[str], lines: Sequence[str]) -> str:
    return _FILE.format(told="\n".join(filter(None, told)), lines="".join(f"    {text}\n" for text in lines))


def _run_lines(lines: Sequence[str], pixels: Tensor) -> Tensor:
    """What the code makes of pictures."""
    scope: dict[str, Any] = {}
    exec(_write_file([], lines), scope)  # noqa: S102 - written above
    made: Tensor = scope["deployed"](pixels)
    return made


def _fit_resize(trained: Tensor, arranged: Arranged) -> list[str]:
    """The shift, zoom and filter that a resize has beside training's, fitted on pictures that are else alike."""
    before, after = trained.double().mean(1), arranged.deployed.double().mean(1)
    motion, _ = estimate_motion(255 * before, 255 * after)
    lines, height, width = [], *before.shape[1:]
    if max(map(abs, (motion.dx, motion.dy, *motion.stretch(height, width)))) > _STIRRED:
        numbers = (motion.dx, motion.dy, motion.zoom_x, motion.zoom_y)
        lines = [f"pixels = transform.zoom_and_move(pixels, {', '.join(f'{number:.5f}' for number in numbers)})"]
        before = zoom_and_move(before[:, None], *numbers)[:, 0]
    taps, _ = fit_filter(before, after, motion.inside(height, width, margin=_RADIUS), _RADIUS)
    rows = (f"    [{', '.join(f'{tap:.4f}' for tap in row)}]," for row in (taps / taps.sum()).tolist())
    return [*lines, "taps = [", *rows, "]", "pixels = transform.apply_taps(pixels, taps)"]


def _lines_for(cause: Cause) -> list[str]:
    return [f"# {cause}", *_CODES[cause.name](cause.parameters)]


def _code_of_crop(found: Found) -> list[str]:
    borders = [f"{float(found[side]):.3f}" for side in ("left", "right", "top", "bottom")]
    bars = ["bars=114"] if found["kind"] == "letterbox" else []
    return [f"pixels = transform.show_part(pixels, {', '.join(borders + bars)})"]


def _code_of_color_matrix(found: Found) -> list[str]:
    reverse = found["read"] == "BT.709 read as BT.601"
    return [f"pixels = operations.wrong_matrix(pixels, reverse={reverse})"]


def _code_of_color_range(found: Found) -> list[str]:
    name = "wrong_range" if str(found["read"]).startswith("full") else "unexpanded_range"
    return [f"pixels = operations.{name}(pixels)"]


def _code_of_compression(found: Found) -> list[str]:
    if found["kind"] == "nv12":
        return ["pixels = operations.nv12(pixels)"]
    return [f"pixels = operations.jpeg(pixels, {round(float(found.get('quality', 90)))})"]


def _code_of_rounding(found: Found) -> list[str]:
    if found["kind"] == "cut off":
        return ["pixels = (pixels - 0.5 / 255).clamp(0, 1)  # what cutting off takes away on average"]
    bits = round(8 + math.log2(float(found["levels"]) / float(found["expected"])))
    return [f"pixels = operations.fewer_levels(pixels, {bits})"]


def _code_of_channel_order(found: Found) -> list[str]:
    order = str(found["order"])
    lines = [f"pixels = pixels[:, {['RGB'.find(c) if c in 'RGB' else 0 for c in order]}]"]
    empty = [place for place, channel in enumerate(order) if channel == "0"]
    return lines + ([f"pixels[:, {empty}] = 0"] if empty else [])


def _code_of_gain_offset(found: Found) -> list[str]:
    gains, offsets = (
        [float(f"{float(value):.5g}") for name, value in found.items() if name.startswith(kind)]
        for kind in ("gain", "offset")
    )
    return [f"pixels = transform.scale(pixels, {gains or [1.0]}, {offsets or [0.0]})"]


def _code_of_orientation(found: Found) -> list[str]:
    return ["pixels = " + _TURNS[str(found["kind"])]]


_TURNS = {
    "left-right": "pixels.flip(3)",
    "up-down": "pixels.flip(2)",
    "half turn": "pixels.flip(2, 3)",
    "quarter turn right": "pixels.rot90(-1, (2, 3))",
    "quarter turn left": "pixels.rot90(1, (2, 3))",
    "transpose": "pixels.transpose(2, 3)",
    "transpose and half turn": "pixels.transpose(2, 3).flip(2, 3)",
}


def _code_of_memory_layout(found: Found) -> list[str]:
    kind = found["kind"]
    if kind == "channels last":
        return ["pixels = pixels.permute(0, 2, 3, 1)"]
    if kind == "exchanged":
        return ["pixels = pixels.reshape(*pixels.shape[:2], pixels.shape[3], pixels.shape[2])"]
    if kind == "order":
        return [f"pixels = transform.reread_memory(pixels, {found['written']!r}, {found['read']!r})"]
    padding = int(float(found["padding"])) * (1 if kind == "padded rows" else -1)
    return [f"pixels = transform.change_stride(pixels, {padding}, interleaved={found['layout'] == 'HWC'})"]


def _code_of_frame_sequence(found: Found) -> list[str]:
    sources = [at if source == "?" else int(source) for at, source in enumerate(str(found["order"]).split())]
    return [f"pixels = pixels[{sources}]"]


_CODES: dict[str, Callable[[Found], list[str]]] = {
    "compression": _code_of_compression,
    "color_matrix": _code_of_color_matrix,
    "color_range": _code_of_color_range,
    "crop": _code_of_crop,
    "shift": lambda found: [f"pixels = transform.move(pixels, {float(found['dx']):.4f}, {float(found['dy']):.4f})"],
    "rounding": _code_of_rounding,
    "gamma": lambda found: [f"pixels = operations.gamma(pixels, {float(found['gamma']):.4f})"],
    "channel_order": _code_of_channel_order,
    "gain_offset": _code_of_gain_offset,
    "noise": lambda found: [f"pixels = operations.noise(pixels, {float(found['std']):.3f})  # another draw of it"],
    "orientation": _code_of_orientation,
    "memory_layout": _code_of_memory_layout,
    "frame_sequence": _code_of_frame_sequence,
}


def _has_other_units(cause: Cause) -> bool:
    """Whether one side is not normalised as the other: no operation on pixels in [0, 1]."""
    return cause.name == "gain_offset" and "trained" in cause.parameters
