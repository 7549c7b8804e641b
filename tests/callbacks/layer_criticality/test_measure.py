import math

import pytest

from lightning_robust.callbacks.layer_criticality.measure import CriticalityCell, CriticalityRow
from lightning_robust.statistics import Estimate


def row(*values, limits=(-math.inf, math.inf)):
    cells = tuple(CriticalityCell(value, Estimate(0.5)) for value in values)
    return CriticalityRow("conv", (), cells, (), (), "critical", limits)


def test_interval_of_fresh_draws_stays_where_the_metric_lies():
    """Of 0.1, 0.1 and 0.25 it would begin at 0.15 - 4.303 * 0.05 = -0.065."""
    assert row(0.1, 0.1, 0.25).randomised.low == pytest.approx(-0.065, abs=1e-3)
    assert row(0.1, 0.1, 0.25, limits=(0.0, 1.0)).randomised.low == 0
    assert math.isnan(row(0.1, math.nan, 0.25).randomised.low)
