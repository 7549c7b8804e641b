"""A fingerprint as code: the function that makes the deployed side's pictures of training's.

What is written is made of the library's own operations, in the order of a camera's pipeline, from what training's dump
holds to what the deployed side's does. Motions, filters and covers are fitted on the pictures. It is run before it is
written, so that the file says how much of the difference it leaves.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from lightning_robust.deployment.fingerprint.arrangement import undo_arrangement
from lightning_robust.deployment.fingerprint.code_lines import (
    COLOURS,
    PLACES,
    code_name,
    gains_of,
    lack_of,
    lines_for,
)
from lightning_robust.deployment.fingerprint.detectors import color_parameters
from lightning_robust.deployment.fingerprint.formats import Dump, dump_of, undo_format
from lightning_robust.deployment.fingerprint.levels import find_gains, units_of_both
from lightning_robust.deployment.fingerprint.overlay import fit_cover
from lightning_robust.deployment.fingerprint.view import View, best_view
from lightning_robust.deployment.fingerprint.words import UNEXPLAINED, Cause, Fingerprint, describe_cause

Numbers = float | Sequence[float] | None
_CONTENT = ("crop", "shift", "rotation", "lens", "resize_filter")
_USELESS = 0.75  # of the distance
_PICTURES = 8  # on which motions, filters and covers are fitted
_NEUTRAL = {"dx": 0.0, "dy": 0.0, "zoom_x": 1.0, "zoom_y": 1.0, "degrees": 0.0, "lens": 0.0}
_FILE = '''"""What the deployed side does to training's pictures, as a fingerprint found it.

