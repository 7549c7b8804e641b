"""All detectors in their order: from both sides' levels to the evidence of what differs, and what it leaves."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_robust.deployment.fingerprint.chroma import chroma_evidence
from lightning_robust.deployment.fingerprint.colours import Colors
from lightning_robust.deployment.fingerprint.compression import compression_evidence
from lightning_robust.deployment.fingerprint.detectors import (
    Evidence,
    color_evidence,
    color_parameters,
    geometry_evidence,
    noise_evidence,
)
from lightning_robust.deployment.fingerprint.doubt import doubt_view
from lightning_robust.deployment.fingerprint.grey import greyed
from lightning_robust.deployment.fingerprint.levels import find_gains
from lightning_robust.deployment.fingerprint.overlay import uncovered_view
from lightning_robust.deployment.fingerprint.rounding import (
    coarse_under_noise,
    cut_under_noise,
    is_offset_of_cut,
    rounding_evidence,
)
from lightning_robust.deployment.fingerprint.view import View, best_view

RELATED = 0.5  # correlation
_COMPRESSED = 0.2  # variance in levels squared from which traces of compression are searched; rounding leaves 0.08
_CLEAR = 1.5  # strength of evidence that precedes weaker evidence
_GAIN = 10.0  # strength of the evidence of a gain that is read off the grid of values
_STEPS = 0.4  # standard deviation in steps that missing levels leave at most; an even spread has 0.29
_NAMED = 3  # causes at most
_TONES = ("rounding", "gain_offset", "gamma")  # causes that half a level would be taken for


@dataclass(frozen=True)
class Findings:
    """What was found between two sides.

    Args:
        evidence: At most three, each above its threshold; clear evidence precedes weak evidence.
        correlation: Of the registered pictures; below :data:`RELATED` they do not show the same content.
        unexplained: Root mean square that is left, in levels.
        doubt: On what it depends what is left, if on something, which shows that the evidence is not all.
    """

    evidence: tuple[Evidence, ...]
    correlation: float
    unexplained: float = 0.0
    doubt: str = ""


def find_causes(trained: Tensor, deployed: Tensor) -> Findings:
    """The evidence of what the deployed side does differently.

    Args:
        trained: Training's pictures in levels, ``(N, C, H, W)`` in fp64.
        deployed: The deployed side's, in the same shape.
    """
    gains = find_gains(trained, deployed)
    if gains is not None:
        deployed = (deployed - gains[1]) / gains[0]
    found: list[Evidence] = []
    grey = greyed(trained, deployed)
    if grey is not None:
        found, trained, deployed = [grey[0]], grey[1], grey[2]
    view, correlation = best_view(trained, deployed)
    if correlation < RELATED:
        return Findings((), correlation)
    cover = uncovered_view(trained, view)
    if cover is not None:
        found, view = [*found, cover[0]], cover[1]
    found, view = _add_compression(found, trained, view)
    found, left = _gather_evidence(found, trained, view)
    if gains is not None:
        found = [_gain_evidence(*gains, view.colors), *(e for e in found if e.name != "gain_offset")]
    doubt = doubt_view(view)
    if doubt:
        found = [replace(e, strength=min(e.strength, 1.0)) for e in found]
    return Findings(_strongest(found), correlation, left**0.5, doubt)


def _add_compression(found: list[Evidence], trained: Tensor, view: View) -> tuple[list[Evidence], View]:
    """The evidence with that of a compression, and the view of the pictures that were compressed alike.

    A filter of the colours alone wins over a codec that reproduces less.
    """
    if view.unfiltered_error <= _COMPRESSED:
        return found, view
    chroma, (traces, compressed) = chroma_evidence(view), compression_evidence(trained, view)
    beside = best_view(compressed, view.deployed)[0] if traces else view
    if chroma is not None and view.error * (1 - chroma.explains) < beside.error:
        return [*found, chroma], view
    return [*found, *traces], beside


def _gather_evidence(found: list[Evidence], trained: Tensor, view: View) -> tuple[list[Evidence], float]:
    """The evidence with that of colours, geometry, rounding and noise, and the mean square that is left."""
    geometry, colors = geometry_evidence(view, trained), list(color_evidence(view.colors))
    left = view.error * math.prod(1 - e.explains for e in [*geometry, *found])
    step, rounding = 0.0, rounding_evidence(trained, view)
    if rounding is not None:
        step = float(rounding.parameters["expected"]) / float(rounding.parameters["levels"])
        left -= step**2 / 12
    elif (coarse := coarse_under_noise(trained, view)) is not None:
        rounding, left, view = coarse[0], left - view.error + coarse[1].error, coarse[1]
    if rounding is not None:
        colors = [e for e in colors if e.name != "rounding" and not is_offset_of_cut(e, rounding)]
        found = [*found, rounding]
    noise = _noise_beside(found, view, trained.shape[1], step)
    named = _add_hidden_cut([*colors, *geometry, *found], view, noise)
    if noise is None:
        return named, max(left, 0.0)
    left -= float(noise.parameters["std"]) ** 2  # it cannot be predicted, but it is explained
    return [*named, noise], 0.0 if left < 0.1 * view.error else left


def _noise_beside(found: list[Evidence], view: View, channels: int, step: float) -> Evidence | None:
    """The evidence of noise that is more than a compression or steps of this many levels leave."""
    noise = noise_evidence(view, channels, even=any(e.name == "compression" for e in found))
    return None if noise is None or float(noise.parameters["std"]) <= step * _STEPS else noise


def _add_hidden_cut(named: list[Evidence], view: View, noise: Evidence | None) -> list[Evidence]:
    """The evidence with that of half a level which noise or a codec hid, where no other tone was found."""
    hidden = noise is not None or any(e.name == "compression" for e in named)
    if not hidden or any(e.name in _TONES for e in named):
        return named
    cut = cut_under_noise(view, view.error**0.5 if noise is None else float(noise.parameters["std"]))
    return named if cut is None else [*named, cut]


def _gain_evidence(gains: Tensor, offsets: Tensor, colors: Colors) -> Evidence:
    """The gain and offset after the deployed side's rounding, with what colours have besides."""
    gain = gains.flatten() * gains.new_tensor(colors.gain)
    offset = offsets.flatten() + gains.flatten() * gains.new_tensor(colors.offset)
    whole = replace(colors, gain=tuple(gain.tolist()), offset=tuple(torch.broadcast_to(offset, gain.shape).tolist()))
    return Evidence("gain_offset", color_parameters(whole, "gain_offset"), _GAIN)


def _strongest(evidence: list[Evidence]) -> tuple[Evidence, ...]:
    """At most three, one of each name; clear evidence precedes weak evidence.

    A resize of another convention is a filter and a shift by less than a pixel: together they are one of the three.
    """
    by_name: dict[str, Evidence] = {}
    for e in evidence:
        by_name.setdefault(e.name, e)
    ordered = sorted(by_name.values(), key=lambda e: e.strength < _CLEAR)
    most = _NAMED + ({"shift", "resize_filter"} <= {e.name for e in ordered[: _NAMED + 1]})
    return tuple(ordered[:most])
