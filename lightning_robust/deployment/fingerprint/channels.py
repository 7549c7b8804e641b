"""Channels that come twice or not at all, which the colour search cannot tell from a gain."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_robust.deployment.fingerprint.detectors import Evidence
from lightning_robust.deployment.fingerprint.levels import units_of_both
from lightning_robust.deployment.fingerprint.similarity import cross_correlations

_EQUAL = 1e-3  # of the deviation
_STRENGTH = 10.0


def find_channels(trained: Tensor, deployed: Tensor) -> tuple[Evidence, Tensor] | None:
    """A channel that is another's copy or constant on the deployed side alone, and training's pictures with it.

    All three alike are grey pictures, which the colour search knows.

    Args:
        trained: Pictures ``(N, C, H, W)``.
        deployed: Those of the other side.

    Example:
        >>> x = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        >>> find_channels(x, x[:, [0, 0, 2]])[0].parameters
        {'kind': 'repeated', 'order': 'RRB'}
    """
    if trained.shape[1] != 3:
        return None
    before, after = (_standardise(side) for side in (trained, deployed))
    return _find_missing(before, after, trained, deployed) or _find_twins(before, after, trained)


def _find_missing(before: Tensor, after: Tensor, trained: Tensor, deployed: Tensor) -> tuple[Evidence, Tensor] | None:
    constant = (after == 0).all(1) & (before != 0).any(1)
    if not 0 < int(constant.sum()) < 3:
        return None
    order = "".join("0" if gone else name for gone, name in zip(constant.tolist(), "RGB", strict=True))
    arranged = torch.where(constant[:, None, None], _in_units_of(trained, deployed), trained)
    return Evidence("channel_order", {"kind": "missing", "order": order}, _STRENGTH), arranged


def _in_units_of(trained: Tensor, deployed: Tensor) -> Tensor:
    """The deployed side's pictures in training's units and type, where one side has bytes."""
    if trained.is_floating_point() == deployed.is_floating_point():
        return deployed.to(trained.dtype)
    here, there = units_of_both(trained, deployed)
    values = here.from_levels(there.to_levels(deployed))
    return (values if trained.is_floating_point() else values.round().clamp(0, 255)).to(trained.dtype)


def _find_twins(before: Tensor, after: Tensor, trained: Tensor) -> tuple[Evidence, Tensor] | None:
    twins = [pair for pair in ((0, 1), (0, 2), (1, 2)) if _are_twins(after, pair) and not _are_twins(before, pair)]
    if len(twins) != 1:
        return None
    sources = cross_correlations(after, before).argmax(1).tolist()
    sources[twins[0][1]] = sources[twins[0][0]]
    order = "".join("RGB"[source] for source in sources)
    return Evidence("channel_order", {"kind": "repeated", "order": order}, _STRENGTH), trained[:, sources]


def _standardise(images: Tensor) -> Tensor:
    """Each channel of all pictures as a vector ``(C, P)`` of mean 0 and deviation 1, or of 0 where it is constant."""
    values = images.double().transpose(0, 1).flatten(1)
    centred = values - values.mean(1, keepdim=True)
    spread = centred.square().mean(1, keepdim=True).sqrt()
    return torch.where(spread > 1e-6 * values.abs().amax().clamp(min=1e-9), centred / spread.clamp(min=1e-12), 0.0)


def _are_twins(channels: Tensor, pair: tuple[int, int]) -> bool:
    first, second = channels[list(pair)]
    return bool((first - second).square().mean().sqrt() < _EQUAL)
