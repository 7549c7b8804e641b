"""Intervals against tables and closed forms."""

import math

import numpy as np
import pytest
from scipy.stats import binomtest

from lightning_robust.statistics import Bootstrap, mean_interval, range_of, share_interval, student


@pytest.mark.parametrize(("freedom", "quantile"), [(1, 12.7062), (4, 2.7764), (5, 2.5706), (10, 2.2281), (60, 2.0003)])
def test_student_quantiles(freedom, quantile):
    assert student(freedom) == pytest.approx(quantile, abs=5e-5)


def test_interval_of_the_mean():
    found = mean_interval([1.0, 2.0, 3.0, 4.0])
    half = 3.1824463 * math.sqrt(5 / 3) / 2
    assert (found.value, found.low, found.high) == pytest.approx((2.5, 2.5 - half, 2.5 + half))
    assert math.isnan(mean_interval([1.0]).low)


def drawn(statistic, samples):
    """The interval by its definition: the statistic of every draw, which repeats samples as often as they came."""
    bootstrap = Bootstrap(samples)
    estimates = [statistic(weights.astype(int)) for weights in bootstrap._weights]
    return np.quantile(estimates, [0.025, 0.975], method="nearest")


def test_bootstrap_of_a_percentile_repeats_whole_samples():
    generator = np.random.default_rng(1)
    values, owners = generator.normal(size=3000) ** 2, generator.integers(0, 40, 3000)

    def statistic(weights):
        repeated = np.sort(np.repeat(values, weights[owners]))
        return repeated[-(-99 * len(repeated) // 100) - 1]

    assert Bootstrap(40).percentile_99(values, owners) == pytest.approx(drawn(statistic, 40))


def test_bootstrap_of_a_ratio_and_of_a_centred_root():
    generator = np.random.default_rng(2)
    exact = generator.normal(3.0, 1.0, (20, 5))
    error = generator.normal(size=(20, 5)) * 0.01
    totals, counts = error.sum(1), np.full(20, 5.0)
    mean = drawn(lambda w: np.repeat(error, w, 0).mean(), 20)
    assert Bootstrap(20).ratio(totals, counts) == pytest.approx(mean)

    def relative(weights):
        repeated = np.repeat(exact, weights, 0)
        return np.linalg.norm(np.repeat(error, weights, 0)) / np.linalg.norm(repeated - repeated.mean())

    sums = (error**2).sum(1), exact.sum(1), (exact**2).sum(1)
    assert Bootstrap(20).root_ratio(*sums, 5) == pytest.approx(drawn(relative, 20))


def test_points_of_one_sample_stay_together():
    """Ten thousand equal points in each of four samples say no more of their mean than four numbers do."""
    values = np.array([0.0, 1.0, 2.0, 3.0])
    few = Bootstrap(4).ratio(values, np.ones(4))
    assert Bootstrap(4).ratio(values * 1e4, np.full(4, 1e4)) == pytest.approx(few)
    assert few.high - few.low > 1


def test_covers_the_truth_as_often_as_it_says():
    """Of 300 means of 30 numbers 95 % hold the true one; the percentile bootstrap holds a little fewer."""
    generator = np.random.default_rng(3)
    bootstrap = Bootstrap(30)
    found = [bootstrap.ratio(generator.normal(size=30), np.ones(30)) for _ in range(300)]
    assert 0.88 < np.mean([low <= 0 <= high for low, high in found]) < 0.98


def test_one_sample_has_no_interval():
    assert math.isnan(Bootstrap(1).ratio(np.ones(1), np.ones(1)).low)


@pytest.mark.parametrize(("hits", "count"), [(0, 20), (20, 20), (7, 20), (1, 3), (499, 1000)])
def test_interval_of_a_share_is_wilsons_and_never_leaves_its_range(hits, count):
    found, expected = share_interval(hits / count, count), binomtest(hits, count).proportion_ci(method="wilson")
    assert found == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0 <= found.low <= hits / count <= found.high <= 1


def test_a_mean_between_limits_has_an_interval_between_them():
    """Of 0.1, 0.1 and 0.25 the plain interval begins at 0.15 - 4.303 * 0.05 = -0.065; its other end stays."""
    plain, cut = mean_interval([0.1, 0.1, 0.25]), mean_interval([0.1, 0.1, 0.25], (0.0, 1.0))
    assert plain.low == pytest.approx(0.15 - 4.3027 * 0.05, abs=1e-4)
    assert (cut.value, cut.low, cut.high) == (plain.value, 0.0, plain.high)
    assert mean_interval([0.9, 1.0, 1.0], (0.0, 1.0)).high == 1.0


def test_the_range_of_a_metric_is_no_tighter_than_its_values_say():
    assert range_of([0.2, math.nan, 1.0], mode="max") == (0, 1)
    assert range_of([0.2, 1.1], mode="max") == (0, math.inf)
    assert range_of([0.2, 0.4], mode="min") == (0, math.inf)
    assert range_of([-0.1, 0.4], mode="max") == (-math.inf, math.inf)
    assert range_of([], mode="max") == (-math.inf, math.inf)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_interval_of_a_share_holds_it(share):
    """Rounding has put the upper end below 1 for a third of all counts, and bars of a figure below their point."""
    for count in range(2, 400, 2):
        low, high = share_interval(share, count)
        assert 0 <= low <= share <= high <= 1


def test_draws_without_anything_have_no_mean():
    """One of three samples has a point: its mean is 5 in every draw that holds it."""
    low, high = Bootstrap(3).ratio(np.array([5.0, 0, 0]), np.array([1.0, 0, 0]))
    assert (low, high) == (5, 5)
    assert math.isnan(Bootstrap(3).ratio(np.zeros(3), np.zeros(3)).low)
