"""Colours of both sides over small blocks of registered pictures, from which a change of colours is told."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_robust.deployment.fingerprint.filters import fit_gains, pooled
from lightning_robust.deployment.fingerprint.motion import Motion, blurred

_ROWS = 3000
# Levels that a block's mean is wrong by where it is flat, and the share of its detail that it is wrong by elsewhere.
_FLAT, _DETAIL = 0.15, 0.3
_FEW = 0.1  # share of the pixels


@dataclass(frozen=True)
class Blocks:
    """Mean colours of the same blocks on both sides.

    Args:
        trained: Training's ``(P, C)``.
        deployed: The deployed side's.
        noise: Mean square that noise from pixel to pixel leaves in the deployed side's, which nothing explains.
    """

    trained: Tensor
    deployed: Tensor
    noise: float = 0.0


def block_colors(warped: Tensor, deployed: Tensor, motion: Motion) -> Blocks:
    """The blocks in which the deployed side is not clipped, as often as they count.

    What a filter, a codec or a motion that is not quite right leaves in a block's mean grows with the detail in the
    block. So calm blocks count more: they are drawn more often (systematic resampling).

    Args:
        warped: Training's pictures after the motion, ``(N, C, H, W)``.
        deployed: The deployed side's.
        motion: It says which pixels training has too.
    """
    use = _unclipped(deployed, motion)
    before, after = pooled(warped, use), pooled(deployed, use)
    detail = pooled((warped - blurred(warped.flatten(0, 1)).view_as(warped)).abs(), use).mean(1)
    shares = (1 / (_FLAT**2 + (_DETAIL * detail).square())).cumsum(0)
    places = (torch.arange(_ROWS, dtype=shares.dtype) + 0.5) / _ROWS * shares[-1]
    rows = torch.searchsorted(shares, places).clamp(max=len(shares) - 1)
    gain, _ = fit_gains(before[rows], after[rows])
    rest = deployed - gain[:, None, None] * warped
    return Blocks(before[rows], after[rows], _noise_of_means(rest, use, rows))


def _unclipped(deployed: Tensor, motion: Motion) -> Tensor:
    """Pixels ``(N, H, W)`` to use: those without clipped ones, if they are not too few."""
    low, high = (bound(deployed, (0, 2, 3), keepdim=True) for bound in (torch.amin, torch.amax))
    inside = motion.inside(*deployed.shape[-2:])
    use = inside & ((deployed > low + 0.5) & (deployed < high - 0.5)).all(1)
    return use if float(use.double().mean()) >= _FEW else inside.expand_as(use)


def _noise_of_means(rest: Tensor, use: Tensor, rows: Tensor) -> float:
    """The mean square of the noise in blocks' means, from the two halves of each block, as on a chessboard."""
    height, width = rest.shape[-2:]
    chessboard = (torch.arange(height)[:, None] + torch.arange(width)) % 2 * 2.0 - 1
    return float(pooled(rest * chessboard, use)[rows].square().mean())
