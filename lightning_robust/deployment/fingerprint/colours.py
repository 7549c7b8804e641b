"""Colour changes: a search for the simplest of the usual mistakes that maps one set of colours to another.

Channel order, one of BT.601, BT.709 and BT.2020 for another, full for limited range, gain and offset, gamma, cut off
instead of rounded: alone and up to three at a time, on block means of registered pictures. Colours are levels of 8
bits, ``(P, C)`` in fp64.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lightning_robust.deployment.fingerprint.blocks import Blocks
from lightning_robust.deployment.fingerprint.filters import fit_gains, fit_gamma, mean_square
from lightning_robust.deployment.pixels.operations import BT601, BT709, BT2020

# A simpler explanation wins if its error is at most so far above the smallest: as a share of what noise leaves and of
# the rest, and in levels squared.
_CHANCE, _SLACK, _TOLERANCE = 1.03, 1.4, 0.12**2
_EFFECT = 0.3  # levels that a tone curve changes; less is no cause of its own
_CAUSES = 3
_STARTS, _CURVED = 8, 3  # readings and orders that are tried with tones, and with a power before them
CUT = 0.5
"""Levels that cutting off takes away on average."""


@dataclass(frozen=True)
class Decoding:
    """A linear map of colours that comes from a wrong reading of YCbCr.

    Args:
        causes: Cause -> the mistake, e.g. "BT.601 read as BT.709".
        matrix: ``(C, C)``.
        offset: ``(C,)``.
    """

    causes: dict[str, str]
    matrix: Tensor
    offset: Tensor


@dataclass(frozen=True)
class Colors:
    """One explanation of a colour change: decoding, cut, channel order, power, then gain and offset.

    Args:
        decoding: The wrong reading, or none.
        order: The source of each channel.
        cut: Whether levels were cut off instead of rounded before.
        gamma: The power.
        gain: One for all channels, or one each, after the power.
        offset: One for all channels, or one each, in levels.
        free: Number of fitted numbers.
        error: Mean squared difference after it, in levels squared.
        noise: The part of the error that noise makes.
        rivals: Cause -> the smallest error of an explanation without it that is no more complicated.
    """

    decoding: Decoding
    order: tuple[int, ...]
    cut: bool = False
    gamma: float = 1.0
    gain: tuple[float, ...] = (1.0,)
    offset: tuple[float, ...] = (0.0,)
    free: int = 0
    error: float = 0.0
    noise: float = 0.0
    rivals: dict[str, float] = field(default_factory=dict)

    @property
    def causes(self) -> tuple[str, ...]:
        """Names of the differences."""
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

    def recolor(self, colours: Tensor) -> Tensor:
        """Colours ``(..., C)`` after decoding, cut and channel order."""
        decoded = colours @ self.decoding.matrix.T + self.decoding.offset - (CUT if self.cut else 0.0)
        return decoded[..., list(self.order)]

    def apply(self, images: Tensor) -> Tensor:
        """The deployed side's pictures for ``(N, C, H, W)``."""
        colours = self.recolor(images.movedim(1, -1))
        if self.gamma != 1.0:
            colours = _raise_to(self.gamma, colours)
        return (colours * colours.new_tensor(self.gain) + colours.new_tensor(self.offset)).movedim(-1, 1)

    def evidence(self, cause: str) -> float:
        """The error without a cause, over the largest error that is accepted with it: above 1 the cause is needed."""
        return self.rivals[cause] / self.accepted

    @property
    def accepted(self) -> float:
        """The largest error of an explanation that is as good."""
        noise = min(self.noise, self.error)
        return noise * _CHANCE + (self.error - noise) * _SLACK + _TOLERANCE


def fit_colors(blocks: Blocks) -> Colors:
    """The simplest explanation of a colour change, with at most three causes."""
    trained, deployed = blocks.trained, blocks.deployed
    found = (replace(colors, noise=blocks.noise) for colors in _candidates(trained, deployed))
    candidates = [colors for colors in found if _is_worth_naming(colors, trained)]
    accepted = min(candidates, key=lambda c: c.error).accepted
    simplest = min((c for c in candidates if c.error <= accepted), key=lambda c: (c.complexity, c.error))
    return replace(simplest, rivals={cause: _rival_error(simplest, cause, candidates) for cause in simplest.causes})


def _is_worth_naming(colors: Colors, trained: Tensor) -> bool:
    """Whether gains are possible, and each of a few causes changes more than the measurement can be wrong by."""
    if len(colors.causes) > _CAUSES or min(colors.gain) <= 0:
        return False
    curve = _raise_to(colors.gamma, trained)
    if colors.gamma != 1.0 and mean_square(curve - trained) < _EFFECT**2:
        return False
    line = curve * curve.new_tensor(colors.gain) + curve.new_tensor(colors.offset)
    return len(colors.causes) == 1 or "gain_offset" not in colors.causes or mean_square(line - curve) > _EFFECT**2


def _rival_error(explanation: Colors, cause: str, candidates: list[Colors]) -> float:
    """The smallest error of the candidates without a cause that are no more complicated than the explanation."""
    rivals = (c.error for c in candidates if c.complexity <= explanation.complexity and cause not in c.causes)
    return min(rivals, default=explanation.error)


