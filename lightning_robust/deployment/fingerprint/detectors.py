"""One detector for each kind of difference: from two sets of pictures to named causes with their evidence.

Pictures are levels of 8 bits, ``(N, C, H, W)`` in fp64. Evidence is counted in multiples of what would just be enough;
the limits were set on rendered roads and one recording, see ``benchmarks/fingerprint.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from lightning_robust.deployment.fingerprint.colours import Colors, fit_colors
from lightning_robust.deployment.fingerprint.filters import (
    blockiness,
    chroma_steps,
    fit_filter,
    fit_gains,
    noise_power,
    pooled,
    sharpness,
)
from lightning_robust.deployment.fingerprint.motion import Kernel, Motion, estimate_motion, jitter, polish, warp
from lightning_robust.deployment.pixels.operations import jpeg, nv12

MOVED = 0.04  # pixels of shift; compression and filters move content by a hundredth
STRETCHED = 0.1  # pixels at the border
CROPPED = 0.6  # pixels at the border; resizing from corner to corner stretches by less than half a pixel
JITTERED = 0.03  # pixels from column to column
ZOOMED_JITTER = 0.12  # likewise where the picture is cropped; interpolating with another kernel does half of it
FILTERED = 1.3  # how much more a motion alone leaves than a motion and a filter
BLOCKS = 0.05  # share of coefficients
HALF_CHROMA = 0.75
RESYNTHESIS = 1.05  # how much more compression on a wrong grid leaves than on the right one
FEWER_LEVELS = 0.7
NOISE = 0.25  # variance in levels squared; rounding leaves 0.08, a filter that does not invert 0.2
WHITE = 0.15
EVEN = 0.8
_RADIUS = 3
_FEW = 2  # pictures to find the quality of a JPEG on
_QUALITIES = (97, 95, 92, 90, 87, 85, 80, 75, 65, 50)
_NO_GAIN = 0.03  # what the offset of a cut is taken for at most, where dark pictures leave the gain uncertain


@dataclass(frozen=True)
class Finding:
    """A cause by name, with its numbers and the evidence over what would just be enough."""

    name: str
    parameters: dict[str, float | str]
    strength: float


@dataclass(frozen=True)
class View:
    """Both sides under one motion and change of colours.

    Args:
        deployed: The car's pictures.
        motion: Where the content went.
        kernel: How it was interpolated.
        colors: How colours changed.
        predicted: What training's pictures become.
        mask: Pixels whose content training has too, ``(H, W)``.
        taps: The filter that is missing between prediction and the car's, on grey pictures.
        rest: What motion, colours and filter leave of the car's grey pictures, ``(N, H, W)``.
    """

    deployed: Tensor
    motion: Motion
    kernel: Kernel
    colors: Colors
    predicted: Tensor
    mask: Tensor
    taps: Tensor
    rest: Tensor

    @property
    def plain(self) -> float:
        """Grey variance that motion and colours leave, with the best gain and offset: a filter could be just that."""
        before, after = (side.mean(1)[:, self.mask].reshape(-1, 1) for side in (self.predicted, self.deployed))
        gain, offset = fit_gains(before, after)
        return float((after - gain * before - offset).square().mean())

    @property
    def filtered(self) -> float:
        """Grey variance that is left with a filter."""
        return _power(self.rest, self.mask)


def _power(residual: Tensor, mask: Tensor) -> float:
    return float(residual[..., mask].square().mean())


def _predict(trained: Tensor, deployed: Tensor, motion: Motion, kernel: Kernel, colors: Colors) -> Tensor:
    predicted = colors.apply(trained if motion == Motion() else warp(trained, motion, kernel))
    clipped = float(deployed.min()) >= 0 and float(deployed.max()) <= 255
    return predicted.clamp(0, 255) if clipped else predicted


def _look(trained: Tensor, deployed: Tensor, motion: Motion, kernel: Kernel, colors: Colors) -> View:
    predicted = _predict(trained, deployed, motion, kernel, colors)
    mask = motion.inside(trained.shape[-2], trained.shape[-1], margin=_RADIUS)
    taps, rest = fit_filter(predicted.mean(1), deployed.mean(1), mask, _RADIUS)
    return View(deployed, motion, kernel, colors, predicted, mask, taps, pad(rest, [_RADIUS] * 4))


def views(trained: Tensor, deployed: Tensor) -> tuple[list[View], float]:
    """The two sides brought together, with each kernel where content moved, and their correlation."""
    before, after = trained.mean(1), deployed.mean(1)
    motion, correlation = estimate_motion(before, after)
    stretch = max(map(abs, motion.stretch(*before.shape[-2:])))
    if max(abs(motion.dx), abs(motion.dy)) < MOVED and stretch < STRETCHED:
        motion = Motion()
    colors = fit_colors(*_colours(warp(trained, motion), deployed, motion))
    if motion == Motion():
        return [_look(trained, deployed, motion, "linear", colors)], correlation
    kernels: tuple[Kernel, ...] = ("linear", "cubic")
    return [_look(trained, deployed, polish(before, after, motion, k), k, colors) for k in kernels], correlation


def _colours(moved: Tensor, deployed: Tensor, motion: Motion) -> tuple[Tensor, Tensor]:
    """Block means of both sides, without blocks that the car's side clips."""
    low, high = (bound(deployed, (0, 2, 3), keepdim=True) for bound in (torch.amin, torch.amax))
    open_ended = ((deployed > low + 0.5) & (deployed < high - 0.5)).all(1)
    use = motion.inside(*deployed.shape[-2:]) & open_ended
    if float(use.double().mean()) < 0.1:
        use = motion.inside(*deployed.shape[-2:]).expand_as(open_ended)
    return pooled(moved, use), pooled(deployed, use)


