"""One detector for each kind of difference: from a view of both sides to named causes with their evidence.

Evidence is counted in multiples of a threshold. The older thresholds were set while rendered roads, frames of a
recording and pictures of CIFAR-10 were looked at, those of ``chroma.py`` and ``doubt.py`` on rendered roads alone;
``benchmarks/fingerprint.py`` tries all of them on other frames and pictures. Pictures are levels of 8 bits,
``(N, C, H, W)`` in fp64.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import max_pool2d

from lightning_robust.deployment.fingerprint.colours import Colors
from lightning_robust.deployment.fingerprint.filters import mean_square, noise_power, sharpness
from lightning_robust.deployment.fingerprint.motion import Motion, jitter
from lightning_robust.deployment.fingerprint.view import BEND_LIMIT, SHIFT_LIMIT, STRETCH_LIMIT, WHITE, View

_CROP = 0.6  # pixels at the border; resizing from corner to corner stretches by less than half a pixel
_CONVENTION = 1.5  # pixels; where a pixel's centre lies is disputed by less
_JITTER = 0.07  # pixels from column to column; another kernel or noise causes 0.05
_BESIDE_FILTER = 0.12  # pixels that a filter may move content by itself
_NOISE = 0.25  # variance in levels squared; rounding leaves 0.08, a filter that does not invert 0.2
_TAILS = 6.0  # kurtosis; noise of a bell curve has 3
_BELL = 0.3  # by how much its kurtosis may be off
_BESIDE_CODEC = 0.2  # correlation from pixel to pixel of noise beside what a codec leaves
_BAR, _FLAT_SHARE = 4.0, 0.9  # levels about the colour of a bar, and the share of its pixels within
_EVEN = 0.8
_UNIT_GAIN = 0.03  # the gain's largest distance to 1 for the offset of a cut; dark pictures leave the gain uncertain


@dataclass(frozen=True)
class Evidence:
    """Evidence of one cause.

    Args:
        name: Of the cause.
        parameters: Of the cause.
        strength: In multiples of the threshold.
        explains: The share of what the view leaves, in levels squared, that the cause explains beside it.
    """

    name: str
    parameters: dict[str, float | str]
    strength: float
    explains: float = 0.0


def color_evidence(colors: Colors) -> Iterator[Evidence]:
    """The causes of a colour change."""
    for cause in colors.causes:
        yield Evidence(cause, color_parameters(colors, cause), colors.evidence(cause))


def color_parameters(colors: Colors, cause: str) -> dict[str, float | str]:
    """The numbers and words of one cause of a colour change."""
    if cause == "channel_order":
        return {"order": "".join("RGB"[channel] for channel in colors.order)}
    if cause == "rounding":
        return {"kind": "cut off"}
    if cause == "gamma":
        return {"gamma": colors.gamma}
    if cause == "gain_offset":
        return _per_channel("gain", colors.gain) | _per_channel("offset", colors.offset)
    return {"read": colors.decoding.causes[cause]}


def _per_channel(name: str, values: tuple[float, ...]) -> dict[str, float | str]:
    if len(values) == 1:
        return {name: values[0]}
    return {f"{name}_{channel}": value for channel, value in zip("rgb", values, strict=True)}


def geometry_evidence(view: View, trained: Tensor) -> list[Evidence]:
    """Crop, turn, lens, resize filter and shift: the causes that move content, or change its detail."""
    furthest = max(map(abs, view.motion.stretch(*view.mask.shape)))
    cropped = furthest >= _CROP
    crop = [Evidence("crop", _visible_part(view, trained), furthest / _CROP)] if cropped else []
    resize = _resize_evidence(view, cropped)
    found = [*crop, *_bend_evidence(view), *([] if resize is None else [resize])]
    if cropped and _is_part_of_crop(view):
        return found
    return [*found, *_shift_evidence(view.motion, resize)]


def _is_part_of_crop(view: View) -> bool:
    """Whether a crop or bars of other widths at opposite sides move the content, and by more than a convention does."""
    motion = view.motion
    spare = [abs(pixels) + _CROP for pixels in motion.stretch(*view.mask.shape)]
    within = abs(motion.dx) <= spare[0] and abs(motion.dy) <= spare[1]
    return within and max(abs(motion.dx), abs(motion.dy)) > _CONVENTION


def _bend_evidence(view: View) -> Iterator[Evidence]:
    turned, bent = view.motion.bend(*view.mask.shape)
    if turned > BEND_LIMIT:
        yield Evidence("rotation", {"degrees": math.degrees(view.motion.angle)}, turned / BEND_LIMIT)
    if bent > BEND_LIMIT:
        yield Evidence("lens", {"k": view.motion.lens}, bent / BEND_LIMIT)


def _shift_evidence(motion: Motion, resize: Evidence | None) -> Iterator[Evidence]:
    shift = max(abs(motion.dx), abs(motion.dy))
    # the nearest pixel lies up to half a pixel up and left of the right place: that is no shift of its own
    to_nearest = resize is not None and resize.parameters["kind"] == "nearest"
    own = not (to_nearest and 0 < motion.dx < 0.5 and 0 < motion.dy < 0.5)
    if own and shift > (SHIFT_LIMIT if resize is None else _BESIDE_FILTER):
        yield Evidence("shift", {"dx": motion.dx, "dy": motion.dy}, shift / SHIFT_LIMIT)


def _resize_evidence(view: View, cropped: bool) -> Evidence | None:
    """Another resize filter: the nearest pixel, aligned corners, or more or less detail."""
    uneven, left = 0.0, 1.0
    if view.motion != Motion():
        uneven, left = jitter(view.filtered.mean(1), view.deployed.mean(1), view.mask)
    stretch = [abs(pixels) for pixels in view.motion.stretch(*view.mask.shape)]
    corners = not cropped and min(stretch) > STRETCH_LIMIT
    detail = sharpness(view.taps)
    kinds = {
        "nearest": uneven > _JITTER,
        "align_corners": corners,
        "sharper": view.needs_filter and detail > 1,
        "smoother": view.needs_filter and not cropped,  # shrinking takes detail away by itself
    }
    kind = next((kind for kind, evident in kinds.items() if evident), None)
    if kind is None:
        return None
    strengths = (view.filter_evidence, uneven / _JITTER, corners * max(stretch) / STRETCH_LIMIT)
    explains = 1 - left if kind == "nearest" else 0.0
    return Evidence("resize_filter", {"kind": kind, "sharpness": detail}, max(strengths), explains)


def _visible_part(view: View, trained: Tensor) -> dict[str, float | str]:
    """The part of training's picture that the deployed side shows."""
    motion = view.motion
    rows, columns = motion.sources(*view.mask.shape)
    half = 0.5 / motion.zoom_x, 0.5 / motion.zoom_y
    borders = {
        "left": float(columns[0]) + 0.5 - half[0],
        "right": float(columns[-1]) + 0.5 + half[0],
        "top": float(rows[0]) + 0.5 - half[1],
        "bottom": float(rows[-1]) + 0.5 + half[1],
    }
    zooms = {"zoom_x": motion.zoom_x, "zoom_y": motion.zoom_y}
    return {"kind": _kind_of_crop(view, trained), "part": _say_part(borders, *view.mask.shape), **borders, **zooms}


