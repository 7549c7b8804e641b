"""One scale for all comparisons: closed forms of its distances, its unit, and what it refuses."""

import math

import pytest
import torch
from torch import nn

from lightning_robust.deployment.parity.distance import compare_outputs
from lightning_robust.deployment.parity.readout import Readout
from lightning_robust.deployment.parity.scale import Scale, masks, unit_label

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
    for wrong, what in (
        (lambda outputs: outputs["column"], "Tensor"),
        (lambda outputs: {"x_px": 1.0}, "float in 'x_px'"),
    ):
        with pytest.raises(TypeError, match=f"`decode` to return a dict of tensors, but got {what}"):
            Scale(Pair(), (torch.zeros(1),), wrong).read(EXACT)


@pytest.mark.parametrize(
    ("metric", "label"),
    [("rel_l2", "relative L2 distance"), ("x_px_p99", "x px (99th percentile)"), ("flip_rate", "flip rate")],
)
def test_unit_labels(metric, label):
    assert unit_label(metric) == label


# Points that the model knows, and points that it guesses.


def test_known_and_guessed_points_are_two_numbers():
    values = torch.zeros(2, 100)
    known = torch.ones(2, 100, dtype=torch.bool)
    known[1, 50:] = False
    moved = values + 1.0
    moved[1, 50:] = 30.0
    exact, deployed = Readout([values], {"x_px": values}, {"x_px": known}), Readout([moved], {"x_px": moved})
    metrics = exact.distance(deployed)
    assert exact.unit == "x_px_known_p99"
    assert (metrics["x_px_known_p99"], metrics["x_px_guessed_p99"], metrics["x_px_p99"]) == (1.0, 30.0, 30.0)
    assert metrics["x_px_mean"] == pytest.approx((150 * 1 + 50 * 30) / 200)


def test_without_known_points_the_unit_is_of_all():
    """An untrained network knows nothing: its numbers of known points are NaN, and no distance of 0."""
    values = torch.zeros(2, 3)
    exact = Readout([values], {"x_px": values}, {"x_px": torch.zeros(2, 3, dtype=torch.bool)})
    metrics = exact.distance(Readout([values + 2], {"x_px": values + 2}))
    assert exact.unit == "x_px_p99"
    assert math.isnan(metrics["x_px_known_p99"])
    assert metrics["x_px_guessed_p99"] == 2.0


def test_confidence_tells_points_apart_and_is_no_value_itself():
    def decode(outputs):
        return {"x_px": outputs, "confidence": torch.tensor([0.9, 0.4])}

    scale = Scale(nn.Identity(), (torch.zeros(2, 3),), decode)
    readout = scale.read([torch.zeros(2, 3)])
    assert set(readout.values) == {"x_px"}
    assert readout.known["x_px"].tolist() == [[True] * 3, [False] * 3]


def test_targets_go_before_confidence_and_see_the_samples():
    seen = []

    def known(values, rows):
        seen.append(rows)
        return {"x_px": values["x_px"] > 1}

    scale = Scale(nn.Identity(), (torch.zeros(2, 1),), lambda y: {"x_px": y, "confidence": torch.ones(2)}, known)
    reference = [torch.tensor([[0.0], [2.0]])]
    assert scale.read(reference, slice(4, 6)).known["x_px"].tolist() == [[False], [True]]
    assert scale.distance("x_px_known_p99", reference, [torch.tensor([[9.0], [2.5]])], start=4) == 0.5
    assert seen == [slice(4, 6)] * 2


@pytest.mark.parametrize(
    ("known", "message"),
    [
        ({"y": torch.ones(2, dtype=torch.bool)}, r"values \['x_px'\], but got some of \['y'\]"),
        (torch.ones(3, dtype=torch.bool), r"shape \(2, 4\).*got \(3,\)"),
    ],
)
def test_rejects_known_points_that_do_not_fit(known, message):
    with pytest.raises(ValueError, match=message):
        masks(known, {"x_px": torch.zeros(2, 4)})