def _candidates(trained: Tensor, deployed: Tensor) -> Iterator[Colors]:
    starts = sorted(_starts(trained, deployed), key=lambda start: start.error)
    plain = starts.index(min(starts, key=lambda start: (start.complexity, start.error)))
    starts = [starts.pop(plain), *starts[:_STARTS]]
    for start, cut in itertools.product(starts, (False, True)):
        start = replace(start, cut=cut)
        yield from _tones(start, start.recolor(trained), deployed)
    for start in starts[: 1 + _CURVED]:
        yield from _curved_tones(start, start.recolor(trained), deployed)


def _starts(trained: Tensor, deployed: Tensor) -> Iterator[Colors]:
    """Readings and orders, with the error that the best parabola for each channel leaves."""
    channels = trained.shape[1]
    for decoding, order in itertools.product(decodings(channels), itertools.permutations(range(channels))):
        start = Colors(decoding, order)
        colours = start.recolor(trained) / 255
        basis = torch.stack([torch.ones_like(colours), colours, colours.square()], -1).transpose(0, 1)
        values = deployed.T[..., None]
        gram = basis.transpose(1, 2) @ basis + 1e-9 * torch.eye(3).double()
        rest = values - basis @ torch.linalg.solve(gram, basis.transpose(1, 2) @ values)
        yield replace(start, error=mean_square(rest))


def _tones(start: Colors, colours: Tensor, deployed: Tensor) -> Iterator[Colors]:
    """An explanation as it is, with gain and offset, and with a power."""
    yield replace(start, error=mean_square(deployed - colours))
    yield from _linear_tones(start, colours, deployed)
    gamma = fit_gamma(colours, deployed)
    yield replace(start, gamma=gamma, free=1, error=mean_square(deployed - _raise_to(gamma, colours)))


def _linear_tones(start: Colors, colours: Tensor, deployed: Tensor) -> Iterator[Colors]:
    """An explanation with a gain, with an offset, and with both for each channel."""
    return (fit(start, colours, deployed) for fit in (_fit_gain, _fit_offset, _fit_line))


def _fit_gain(start: Colors, colours: Tensor, deployed: Tensor) -> Colors:
    gain = float((colours * deployed).sum() / colours.square().sum().clamp(min=1e-9))
    return replace(start, gain=(gain,), free=1, error=mean_square(deployed - gain * colours))


def _fit_offset(start: Colors, colours: Tensor, deployed: Tensor) -> Colors:
    offset = float((deployed - colours).mean())
    return replace(start, offset=(offset,), free=1, error=mean_square(deployed - colours - offset))


def _fit_line(start: Colors, colours: Tensor, deployed: Tensor) -> Colors:
    gains, offsets = fit_gains(colours, deployed)
    error = mean_square(deployed - gains * colours - offsets)
    return replace(start, gain=tuple(gains.tolist()), offset=tuple(offsets.tolist()), free=2 * len(gains), error=error)


def _curved_tones(start: Colors, colours: Tensor, deployed: Tensor) -> Iterator[Colors]:
    """An explanation with a power before each of the linear tones, from a grid of powers that is refined."""
    for fit in (_fit_gain, _fit_offset, _fit_line):
        low, high = 0.5, 2.0
        for _ in range(4):
            gammas = torch.linspace(low, high, 9).tolist()
            fits = [fit(start, _raise_to(g, colours), deployed) for g in gammas]
            best = min(range(9), key=lambda i: fits[i].error)
            low, high = gammas[max(best - 1, 0)], gammas[min(best + 1, 8)]
        yield replace(fits[best], gamma=gammas[best], free=fits[best].free + 1)


def _raise_to(gamma: float, colours: Tensor) -> Tensor:
    curve: Tensor = 255 * (colours.clamp(0, 255) / 255) ** gamma
    return curve


def decodings(channels: int) -> list[Decoding]:
    """The right reading, a wrong matrix, a wrong range, and both."""
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
    wide = [
        Decoding({"color_matrix": f"{written} read as {read}"}, STANDARDS[read].inverse() @ STANDARDS[written], none)
        for written, read in itertools.permutations(STANDARDS, 2)
        if "BT.2020" in (written, read)
    ]
    ranges = [_misread_range(standard, wide) for wide in (True, False) for standard in (BT601, BT709)]
    return matrices + wide + ranges + [_chain(m, r) for m in matrices[1:] for r in (ranges[0], ranges[2])]


STANDARDS = {"BT.601": BT601, "BT.709": BT709, "BT.2020": BT2020}
"""The matrices from RGB to YCbCr by the names that a fingerprint has for them."""
_FULL, _LIMITED = "full range read as limited", "limited range read as full"


def _misread_range(standard: Tensor, wide: bool) -> Decoding:
    """Full range read as limited (``wide``: contrast grows), or limited read as full."""
    gains = torch.tensor([255 / 219, 255 / 224, 255 / 224]).double()
    inverse = standard.inverse()
    black = inverse @ torch.tensor([16.0, 0, 0]).double()
    if wide:
        return Decoding({"color_range": _FULL}, inverse @ (gains[:, None] * standard), -black * 255 / 219)
    return Decoding({"color_range": _LIMITED}, inverse @ (standard / gains[:, None]), black)


def _chain(first: Decoding, then: Decoding) -> Decoding:
    matrix, offset = then.matrix @ first.matrix, then.matrix @ first.offset + then.offset
    return Decoding(first.causes | then.causes, matrix, offset)