{told}
"""

from torch import Tensor

from lightning_robust.deployment.fingerprint import transform
{imports}

def deployed(images: Tensor) -> Tensor:
    """The deployed side's pictures of training's (N, C, H, W), both as they were dumped."""
{lines}    return images
'''


_OPERATIONS = "from lightning_robust.deployment.pixels import operations\n"


@dataclass(frozen=True)
class _Sides:
    """Both sides' pictures and how they are stored.

    Args:
        before: How training stores them.
        after: How the deployed side does.
        trained: Training's pictures in [0, 1] without what the deployed side does not show, at most a few.
        deployed: The deployed side's, as training arranges them.
    """

    before: Dump
    after: Dump
    trained: Tensor
    deployed: Tensor


def write_transform(
    found: Fingerprint, trained: Tensor, deployed: Tensor, line: str = "", *, mean: Numbers = None, std: Numbers = None
) -> str:
    """Python code with a function ``deployed(images)`` that does what was found.

    Args:
        found: A fingerprint with causes.
        trained: Training's pictures ``(N, C, H, W)`` as they were dumped.
        deployed: The deployed side's.
        line: The command line, for a comment.
        mean: The mean that training's were normalised with, if it was given.
        std: The standard deviation, likewise.

    Raises:
        ValueError: If the code does not make the deployed side's pictures.
    """
    as_stored = _read_sides(trained, deployed, mean, std)
    sides = _with_gain_in_units(found.causes, as_stored)
    colours = COLOURS if sides is as_stored else [name for name in COLOURS if name != "gain_offset"]
    lines = _lines_of_causes(found.causes, colours, sides)
    lines += _lines_of_content(found.causes, lines, sides)
    lines += _lines_of_gain(found.causes, lines, sides)
    lines += _lines_of_levels(found.causes, lines, sides)
    lines += _lines_of_cover(found.causes, lines, sides)
    noise = _lines_of_causes(found.causes, ("noise",), sides)
    made = _run_code(_whole(lines, found.causes, sides), trained)
    left = _left_between(as_stored.after, made, deployed, trained.shape[1])
    lacks = [cause for cause in found.causes if lack_of(cause)]
    within = left <= max(_USELESS * found.distance, UNEXPLAINED)
    if not (within or noise or lacks):
        raise ValueError(f"the operations would leave {left:.2f} of {found.distance:.2f} levels")
    told = f"{left:.2f} of {found.distance:.2f} levels are left{', the noise included' * bool(noise)}."
    return _write_file(
        [line, f"On the pictures that it was found on, {told}"], _whole(lines + noise, found.causes, sides)
    )


def _read_sides(trained: Tensor, deployed: Tensor, mean: Numbers, std: Numbers) -> _Sides:
    plain, formats = undo_format(trained, deployed, mean, std)
    arranged = undo_arrangement(trained, plain)
    here, there = units_of_both(arranged.trained, arranged.deployed, mean, std)
    few = slice(0, _PICTURES)
    before, after = here.to_levels(arranged.trained[few]) / 255, there.to_levels(arranged.deployed[few]) / 255
    return _Sides(dump_of(here, trained, []), dump_of(there, deployed, formats), before, after)


def _with_gain_in_units(causes: Sequence[Cause], sides: _Sides) -> _Sides:
    """A gain and offset after the rounding to levels as part of the units in which the deployed side stores them.

    What comes before it in a pipeline is then made where it was: on 256 levels between black and white.
    """
    levels, units = 255 * sides.deployed, sides.after.units
    named = [cause for cause in causes if cause.name == "gain_offset"]
    gains = _gains_after_rounding(named[0], 255 * sides.trained, levels) if named else None
    if gains is None:
        return sides
    black = tuple(b + s * o for b, s, o in zip(units.black, units.step, gains[1], strict=True))
    step = tuple(s * g for s, g in zip(units.step, gains[0], strict=True))
    own = replace(units, black=black, step=step, description=f"{units.description}; {named[0]}")
    pixels = own.to_levels(units.from_levels(levels)) / 255
    return replace(sides, after=replace(sides.after, units=own), deployed=pixels)


def _gains_after_rounding(cause: Cause, before: Tensor, after: Tensor) -> tuple[list[float], list[float]] | None:
    """Gains and offsets that put levels on another grid, or beyond black and white; none where they do not."""
    grid = find_gains(before, after)
    if "trained" in cause.parameters:  # other units, which hide a gain beside them
        return None if grid is None else (grid[0].flatten().tolist(), grid[1].flatten().tolist())
    inside = float(after.min()) > -0.5 and float(after.max()) < 255.5
    return None if inside and grid is None else gains_of(cause.parameters, after.shape[1])


def _lines_of_causes(causes: Sequence[Cause], names: Sequence[str], sides: _Sides) -> list[str]:
    by_name = {code_name(cause): cause for cause in causes}
    return [text for name in names if name in by_name for text in lines_for(by_name[name], sides.deployed)]


def _whole(lines: Sequence[str], causes: Sequence[Cause], sides: _Sides) -> list[str]:
    """The code from one dump to the other."""
    there = sides.after
    quantised = (
        f", scale={there.scale:.9g}, zero_point={there.zero_point:g}" if there.scale != 1 or there.zero_point else ""
    )
    return [
        f"# training's are {sides.before.units.description}",
        f"pixels = transform.to_pixels(images, {sides.before.numbers})",
        *lines,
        *_lines_of_causes(causes, ("input_type",), sides),
        f"# the deployed side's are {there.units.description}",
        f'images = transform.from_pixels(pixels, {there.numbers}, dtype="{there.dtype}"{quantised})',
        *_lines_of_causes(causes, PLACES, sides),
    ]


def _write_file(told: Sequence[str], lines: Sequence[str]) -> str:
    body = "".join(f"    {text}\n" for text in lines)
    imports = _OPERATIONS if "operations." in body else ""
    text = "\n".join(filter(None, told)).replace("\\", "\\\\").replace('"', '\\"')
    return _FILE.format(told=text, lines=body, imports=imports)


def _run_code(lines: Sequence[str], images: Tensor) -> Tensor:
    """What the code makes of pictures."""
    scope: dict[str, Any] = {}
    exec(_write_file([], lines), scope)  # noqa: S102 - written above
    made: Tensor = scope["deployed"](images)
    return made


def _run_pixels(lines: Sequence[str], pixels: Tensor) -> Tensor:
    """The same of code between the two dumps."""
    return _run_code(["pixels = images.clone()", *lines, "images = pixels"], pixels)


def _left_between(dump: Dump, made: Tensor, deployed: Tensor, channels: int) -> float:
    """Root mean square difference in levels of what is stored."""
    last = deployed.shape[1] != channels
    one, other = (dump.to_levels(side.movedim(-1, 1) if last else side) for side in (made, deployed))
    return float((one - other).square().mean().sqrt())


def _lines_of_content(causes: Sequence[Cause], lines: Sequence[str], sides: _Sides) -> list[str]:
    """The motion, the filter and the bars that are left between pictures of the same colours."""
    moved = [cause for cause in causes if cause.name in _CONTENT]
    if not moved:
        return []
    after = 255 * sides.deployed
    view = _view_of_content(causes, 255 * _run_pixels(lines, sides.trained), after)
    told = [text for cause in moved for text in lines_for(cause, sides.deployed)]
    boxed = any(cause.parameters.get("kind") == "letterbox" for cause in moved)
    return [*told, *_write_motion(view), *_write_filter(view), *(_write_bars(view, after) if boxed else [])]


def _view_of_content(causes: Sequence[Cause], before: Tensor, after: Tensor) -> View:
    """The registered pictures, in levels; what is covered counts as what was predicted there."""
    view = best_view(before, after)[0]
    for box in (_covered_box(cause) for cause in causes if cause.name == "overlay"):
        bare = after.clone()
        bare[(..., *box)] = view.predicted[(..., *box)]
        view = best_view(before, bare)[0]
    return view


def _write_motion(view: View) -> list[str]:
    motion = view.motion
    numbers = {name: getattr(motion, name, math.degrees(motion.angle)) for name in _NEUTRAL}
    told = [f"{name}={value:.5f}" for name, value in numbers.items() if value != _NEUTRAL[name]]
    kernel = [f'kernel="{view.kernel}"'] if view.kernel != "linear" else []
    return [f"pixels = transform.move_content(pixels, {', '.join(told + kernel)})"] if told else []


def _write_filter(view: View) -> list[str]:
    if not view.needs_filter:
        return []
    rows = (f"    [{', '.join(f'{tap:.4f}' for tap in row)}]," for row in (view.taps / view.taps.sum()).tolist())
    return ["taps = [", *rows, "]", "pixels = transform.apply_taps(pixels, taps)"]


def _write_bars(view: View, after: Tensor) -> list[str]:
    """Bars around the rows and columns that training's picture fills, in the colour that they have."""
    height, width = view.mask.shape
    borders: dict[str, int] = {}
    for sizes, at, size in (
        (("top", "bottom"), view.motion.sources(height, width)[0], height),
        (("left", "right"), view.motion.sources(height, width)[1], width),
    ):
        kept = ((at > -0.5) & (at < size - 0.5)).nonzero()[:, 0].tolist()
        borders |= dict(zip(sizes, (kept[0], kept[-1] + 1), strict=True))
    beyond = after.transpose(0, 1)[..., ~view.motion.inside(height, width)].flatten(1)
    levels = [round(level, 1) for level in beyond.median(1).values.tolist()]
    told = ", ".join(f"{side}={place}" for side, place in borders.items())
    return [f"pixels = transform.add_bars(pixels, {told}, levels={levels})"]


