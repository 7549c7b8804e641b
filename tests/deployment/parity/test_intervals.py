import math

import pytest
import torch

from lightning_robust.deployment.parity.intervals import intervals, is_settled
from lightning_robust.deployment.parity.readout import Readout
from lightning_robust.statistics import Bootstrap, Interval


def readout(values, known=None):
    return Readout([values], {"x_px": values}, {} if known is None else {"x_px": known})


def test_intervals_hold_the_metrics_they_belong_to():
    torch.manual_seed(0)
    exact = torch.randn(40, 20)
    known = torch.rand(40, 20) > 0.3
    ours, deployed = readout(exact, known), readout(exact + 0.1 * torch.randn(40, 20) + 0.02)
    metrics, found = ours.distance(deployed), intervals(ours, deployed)
    names = ("x_px", "x_px_known", "x_px_guessed")
    assert found.keys() == {"rel_l2", *(f"{name}_{key}" for name in names for key in ("p99", "mean", "bias"))}
    for metric, (low, high) in found.items():
        assert low < metrics[metric] < high
    bias = found["x_px_bias"]
    # two times 1.96 standard errors of 800 deviations of size 0.1
    assert bias.high - bias.low == pytest.approx(3.92 * 0.1 / math.sqrt(800), rel=0.3)


def test_flips_have_an_interval():
    exact = torch.zeros(50, 4, dtype=torch.int64)
    deployed = exact.clone()
    deployed[:10, 0] = 1
    found = intervals(Readout([exact], {"label": exact}), Readout([deployed], {"label": deployed}))
    flips = torch.zeros(50).index_fill_(0, torch.arange(10), 1.0).double().numpy()
    assert found["label_flips"] == Bootstrap(50).ratio(flips, torch.full((50,), 4.0).double().numpy())
    assert found["label_flips"].low < 0.05 < found["label_flips"].high


def test_what_is_lost_or_single_has_no_interval():
    exact = torch.randn(8, 3)
    lost = exact.clone()
    lost[0, 0] = math.inf
    assert intervals(readout(exact), readout(lost)) == {}
    assert intervals(readout(exact[:1]), readout(exact[:1] + 1)) == {}
    assert intervals(readout(torch.full((4, 2), torch.nan)), readout(torch.full((4, 2), torch.nan))) == {}


@pytest.mark.parametrize(
    ("value", "width", "tolerance", "settled"),
    [(1.0, 0.09, None, True), (1.0, 0.2, None, False), (1.0, 0.2, 3.0, True), (-1.0, 0.09, None, True)],
)
def test_settled_within_a_tenth(value, width, tolerance, settled):
    assert is_settled(value, Interval(value - width / 2, value + width / 2), tolerance) == settled
    assert not is_settled(value, None, tolerance)


def test_a_distance_that_is_infinite_has_no_interval():
    zero, one = Readout([torch.zeros(4, 2)], {}), Readout([torch.ones(4, 2)], {})
    assert zero.distance(one)["rel_l2"] == float("inf")
    assert intervals(zero, one) == {}