def best_view(seen: list[View]) -> tuple[View, float]:
    """The view that explains most, and how much less a filter leaves than motion alone."""
    plain, filtered = (min(seen, key=key) for key in (lambda v: v.plain, lambda v: v.filtered))
    gain = plain.plain / max(filtered.filtered, 0.02)
    return (filtered if gain > FILTERED else plain), gain


def residual(view: View, gain: float) -> Tensor:
    """What is left of the car's grey pictures, ``(N, H, W)``, with a filter if there is one."""
    return view.rest if gain > FILTERED else (view.deployed - view.predicted).mean(1)


def color_findings(colors: Colors) -> Iterator[Finding]:
    """Causes that a change of colours names."""
    for cause in colors.causes:
        yield Finding(cause, _color_parameters(colors, cause), colors.evidence(cause))


def _color_parameters(colors: Colors, cause: str) -> dict[str, float | str]:
    if cause == "channel_order":
        return {"order": "".join("RGB"[channel] for channel in colors.order)}
    if cause == "rounding":
        return {"kind": "cut off"}
    if cause == "gamma":
        return {"gamma": colors.gamma}
    if cause == "gain_offset":
        numbers = {"gain": colors.gain, "offset": colors.offset}
        return {
            key if len(values) == 1 else f"{key}_{'RGB'[channel].lower()}": value
            for key, values in numbers.items()
            for channel, value in enumerate(values)
        }
    return {"read": colors.decoding.causes[cause]}


def geometry_findings(view: View, gain: float) -> Iterator[Finding]:
    """Shift, crop and resize filter: what moves content, and what changes its detail."""
    height, width = view.mask.shape
    motion = view.motion
    stretch = motion.stretch(height, width)
    detail = sharpness(view.taps)
    furthest = max(map(abs, stretch))
    uneven = jitter(view.predicted.mean(1), view.deployed.mean(1), view.mask) if motion != Motion() else 0.0
    even = JITTERED if furthest < CROPPED else ZOOMED_JITTER
    nearest = uneven > even
    corners = furthest < CROPPED and min(map(abs, stretch)) > STRETCHED
    if furthest >= CROPPED:
        yield Finding("crop", _crop(motion, height, width), furthest / CROPPED)
    filtered = gain > FILTERED and (detail > 1 or furthest < CROPPED)  # shrinking takes detail away by itself
    if nearest or corners or filtered:
        kind = "nearest" if nearest else "align_corners" if corners else "sharper" if detail > 1 else "smoother"
        strength = max(gain / FILTERED, uneven / even, furthest / STRETCHED if corners else 0.0)
        yield Finding("resize_filter", {"kind": kind, "sharpness": detail}, strength)
    # the nearest pixel lies up to half a pixel up and left of where it should
    by = max(abs(motion.dx), abs(motion.dy))
    own = nearest and 0 < motion.dx < 0.5 and 0 < motion.dy < 0.5
    if by > MOVED and not own:
        yield Finding("shift", {"dx": motion.dx, "dy": motion.dy}, by / MOVED)


def _crop(motion: Motion, height: int, width: int) -> dict[str, float | str]:
    rows, columns = motion.sources(height, width)
    half = 0.5 / motion.zoom_x, 0.5 / motion.zoom_y
    return {
        "kind": "letterbox" if min(motion.zoom_x, motion.zoom_y) < 1 else "crop",
        "left": float(columns[0]) + 0.5 - half[0],
        "right": float(columns[-1]) + 0.5 + half[0],
        "top": float(rows[0]) + 0.5 - half[1],
        "bottom": float(rows[-1]) + 0.5 + half[1],
        "zoom_x": motion.zoom_x,
        "zoom_y": motion.zoom_y,
    }


def rounding_finding(trained: Tensor, view: View) -> Finding | None:
    """Fewer levels than training has."""
    whole = bool((view.deployed - view.deployed.round()).abs().max() < 0.01)
    expected = view.predicted.round() if whole else trained[:, list(view.colors.order)]
    counts = [(_distinct(d), _distinct(e)) for d, e in zip(view.deployed.unbind(1), expected.unbind(1), strict=True)]
    levels, of = max(counts, key=lambda count: count[0] / count[1])
    share = max(levels / of, 1e-3)
    if share > FEWER_LEVELS:
        return None
    return Finding("rounding", {"kind": "fewer levels", "levels": levels, "expected": of}, FEWER_LEVELS / share)


