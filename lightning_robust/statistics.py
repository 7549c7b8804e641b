"""Estimates with their intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

_DRAWS = 200
_NORMAL = 1.959963984540054
"""The 97.5 % quantile of the normal distribution."""
_MOST_NUMBERS = 4_000_000  # held at a time, 32 MB


class Interval(NamedTuple):
    """The two ends of a 95 % interval; NaN where it is not known."""

    low: float
    high: float


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval; NaN where that is not known."""

    value: float
    low: float = math.nan
    high: float = math.nan


def mean_interval(values: Sequence[float], limits: tuple[float, float] = (-math.inf, math.inf)) -> Estimate:
    """The mean of independent values with its 95 % interval by Student's t; one value has no interval.

    Args:
        values: The values; where one is not finite there is no interval.
        limits: Where the mean lies for certain, as in [0, 1] for an accuracy. What the interval has outside of them is
            cut off, which costs no coverage.

    Example:
        >>> estimate = mean_interval([1.0, 3.0])
        >>> estimate.value, round(estimate.low, 3), round(estimate.high, 3)
        (2.0, -10.706, 14.706)
        >>> mean_interval([1.0, 3.0], (0.0, 5.0))
        Estimate(value=2.0, low=0.0, high=5.0)
    """
    mean, count = statistics.fmean(values), len(values)
    if count < 2 or not math.isfinite(mean):
        return Estimate(mean)
    half = student(count - 1) * statistics.stdev(values) / math.sqrt(count)
    return Estimate(mean, min(max(mean - half, limits[0]), mean), max(min(mean + half, limits[1]), mean))


def range_of(values: Iterable[float], *, mode: str) -> tuple[float, float]:
    """Where a metric lies, as far as its values tell.

    One of which no value is below 0 does not go below it; one that is to be raised and whose values all are shares does
    not go above 1.

    Args:
        values: As many as there are; those that are not finite do not count.
        mode: ``"max"`` or ``"min"``.

    Example:
        >>> range_of([0.1, 0.9], mode="max"), range_of([0.1, 0.9], mode="min"), range_of([-1.0], mode="max")
        ((0.0, 1.0), (0.0, inf), (-inf, inf))
    """
    known = [value for value in values if math.isfinite(value)]
    low = 0.0 if known and min(known) >= 0 else -math.inf
    return low, 1.0 if mode == "max" and low == 0 and max(known) <= 1 else math.inf


def share_interval(share: float, count: int) -> Interval:
    """The 95 % interval of a share of independent samples (Wilson 1927), which never leaves [0, 1].

    Args:
        share: In [0, 1].
        count: Of how many samples.

    Example:
        >>> low, high = share_interval(0.0, 20)
        >>> round(low, 3), round(high, 3)
        (0.0, 0.161)
        >>> share_interval(1.0, 10).high
        1.0
    """
    square = _NORMAL**2 / count
    middle = (share + square / 2) / (1 + square)
    half = math.sqrt(square * (share * (1 - share) + square / 4)) / (1 + square)
    return Interval(min(max(middle - half, 0.0), share), max(min(middle + half, 1.0), share))


def welch_half_width(first: Sequence[float], second: Sequence[float]) -> float:
    """Half of the 95 % interval of a difference of two means whose spreads may differ (Welch 1947).

    Args:
        first: Independent values, at least two for an interval.
        second: As many, more or fewer.

    Returns:
        It, infinite where one side has a single value, NaN where a value is not finite.

    Example:
        >>> round(welch_half_width([0.90, 0.91], [0.82, 0.83]), 4)
        0.0304
        >>> welch_half_width([1.0], [1.0, 2.0])
        inf
    """
    if min(len(first), len(second)) < 2:
        return math.inf
    if not all(map(math.isfinite, (*first, *second))):
        return math.nan
    parts = [(statistics.variance(side) / len(side), len(side) - 1) for side in (first, second)]
    total = sum(square for square, _ in parts)
    if total == 0:
        return 0.0
    freedom = 1 / sum((square / total) ** 2 / free for square, free in parts)  # Welch and Satterthwaite
    return student(freedom) * math.sqrt(total)


