"""The curve from zero-shot to fine-tuned weights, and the choice of a point on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lightning_robust.statistics import Interval, share_interval


@dataclass(frozen=True)
class AlphaCurve:
    """Metrics of the mixtures from zero-shot (alpha 0) to fine-tuned weights (alpha 1).

    Args:
        alphas: Shares of the fine-tuned weights, ascending.
        names: Name of the metric on each loader; the first loader is in distribution, the others are shifted.
        values: At each alpha, the metric on each loader.
        samples: Number of samples of each loader; empty where that is not known.

    Example:
        >>> curve = AlphaCurve([0.0, 1.0], ["acc/0", "acc/1", "acc/2"], [[0.7, 0.8, 0.6], [0.9, 0.5, 0.5]], [])
        >>> curve.inside, [round(value, 2) for value in curve.shifted]
        ([0.7, 0.9], [0.7, 0.5])
    """

    alphas: Sequence[float]
    names: Sequence[str]
    values: Sequence[Sequence[float]]
    samples: Sequence[int]

    @property
    def inside(self) -> list[float]:
        """The metric in distribution at each alpha."""
        return self.column(0)

    @property
    def shifted(self) -> list[float]:
        """The mean metric under shift at each alpha; of a single loader, its metric."""
        return [under_shift(row) for row in self.values]

    def column(self, loader: int) -> list[float]:
        """The metric on a loader at each alpha."""
        return [row[loader] for row in self.values]

    def intervals(self, mode: Literal["max", "min"]) -> list[list[Interval]]:
        """The 95 % interval of each value; none where the metric is no share to be raised, or of unknown samples.

        Example:
            >>> curve = AlphaCurve([0.0, 1.0], ["acc/0", "acc/1"], [[0.7, 0.8], [0.9, 0.5]], [100, 50])
            >>> [round(end, 2) for end in curve.intervals("max")[1][0]]
            [0.83, 0.94]
            >>> curve.intervals("min")
            []
        """
        shares = all(0 <= value <= 1 for row in self.values for value in row)
        if mode != "max" or not shares or len(self.samples) != len(self.names):
            return []
        return [[share_interval(*of) for of in zip(row, self.samples, strict=True)] for row in self.values]


def choose_alpha(
    alphas: Sequence[float], values: Sequence[Sequence[float]], *, epsilon: float, mode: Literal["max", "min"]
) -> float:
    """The alpha with the best mean metric under shift among those within ``epsilon`` of the best in distribution.

    Args:
        alphas: Where the curve was measured.
        values: At each alpha, the metric in distribution, then under each shift. Without a shift nothing is to be
            gained, and the fine-tuned weights are chosen: the last alpha.
        epsilon: How much of the metric may be given up in distribution.
        mode: Whether larger or smaller is better. Ties go to the larger alpha.

    Raises:
        ValueError: If no value is finite.

    Example:
        >>> choose_alpha([0, 0.5, 1], [[0.7, 0.9], [0.895, 0.8], [0.9, 0.6]], epsilon=0.01, mode="max")
        0.5
        >>> choose_alpha([0, 0.5, 1], [[0.7], [0.895], [0.9]], epsilon=0.01, mode="max")
        1
    """
    sign = 1.0 if mode == "max" else -1.0
    usable = {alpha: row for alpha, row in zip(alphas, values, strict=True) if all(map(math.isfinite, row))}
    if not usable:
        raise ValueError("Expected finite metrics at some alpha, but none is. Is the metric defined on these loaders?")
    if len(values[0]) == 1:
        return max(usable)
    limit = _limit(max(sign * row[0] for row in usable.values()), epsilon)
    near = [alpha for alpha, row in usable.items() if sign * row[0] >= limit]
    return max(near, key=lambda alpha: (sign * under_shift(usable[alpha]), alpha))


def _limit(merit: float, epsilon: float) -> float:
    """The merit that is ``epsilon`` below; rounding of the subtraction must not shut out what lies on it."""
    return merit - epsilon - 1e-12 * abs(merit)


def under_shift(row: Sequence[float]) -> float:
    """The mean over the shifted loaders; the only loader where there is one.

    Example:
        >>> under_shift([0.9, 0.5, 0.7]), under_shift([0.9])
        (0.6, 0.9)
    """
    shifted = row[1:] or row
    return sum(shifted) / len(shifted)
