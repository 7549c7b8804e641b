"""Estimates with their intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import stdtrit


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval; NaN where that is not known."""

    value: float
    low: float = math.nan
    high: float = math.nan


def mean_interval(values: Sequence[float]) -> Estimate:
    """The mean of independent values with its 95 % interval by Student's t; one value has no interval.

    Example:
        >>> estimate = mean_interval([1.0, 3.0])
        >>> estimate.value, round(estimate.low, 3), round(estimate.high, 3)
        (2.0, -10.706, 14.706)
    """
    mean, count = statistics.fmean(values), len(values)
    if count < 2:
        return Estimate(mean)
    half = student(count - 1) * statistics.stdev(values) / math.sqrt(count)
    return Estimate(mean, mean - half, mean + half)


def student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t.

    Example:
        >>> round(student(9), 2), round(student(1000), 2)
        (2.26, 1.96)
    """
    return float(stdtrit(freedom, 0.975))