def is_cut(finding: Finding, rounding: Finding) -> bool:
    """Whether an offset is no more than what cutting off to fewer levels takes away: up to a step, without a gain."""
    if finding.name != "gain_offset":
        return False
    step = float(rounding.parameters["expected"]) / float(rounding.parameters["levels"])
    numbers = {key: float(value) for key, value in finding.parameters.items() if not isinstance(value, str)}
    gains = [value for key, value in numbers.items() if key.startswith("gain")]
    offsets = [value for key, value in numbers.items() if key.startswith("offset")]
    return all(abs(gain - 1) < _NO_GAIN for gain in gains) and all(-step < offset < 1 for offset in offsets)


def _distinct(channel: Tensor) -> int:
    return len(np.unique(channel.round(decimals=2).numpy()))


@dataclass(frozen=True)
class _Codec:
    parameters: dict[str, float | str]
    run: Callable[[Tensor], Tensor]
    off_grid: int

    def __call__(self, levels: Tensor, shifted: bool = False) -> Tensor:
        by = self.off_grid if shifted else 0
        rolled = (levels.clamp(0, 255).round() / 255).roll((-by, -by), (2, 3))
        return (self.run(rolled) * 255).roll((by, by), (2, 3))


def _codecs(channels: int) -> Iterator[_Codec]:
    if channels == 3:
        yield _Codec({"kind": "nv12"}, nv12, 1)
    try:
        import PIL  # noqa: F401
    except ImportError:
        return
    for quality in _QUALITIES:
        yield _Codec({"kind": "jpeg", "quality": quality}, partial(jpeg, quality=quality), 4)


def compression_finding(trained: Tensor, view: View, gain: float) -> tuple[Finding, Tensor] | None:
    """Traces of JPEG's or NV12's grid, and training's pictures after the compression that explains the car's best.

    Two kinds of evidence: what is missing in the car's pictures on the codec's grid and not on others; and that
    training's pictures explain the car's better after compression on that grid than on one that is off by half a block.
    """
    rows, columns = (_whole_blocks(view.mask.any(axis)) for axis in (1, 0))
    shown = view.deployed[..., rows, columns]
    blocks = blockiness(shown.mean(1)) - blockiness(trained[..., rows, columns].mean(1))
    halved = chroma_steps(shown) if trained.shape[1] == 3 else 1.0
    strength = max(blocks / BLOCKS, (1 - halved) / (1 - HALF_CHROMA))
    few = View(**{**vars(view), "deployed": view.deployed[:_FEW]})
    best = min(_codecs(trained.shape[1]), key=lambda codec: _left(few, codec(trained[:_FEW]), gain), default=None)
    parameters: dict[str, float | str] = {"kind": "nv12" if halved < HALF_CHROMA / 2 else "jpeg"}
    compressed = trained
    if best is not None:
        again = _repolished(view, best(trained))
        aligned, off_grid = (_left(again, best(trained, shifted), gain) for shifted in (False, True))
        if aligned < _left(view, trained, gain):
            strength = max(strength, (off_grid / max(aligned, 1e-3) - 1) / (RESYNTHESIS - 1))
            parameters, compressed = best.parameters, best(trained)
    return (Finding("compression", parameters, strength), compressed) if strength >= 1 else None


def _whole_blocks(inside: Tensor) -> slice:
    """From the first to the last that is inside, in whole blocks of 8: the edge of a letterbox lies on some grid."""
    places = inside.nonzero()[:, 0]
    return slice(-(-int(places[0]) // 8) * 8, (int(places[-1]) + 1) // 8 * 8)


def _repolished(view: View, compressed: Tensor) -> View:
    """The view with the motion that fits compressed pictures: JPEG takes detail away, which pulls a motion along."""
    if view.motion == Motion():
        return view
    motion = polish(view.colors.apply(compressed).mean(1), view.deployed.mean(1), view.motion, view.kernel)
    return View(**{**vars(view), "motion": motion})


def _left(view: View, source: Tensor, gain: float) -> float:
    """What is left of the car's pictures when ``source`` stands for training's, with the view's filter if any."""
    predicted = _predict(source, view.deployed, view.motion, view.kernel, view.colors)
    if gain > FILTERED:
        padded = pad(predicted.flatten(0, 1)[:, None], [_RADIUS] * 4, mode="replicate")
        predicted = conv2d(padded, view.taps[None, None]).reshape(predicted.shape)
    return _power(view.deployed - predicted, view.mask)


def noise_finding(residual: Tensor, view: View, channels: int, *, even: bool = False) -> Finding | None:
    """A residual ``(N, H, W)`` that is white and as strong where nothing happens.

    ``even`` asks that it is hardly stronger elsewhere: what a compression leaves that is not quite the car's, is.
    """
    power, correlation = noise_power(residual, view.predicted.mean(1), view.mask)
    if power < NOISE or abs(correlation) > WHITE or (even and power < EVEN * _power(residual, view.mask)):
        return None
    return Finding("noise", {"std": (power * channels) ** 0.5}, power / NOISE)
