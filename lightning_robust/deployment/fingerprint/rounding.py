"""Levels that the deployed side lost: cut off instead of rounded, or cut to fewer bits, with or without noise above.

Pictures are levels of 8 bits, ``(N, C, H, W)`` in fp64.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from torch import Tensor

from lightning_robust.deployment.fingerprint.colours import CUT
from lightning_robust.deployment.fingerprint.detectors import Evidence, is_slight_gain
from lightning_robust.deployment.fingerprint.motion import Motion
from lightning_robust.deployment.fingerprint.view import View

_FEWER_LEVELS = 0.7
_CLIPPING = 4.0  # standard deviations of noise from black and white within which it is clipped
_CUT = 0.1  # levels that the mean of what is left may be from half a level
_ERRORS = 10.0  # standard errors that what is told is; pixels beside each other are not independent
_LEAST = 0.3  # height of the teeth over the step; a gain and a curve of colours change it
_STEPS = (16, 8, 4)  # levels to a step that 4, 5 and 6 bits have


def rounding_evidence(trained: Tensor, view: View) -> Evidence | None:
    """Fewer levels than training has."""
    whole = bool((view.deployed - view.deployed.round()).abs().max() < 0.01)
    expected = view.predicted.round() if whole else trained[:, list(view.colors.order)]
    counts = [
        (_count_levels(d), _count_levels(e)) for d, e in zip(view.deployed.unbind(1), expected.unbind(1), strict=True)
    ]
    levels, of = max(counts, key=lambda count: count[0] / count[1])
    share = max(levels / of, 1e-3)
    if share > _FEWER_LEVELS:
        return None
    return Evidence("rounding", {"kind": "fewer levels", "levels": levels, "expected": of}, _FEWER_LEVELS / share)


def _count_levels(channel: Tensor) -> int:
    return len(np.unique(channel.round(decimals=2).numpy()))


def cut_under_noise(view: View, std: float) -> Evidence | None:
    """Levels cut off instead of rounded, where noise or a codec hides half a level from a fit of colours.

    The mean of what is left tells it apart from nothing: noise has none, away from black and white.
    """
    clear = (view.predicted > _CLIPPING * std) & (view.predicted < 255 - _CLIPPING * std) & view.mask
    rest = (view.deployed - view.filtered)[clear]
    if len(rest) < 2 or abs(float(rest.mean()) + CUT) > _CUT:
        return None
    strength = CUT * len(rest) ** 0.5 / (_ERRORS * max(float(rest.std()), 1e-9))
    return Evidence("rounding", {"kind": "cut off"}, strength) if strength > 1 else None


def coarse_under_noise(trained: Tensor, view: View) -> tuple[Evidence, View] | None:
    """Levels cut to fewer bits before noise filled the gaps between them, and the view with what the cut took restored.

    Over training's levels the mean of what is left has the teeth of the cut, ``floor(v / step) * step - v``. It takes
    training's levels pixel by pixel, so content must not have moved nor been filtered, nor channels mixed.
    """
    if view.motion != Motion() or view.needs_filter or view.colors.decoding.causes:
        return None
    levels = trained[:, list(view.colors.order)].round()
    rest = view.deployed - view.predicted
    fits = [(*_fit_teeth(rest, levels, step, view.mask), step) for step in _STEPS]
    errors, height, step = max(fits)
    if errors < _ERRORS or not _LEAST < height < 1 / _LEAST:
        return None
    parameters: dict[str, float | str] = {"kind": "fewer levels", "levels": 256 // step, "expected": 256}
    restored = view.deployed - height * _teeth(levels, step)
    return Evidence("rounding", parameters, errors / _ERRORS), replace(view, deployed=restored)


def _fit_teeth(rest: Tensor, levels: Tensor, step: int, mask: Tensor) -> tuple[float, float]:
    """How high the teeth are in what is left, in standard errors and in multiples of the step."""
    teeth, rest = (side[..., mask] for side in (_teeth(levels, step), rest))
    rest = rest - rest.mean()
    height = float((teeth * rest).mean() / teeth.square().mean().clamp(min=1e-9))
    error = float((rest - height * teeth).std() / teeth.square().sum().sqrt().clamp(min=1e-9))
    return height / max(error, 1e-9), height


def _teeth(levels: Tensor, step: int) -> Tensor:
    """What a cut to whole steps takes away of each level, less what it takes in the mean."""
    teeth = levels.remainder(step).neg()
    return teeth - teeth.mean()


def is_offset_of_cut(evidence: Evidence, rounding: Evidence) -> bool:
    """Whether an offset is no more than a cut to fewer levels takes away: up to a step, without a gain."""
    step = float(rounding.parameters["expected"]) / float(rounding.parameters["levels"])
    return is_slight_gain(evidence, -step, 1)
