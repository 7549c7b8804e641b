"""Intervals against tables and closed forms."""

import math

import pytest

from lightning_robust.statistics import mean_interval, student


@pytest.mark.parametrize(("freedom", "quantile"), [(1, 12.7062), (4, 2.7764), (5, 2.5706), (10, 2.2281), (60, 2.0003)])
def test_student_quantiles(freedom, quantile):
    assert student(freedom) == pytest.approx(quantile, abs=5e-5)


def test_interval_of_the_mean():
    found = mean_interval([1.0, 2.0, 3.0, 4.0])
    half = 3.1824463 * math.sqrt(5 / 3) / 2
    assert (found.value, found.low, found.high) == pytest.approx((2.5, 2.5 - half, 2.5 + half))
    assert math.isnan(mean_interval([1.0]).low)
