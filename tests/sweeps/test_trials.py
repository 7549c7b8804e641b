"""The values of a sweep's trials: the product of its lists, and draws against the moments of their distributions."""

import math
import statistics

import pytest

from lightning_robust.sweeps.file import Sweep
from lightning_robust.sweeps.trials import draw_values


def make(vary, **settings):
    return Sweep(["base.yaml"], vary, "val/acc", "max", **settings)


def test_grid_is_the_product_in_the_order_of_the_file():
    made = draw_values(make({"a": [1, 2], "b": ["x", "y", "z"]}))
    assert [(values["a"], values["b"]) for values in made] == [(a, b) for a in (1, 2) for b in "xyz"]
    assert make({"a": [1, 2], "b": ["x"], "c": {"uniform": [0, 1]}}).shown == ["a", "c"]


def test_draws_lie_in_bounds_are_spread_as_named_and_repeat():
    pytest.importorskip("ray.tune", reason="Ray is not installed (pip install 'lightning_robust[sweep]')")
    vary = {"u": {"uniform": [2, 4]}, "l": {"loguniform": [1e-4, 1.0]}, "i": {"randint": [0, 3]}, "g": [True, False]}
    made = draw_values(make(vary, num_samples=500, seed=3))
    assert len(made) == 1000
    assert made == draw_values(make(vary, num_samples=500, seed=3))
    assert made != draw_values(make(vary, num_samples=500, seed=4))
    assert {values["i"] for values in made} == {0, 1, 2}
    assert all(2 <= values["u"] <= 4 and 1e-4 <= values["l"] <= 1 for values in made)
    # five standard deviations of the mean of 1000 uniform numbers
    tolerance = 5 / math.sqrt(12 * 1000)
    assert abs(statistics.mean(values["u"] for values in made) - 3) < 2 * tolerance
    assert abs(statistics.mean(math.log10(values["l"]) for values in made) + 2) < 4 * tolerance