def _lines_of_gain(causes: Sequence[Cause], lines: Sequence[str], sides: _Sides) -> list[str]:
    """The gain and offset between pictures of the same content in whose place a fingerprint names other units."""
    if not any("trained" in cause.parameters for cause in causes):
        return []
    colors = best_view(255 * _run_pixels(lines, sides.trained), 255 * sides.deployed)[0].colors
    if "gain_offset" not in colors.causes:
        return []
    cause = describe_cause("gain_offset", color_parameters(colors, "gain_offset"), colors.evidence("gain_offset"))
    return lines_for(cause, sides.deployed)


def _lines_of_levels(causes: Sequence[Cause], lines: Sequence[str], sides: _Sides) -> list[str]:
    """Fewer levels: cut off, or rounded where a gain and offset before have the mean of what is cut off; or nothing."""
    told = _lines_of_causes(causes, ("rounding",), sides)
    if not told:
        return []
    ways = [[], *([line] for line in told[1:])]
    kept = min(
        ways, key=lambda way: float((_run_pixels([*lines, *way], sides.trained) - sides.deployed).square().mean())
    )
    return [told[0], *kept]


def _lines_of_cover(causes: Sequence[Cause], lines: Sequence[str], sides: _Sides) -> list[str]:
    """What covers a region, as a picture."""
    found = [cause for cause in causes if cause.name == "overlay"]
    if not found:
        return []
    box = _covered_box(found[0])
    picture = fit_cover(255 * _run_pixels(lines, sides.trained), 255 * sides.deployed, box)
    return [
        *lines_for(found[0], sides.deployed),
        f'picture = "{_write_png(picture)}"  # a PNG with opacity',
        f"pixels = transform.cover(pixels, left={box[1].start}, top={box[0].start}, picture=picture)",
    ]


def _covered_box(overlay: Cause) -> tuple[slice, slice]:
    left, right, top, bottom = (int(float(overlay.parameters[side])) for side in ("left", "right", "top", "bottom"))
    return slice(top, bottom), slice(left, right)


def _write_png(picture: Tensor) -> str:
    """A picture ``(4, h, w)`` of bytes in base64."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy(), "RGBA").save(stream, "PNG", optimize=True)
    return base64.b64encode(stream.getvalue()).decode()
