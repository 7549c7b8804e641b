"""Colours that lost detail, or lie beside their brightness: chroma planes that were shrunk, moved or resized alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_robust.deployment.fingerprint.detectors import Evidence
from lightning_robust.deployment.fingerprint.filters import fit_filter, fit_gains, mean_square, sharpness
from lightning_robust.deployment.fingerprint.view import DETAIL_LIMIT, FILTER_LIMIT, View
from lightning_robust.deployment.pixels.operations import BT601

_RADIUS = 3
_TAPS = (2 * _RADIUS + 1) ** 2
_ROUNDING = 0.08  # levels squared; rounding of training's colours passes for lost detail of as much
_SHARPENED = 0.03  # the same beside a filter, for the sum of its taps' squares; bicubic and Lanczos leave 0.02
_WORTH = 1.25  # error of the chroma planes without the filter over the error with it
_ASIDE = 0.1  # pixels


def chroma_evidence(view: View) -> Evidence | None:
    """Evidence of a filter that colours went through and brightness did not.

    One filter for both chroma planes is fitted after motion, colours and the filter of brightness. It counts if it
    explains more than its taps would by chance and more than rounding, and changes detail or moves the planes.

    Args:
        view: Of both sides.
    """
    if view.deployed.shape[1] != 3:
        return None
    predicted, deployed = (_planes_of(side) for side in (view.filtered, view.deployed))
    taps, rest = fit_filter(predicted, deployed, view.mask, _RADIUS)
    inner = view.mask[_RADIUS:-_RADIUS, _RADIUS:-_RADIUS]
    left = mean_square(rest[:, inner])
    before, after = (planes[:, view.mask].reshape(-1, 1) for planes in (predicted, deployed))
    gain, offset = fit_gains(before, after)
    plain = mean_square(after - gain * before - offset)
    strength = (plain - left) / _least_explained(view, left, before.numel())
    (dx, dy), detail = _centre(taps), sharpness(taps / taps.sum())
    aside, change = max(abs(dx), abs(dy)), abs(math.log(max(detail, 1e-3)))
    if strength < 1 or not 0.5 < float(taps.sum()) < 2 or max(aside / _ASIDE, change / DETAIL_LIMIT) < 1:
        return None
    kind = "siting" if aside > _ASIDE else "chroma" if detail < 1 else "sharper chroma"
    parameters: dict[str, float | str] = {"kind": kind, "dx": dx, "dy": dy, "sharpness": detail}
    return Evidence("compression", parameters, strength, _share(view, plain - left))


def _least_explained(view: View, left: float, values: int) -> float:
    """Levels squared that a filter has to explain of so many values, of which it leaves some."""
    rounding = _ROUNDING
    if view.needs_filter:  # one that sharpens makes more of training's rounding
        rounding = max(rounding, _SHARPENED * float(view.taps.square().sum()))
    return max(rounding, (_WORTH - 1) * left, FILTER_LIMIT * _TAPS / max(values, 1) * left)


def _planes_of(images: Tensor) -> Tensor:
    """Both chroma planes ``(2 N, H, W)`` of pictures ``(N, 3, H, W)``."""
    return torch.einsum("ij,njhw->inhw", BT601[1:], images).flatten(0, 1)


def _centre(taps: Tensor) -> tuple[float, float]:
    """How far a filter moves content, right and down, in pixels."""
    places = torch.arange(-_RADIUS, _RADIUS + 1, dtype=taps.dtype)
    total = taps.sum()
    return -float((taps.sum(0) * places).sum() / total), -float((taps.sum(1) * places).sum() / total)


def _share(view: View, explained: float) -> float:
    """The share of the squared difference of red, green and blue that an error of the chroma planes makes."""
    back = BT601.inverse()[:, 1:]
    weight = float(back.square().sum()) / 3  # levels squared of a channel for one of a plane
    return min(explained * weight / max(view.error, 1e-9), 1.0)