def _say_part(borders: dict[str, float], height: int, width: int) -> str:
    """What a crop takes away, in words."""
    ends = {"left": 0, "right": width, "top": 0, "bottom": height}
    margins = {side: abs(borders[side] - end) for side, end in ends.items()}
    alike = all(abs(margins[a] - margins[b]) < 1 + _CONVENTION for a, b in (("left", "right"), ("top", "bottom")))
    missing = [side for side, margin in margins.items() if margin > _CROP]
    return "a centre crop" if alike else f"a crop without training's {' and '.join(missing)}"


def _kind_of_crop(view: View, trained: Tensor) -> str:
    """Which side has bars or a crop: bars are flat, the rest of a wider picture is not."""
    motion, (height, width) = view.motion, view.mask.shape
    if min(motion.zoom_x, motion.zoom_y) < 1 - 1e-3:
        return "letterbox" if _is_flat(view.deployed, motion.inside(height, width, margin=0)) else "wider"
    back = Motion(-motion.dx / motion.zoom_x, -motion.dy / motion.zoom_y, 1 / motion.zoom_x, 1 / motion.zoom_y)
    return "bars cut" if _is_flat(trained, back.inside(height, width)) else "crop"


def _is_flat(images: Tensor, inside: Tensor) -> bool:
    """Whether most of what lies beyond a mask, away from its edge, has one colour in all pictures."""
    beyond = max_pool2d(inside[None, None].double(), 3, 1, 1)[0, 0] == 0
    values = images[..., beyond]
    if values.shape[-1] < 8:
        return False
    middle = values.transpose(0, 1).flatten(1).median(1).values
    return float(((values - middle[:, None]).abs() < _BAR).double().mean()) > _FLAT_SHARE


def is_slight_gain(evidence: Evidence, least: float = -2, most: float = 2) -> bool:
    """Whether a gain is hardly one, with offsets between two numbers of levels."""
    if evidence.name != "gain_offset":
        return False
    gains, offsets = (
        [float(value) for key, value in evidence.parameters.items() if key.startswith(kind)]
        for kind in ("gain", "offset")
    )
    return all(abs(gain - 1) < _UNIT_GAIN for gain in gains) and all(least < offset < most for offset in offsets)


def noise_evidence(view: View, channels: int, *, even: bool = False) -> Evidence | None:
    """A residual that is white, and as strong in calm regions as elsewhere.

    Args:
        view: Both sides.
        channels: Of the pictures; the residual is grey.
        even: Demand that the noise is hardly stronger elsewhere, or has a bell curve. The residual of a compression
            that is not quite the deployed side's is stronger there, and has longer tails.
    """
    power, correlation, tails = noise_power(view.residual, view.predicted.mean(1), view.mask)
    bell = abs(tails - 3) < _BELL
    if power < _NOISE or abs(correlation) > (_BESIDE_CODEC if even and bell else WHITE) or tails > _TAILS:
        return None
    if even and not bell and power < _EVEN * mean_square(view.residual[..., view.mask]):
        return None
    return Evidence("noise", {"std": (power * channels) ** 0.5}, power / _NOISE)