def student(freedom: float) -> float:
    """The 97.5 % quantile of Student's t.

    Example:
        >>> round(student(9), 2), round(student(1000), 2)
        (2.26, 1.96)
    """
    return float(stdtrit(freedom, 0.975))


class Bootstrap:
    """95 % intervals of estimates over samples that are drawn again with replacement, always the same draws.

    A sample is what varies independently, a picture or a recording, and holds any number of points: points of one
    sample stay together (the cluster bootstrap, Davison and Hinkley 1997, section 3.8).

    Args:
        samples: How many there are. A single one has no interval.

    Example:
        >>> low, high = Bootstrap(100).ratio(np.arange(100.0), np.ones(100))
        >>> round(low), round(high)  # the mean of 0 to 99, two standard errors of 2.9 on each side
        (44, 55)
    """

    def __init__(self, samples: int) -> None:
        self.samples = samples
        generator = np.random.default_rng(0)
        draws = generator.integers(0, samples, (_DRAWS, samples))
        self._weights = np.stack([np.bincount(draw, minlength=samples) for draw in draws]).astype(np.float64)

    def ratio(self, totals: NDArray[np.float64], counts: NDArray[np.float64]) -> Interval:
        """The interval of a mean: the sum of ``totals`` over that of ``counts``, each ``(samples,)``."""
        total, count = self._weights @ totals, self._weights @ counts
        some = count > 0  # a draw without any has no mean
        return self._interval(total[some] / count[some])

    def root_ratio(
        self, squares: NDArray[np.float64], values: NDArray[np.float64], sizes: NDArray[np.float64], counts: float
    ) -> Interval:
        r"""The interval of :math:`\sqrt{\sum e^2 / \sum (r - \bar r)^2}`.

        Args:
            squares: Of the errors, summed in each sample, ``(samples,)``.
            values: The reference's, summed in each sample.
            sizes: The squares of the reference, summed in each sample.
            counts: Numbers in each sample.
        """
        total = self._weights.sum(1) * counts
        spread = self._weights @ sizes - (self._weights @ values) ** 2 / total
        error = self._weights @ squares
        safe = spread > 0
        ratio = np.divide(error, spread, out=np.where(error > 0, np.inf, 0.0), where=safe)
        return self._interval(np.sqrt(ratio))

    def percentile_99(self, values: NDArray[np.float64], owners: NDArray[np.int64]) -> Interval:
        """The interval of the smallest value that 99 of 100 points do not exceed.

        Args:
            values: One for each point.
            owners: The sample that each point belongs to.
        """
        counts = np.bincount(owners, minlength=self.samples).astype(np.float64)
        above = np.floor(0.01 * (self._weights @ counts))  # points that may lie above it
        tail = max(256, len(values) // 25)
        estimates = self._from_above(values, owners, above, tail)
        if np.isnan(estimates).any():
            estimates = self._from_above(values, owners, above, len(values))
        return self._interval(estimates[~np.isnan(estimates)])

    def _from_above(
        self, values: NDArray[np.float64], owners: NDArray[np.int64], above: NDArray[np.float64], tail: int
    ) -> NDArray[np.float64]:
        """The largest value with more than ``above`` points from it on, among the largest ``tail``; else NaN."""
        tail = min(tail, len(values))
        largest = np.argpartition(-values, tail - 1)[:tail]
        largest = largest[np.argsort(-values[largest], kind="stable")]
        owners, values = owners[largest], values[largest]
        estimates = np.full(_DRAWS, np.nan)
        rows = max(1, _MOST_NUMBERS // tail)
        for start in range(0, _DRAWS, rows):
            part = slice(start, start + rows)
            reached = self._weights[part][:, owners].cumsum(1) > above[part, None]
            found = reached.any(1)
            estimates[part][found] = values[reached.argmax(1)[found]]
        return estimates

    def _interval(self, estimates: NDArray[np.float64]) -> Interval:
        if self.samples < 2 or not len(estimates):
            return Interval(math.nan, math.nan)
        low, high = np.quantile(estimates, [0.025, 0.975], method="nearest")
        return Interval(float(low), float(high))
