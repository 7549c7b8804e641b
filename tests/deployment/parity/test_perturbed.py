"""What perturbed preprocessing contributes; the sweep itself is tested with the pass that it belongs to."""

import pytest

from lightning_robust.deployment.parity.baseline import Measured
from lightning_robust.deployment.parity.perturbed import preprocessing_link, with_times_fp16
from lightning_robust.deployment.parity.result import BEYOND
from lightning_robust.statistics import Interval


@pytest.mark.parametrize(
    ("values", "middle"),
    [({"a": 3.0}, "a"), ({"a": 9.0, "b": 1.0, "c": 4.0}, "c"), ({"a": 1.0, "b": 2.0, "c": 3.0, "d": 50.0}, "c")],
)
def test_the_link_is_that_of_the_median_perturbation(values, middle):
    """The upper of the two in the middle of an even number; never the largest of several."""
    moved = {
        name: Measured({"rel_l2": value, "bias": -value}, {"rel_l2": Interval(value / 2, 2 * value)}, 7)
        for name, value in values.items()
    }
    (link,) = preprocessing_link(moved, "torch-fp32", "rel_l2")
    assert (link.source, link.target) == ("torch-fp32", f"torch-fp32 on {middle}")
    assert (link.value, link.bias, link.interval.high) == (values[middle], -values[middle], 2 * values[middle])
    assert preprocessing_link({}, "torch-fp32", "rel_l2") == ()


def test_times_fp16_are_of_the_same_average_as_the_number_they_stand_beside():
    """Not of the p99, and without the motion of the picture where there is any; none where fp16 moves nothing."""
    found = {
        "bgr": Measured({"x_px_p99": 90.0, "x_px_mean": 6.0}, {}, 4),
        "shift": Measured({"x_px_p99": 90.0, "x_px_mean": 6.0, BEYOND: 3.0}, {}, 4),
    }
    metrics = with_times_fp16(found, {"x_px_p99": 1.0, "x_px_mean": 0.5}, "x_px_p99")
    assert {name: each["times_fp16"] for name, each in metrics.items()} == {"bgr": 12.0, "shift": 6.0}
    assert with_times_fp16(found, {"x_px_mean": 0.0}, "x_px_p99")["bgr"] == found["bgr"].metrics
