"""Which change of colours turns one set of pictures into another: a search over the ones that cars get wrong.

Channel order, BT.601 for BT.709, full for limited range, gain and offset, gamma, cut off instead of rounded: alone and
two at a time, on block means of registered pictures. Colours are levels of 8 bits, ``(P, C)`` in fp64.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lightning_robust.deployment.fingerprint.filters import fit_gains, fit_gamma
from lightning_robust.deployment.pixels.operations import BT601, BT709

_ROWS = 6000
# A simpler explanation is taken where it costs no more than a twentieth of what is left anyway, and a tenth of a level.
_SLACK, _TOLERANCE = 1.05, 0.1**2
CUT = 0.5
"""Levels that cutting off takes away on average."""


@dataclass(frozen=True)
class Decoding:
    """A linear map of colours that comes from a wrong reading of YCbCr.

    Args:
        causes: Cause -> what was taken for what.
        matrix: ``(C, C)``.
        offset: ``(C,)``.
    """

    causes: dict[str, str]
    matrix: Tensor
    offset: Tensor


@dataclass(frozen=True)
class Colors:
    """One explanation of how colours changed: decoded, cut off, reordered, to a power, then gain and offset.

    Args:
        decoding: The wrong reading, or none.
        order: Which channel comes first, second, ...
        cut: Whether levels were cut off instead of rounded before.
        gamma: The power.
        gain: One for all channels, or one each, after the power.
        offset: Likewise, in levels.
        free: Number of fitted numbers.
        left: Mean squared difference that is left, in levels squared.
        rivals: Cause -> the least that is left by an explanation without it that is no more complicated.
    """

    decoding: Decoding
    order: tuple[int, ...]
    cut: bool = False
    gamma: float = 1.0
    gain: tuple[float, ...] = (1.0,)
    offset: tuple[float, ...] = (0.0,)
    free: int = 0
    left: float = 0.0
    rivals: dict[str, float] = field(default_factory=dict)

    @property
    def causes(self) -> tuple[str, ...]:
        """Names of what differs."""
        flags = {
            "channel_order": self.order != tuple(range(len(self.order))),
            "rounding": self.cut,
            "gamma": self.gamma != 1.0,
            "gain_offset": any(gain != 1.0 for gain in self.gain) or any(self.offset),
        }
        return (*self.decoding.causes, *(name for name, on in flags.items() if on))

    @property
    def complexity(self) -> tuple[int, int]:
        """Causes and fitted numbers together, then causes: a known cause is as much as a number."""
        return len(self.causes) + self.free, len(self.causes)

    def apply(self, images: Tensor) -> Tensor:
        """What the deployed side makes of pictures ``(N, C, H, W)``."""
        colours = _recolored(images.movedim(1, -1), self.decoding, self.order, self.cut)
        if self.gamma != 1.0:
            colours = 255 * (colours.clamp(0, 255) / 255) ** self.gamma
        return (colours * colours.new_tensor(self.gain) + colours.new_tensor(self.offset)).movedim(-1, 1)

    def evidence(self, cause: str) -> float:
        """What would be left without a cause, over what may be left with it: above 1 it is needed."""
        return self.rivals[cause] / (self.left * _SLACK + _TOLERANCE)


def _recolored(colours: Tensor, decoding: Decoding, order: tuple[int, ...], cut: bool) -> Tensor:
    return (colours @ decoding.matrix.T + decoding.offset - (CUT if cut else 0.0))[..., list(order)]


def fit_colors(trained: Tensor, deployed: Tensor) -> Colors:
    """The simplest explanation of how colours changed, of at most two causes.

    Args:
        trained: Colours ``(P, C)`` with one or three channels.
        deployed: Those of the same places.
    """
    if len(trained) > _ROWS:
        some = torch.linspace(0, len(trained) - 1, _ROWS).long()
        trained, deployed = trained[some], deployed[some]
    found = [colors for colors in _candidates(trained, deployed) if len(colors.causes) <= 2]
    enough = min(colors.left for colors in found) * _SLACK + _TOLERANCE
    chosen = min((c for c in found if c.left <= enough), key=lambda c: (c.complexity, c.left))
    no_worse = [c for c in found if c.complexity <= chosen.complexity]
    rivals = {
        cause: min((c.left for c in no_worse if cause not in c.causes), default=chosen.left) for cause in chosen.causes
    }
    return Colors(**{**vars(chosen), "rivals": rivals})


def _candidates(trained: Tensor, deployed: Tensor) -> Iterator[Colors]:
    channels = trained.shape[1]
    for tone in _curved(trained, deployed):
        yield Colors(decodings(channels)[0], tuple(range(channels)), **tone)
    for decoding in decodings(channels):
        for order in itertools.permutations(range(channels)):
            for cut in (False, True):
                before = _recolored(trained, decoding, order, cut)
                for tone in _tones(before, deployed):
                    yield Colors(decoding, order, cut, **tone)


def _tones(before: Tensor, deployed: Tensor) -> Iterator[dict[str, Any]]:
    """Fits of gain, offset, gamma, and of gamma and a gain, with what each leaves."""
    yield {"left": _power(deployed - before)}
    yield from _linear(before, deployed)
    gamma = fit_gamma(before, deployed)
    curve = 255 * (before.clamp(0, 255) / 255) ** gamma
    yield {"gamma": gamma, "free": 1, "left": _power(deployed - curve)}


def _linear(before: Tensor, deployed: Tensor) -> Iterator[dict[str, Any]]:
    gain = float((before * deployed).sum() / before.square().sum().clamp(min=1e-9))
    yield {"gain": (gain,), "free": 1, "left": _power(deployed - gain * before)}
    offset = float((deployed - before).mean())
    yield {"offset": (offset,), "free": 1, "left": _power(deployed - before - offset)}
    gains, offsets = fit_gains(before, deployed)
    yield {
        "gain": tuple(gains.tolist()),
        "offset": tuple(offsets.tolist()),
        "free": 2 * len(gains),
        "left": _power(deployed - gains * before - offsets),
    }


def _curved(before: Tensor, deployed: Tensor) -> Iterator[dict[str, Any]]:
    """A power, and gain and offset after it: the best of the powers, on a grid that is refined."""
    for kind in range(3):
        low, high = 0.5, 2.0
        for _ in range(4):
            gammas = torch.linspace(low, high, 9).tolist()
            fits = [list(_linear(255 * (before.clamp(0, 255) / 255) ** g, deployed))[kind] for g in gammas]
            best = min(range(9), key=lambda i: fits[i]["left"])
            low, high = gammas[max(best - 1, 0)], gammas[min(best + 1, 8)]
        yield {**fits[best], "gamma": gammas[best], "free": fits[best]["free"] + 1}


def _power(values: Tensor) -> float:
    return float(values.square().mean())


def decodings(channels: int) -> list[Decoding]:
    """Nothing wrong, a wrong matrix, a wrong range, and one of each."""
    if channels == 1:
        widened = torch.tensor([[255 / 219]]).double(), torch.tensor([-16 * 255 / 219]).double()
        narrowed = torch.tensor([[219 / 255]]).double(), torch.tensor([16.0]).double()
        ranges = [Decoding({"color_range": _FULL}, *widened), Decoding({"color_range": _LIMITED}, *narrowed)]
        return [Decoding({}, torch.eye(1).double(), torch.zeros(1).double()), *ranges]
    none = torch.zeros(3).double()
    matrices = [
        Decoding({}, torch.eye(3).double(), none),
        Decoding({"color_matrix": "BT.601 read as BT.709"}, BT709.inverse() @ BT601, none),
        Decoding({"color_matrix": "BT.709 read as BT.601"}, BT601.inverse() @ BT709, none),
    ]
    ranges = [_wrong_range(standard, wide) for wide in (True, False) for standard in (BT601, BT709)]
    return matrices + ranges + [_both(m, r) for m in matrices[1:] for r in (ranges[0], ranges[2])]


_FULL, _LIMITED = "full range read as limited", "limited range read as full"


def _wrong_range(standard: Tensor, wide: bool) -> Decoding:
    """Full range read as limited (``wide``: contrast grows), or limited read as full."""
    gains = torch.tensor([255 / 219, 255 / 224, 255 / 224]).double()
    inverse = standard.inverse()
    black = inverse @ torch.tensor([16.0, 0, 0]).double()
    if wide:
        return Decoding({"color_range": _FULL}, inverse @ (gains[:, None] * standard), -black * 255 / 219)
    return Decoding({"color_range": _LIMITED}, inverse @ (standard / gains[:, None]), black)


def _both(first: Decoding, then: Decoding) -> Decoding:
    matrix, offset = then.matrix @ first.matrix, then.matrix @ first.offset + then.offset
    return Decoding(first.causes | then.causes, matrix, offset)
