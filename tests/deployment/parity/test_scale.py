"""One scale for all comparisons: closed forms of its distances, its unit, and what it refuses."""

import pytest
import torch
from torch import nn

from lightning_robust.deployment.parity.distance import compare_outputs
from lightning_robust.deployment.parity.scale import Scale, unit_label

EXACT, DEPLOYED = [torch.tensor([1.0, 3.0]), torch.tensor([0, 1])], [torch.tensor([1.0, 3.5]), torch.tensor([0, 0])]


class Pair(nn.Module):
    """Returns a dict of two tensors."""

    def forward(self, x):
        return {"column": x, "valid": x > 0}


def in_pixels(outputs):
    return {"valid": outputs["valid"], "x_px": 10 * outputs["column"]}


@pytest.fixture
def scale():
    return Scale(Pair(), (torch.zeros(1),), in_pixels)


def test_closed_form(scale):
    """Columns 0.5 apart are 5 px apart; one of two decisions flips; the plain distances are those of the outputs."""
    distance = scale.read(EXACT).distance(scale.read(DEPLOYED))
    assert (distance["x_px_max"], distance["x_px_mean"], distance["valid_flips"]) == (5.0, 2.5, 0.5)
    assert compare_outputs(EXACT, DEPLOYED).items() <= distance.items()
    assert scale.distance("x_px_p99", EXACT, DEPLOYED) == 5.0
    assert scale.distance("rel_l2", EXACT, DEPLOYED) == distance["rel_l2"]


def test_the_unit_is_the_first_floating_value(scale):
    assert scale.read(EXACT).unit == "x_px_p99"
    assert Scale(Pair(), (torch.zeros(1),), lambda outputs: {"valid": outputs["valid"]}).read(EXACT).unit == "rel_l2"


@pytest.mark.parametrize("settings", [(), (Pair(), (torch.zeros(1),)), (None, (), in_pixels)])
def test_without_decode_or_module_distances_are_plain(settings):
    reading = Scale(*settings).read(EXACT)
    assert (reading.values, reading.unit) == ({}, "rel_l2")
    assert reading.distance(reading) == compare_outputs(EXACT, EXACT)


def test_a_distance_of_the_outputs_needs_no_decoding():
    def fail(outputs):
        raise AssertionError

    assert Scale(Pair(), (torch.zeros(1),), fail).distance("rel_l2", EXACT, EXACT) == 0.0


def test_rejects_what_is_no_dict_of_tensors():
    for wrong in (lambda outputs: outputs["column"], lambda outputs: {"x_px": 1.0}):
        with pytest.raises(TypeError, match="`decode` to return a dict of tensors, but got"):
            Scale(Pair(), (torch.zeros(1),), wrong).read(EXACT)


@pytest.mark.parametrize(
    ("metric", "label"),
    [("rel_l2", "relative L2 distance"), ("x_px_p99", "x px (99th percentile)"), ("flip_rate", "flip rate")],
)
def test_unit_labels(metric, label):
    assert unit_label(metric) == label
