"""What cells should say: back to the same boxes, a loss that is least at the truth and pulls towards it."""

import pytest
import torch

from lightning_robust.decoding import yolo_boxes
from lightning_robust.demo.traffic.network import DetectionHead, TrafficLogits
from lightning_robust.demo.traffic.targets import encode_boxes, heat_loss, sides_loss, traffic_loss

SIZE = (64, 96)
BOXES = torch.tensor(
    [[[3.0, 5, 43, 30], [50, 20, 57, 28], [60, 2, 90, 61]], [[10.0, 10, 17, 16]] + [[torch.nan] * 4] * 2]
)
LABELS = torch.tensor([[0, 2, 0], [4, -1, -1]])


def test_decoded_targets_are_the_boxes():
    targets = encode_boxes(BOXES, LABELS, 5, SIZE)
    detections = DetectionHead()(torch.logit(targets.heat, eps=1e-6), targets.sides.log())
    found = yolo_boxes(detections, 0.999, 0.6)
    for picture in range(2):
        present = found.present[picture]
        order = found.xyxy[picture, present][:, 0].argsort()
        known = LABELS[picture] >= 0
        torch.testing.assert_close(found.xyxy[picture, present][order], BOXES[picture, known])
        assert found.labels[picture, present][order].tolist() == LABELS[picture, known].tolist()


def test_closed_form_of_a_bump():
    """A box of 40 x 25 pixels around cell (4, 5): deviations of 0.9 and 0.5625 cells."""
    targets = encode_boxes(BOXES[:1, :1], LABELS[:1, :1], 5, SIZE)
    assert float(targets.heat[0, 0, 4, 5]) == 1.0
    assert float(targets.heat[0, 0, 4, 6]) == pytest.approx(2.718281828 ** (-1 / (2 * 0.9**2)))
    assert float(targets.heat[0, 0, 5, 5]) == pytest.approx(2.718281828 ** (-1 / (2 * 0.5625**2)))
    assert targets.heat[0, 1:].max() == 0
    assert (4 * targets.sides[0, :, 4, 5]).tolist() == [22 - 3, 18 - 5, 43 - 22, 30 - 18]
    assert float(targets.weight[0, 4, 5]) == 1.0
    assert float(targets.weight[0, 5, 5]) == 0.0  # the bump is lower than 0.3


def test_closed_form_of_the_losses():
    """-0.25 log 0.5 of a middle and of a cell without anything; boxes of 2 x 2 and 2 x 1 cells that share a middle."""
    heat = torch.tensor([[[[1.0, 0.0]]]])
    assert float(heat_loss(torch.zeros(1, 1, 1, 2), heat)) == pytest.approx(2 * 0.25 * 0.6931472)
    truth = encode_boxes(torch.tensor([[[2.0, 2, 10, 10]]]), torch.zeros(1, 1, dtype=torch.long), 1, (12, 12))
    assert truth.weight.sum() == 1
    logarithms = truth.sides.log()
    assert float(sides_loss(logarithms, truth)) == pytest.approx(0.0, abs=1e-6)
    half = logarithms + torch.log(torch.tensor([1.0, 0.5, 1.0, 0.5]))[None, :, None, None]
    assert float(sides_loss(half, truth)) == pytest.approx(0.5, abs=1e-6)  # the hull is the larger one


def test_gradients_of_a_planted_target():
    """At the truth boxes have no gradient; away from it a step against the gradient brings each side nearer."""
    targets = encode_boxes(BOXES, LABELS, 5, SIZE)
    sides = targets.sides.log()
    drivable = torch.zeros(2, *SIZE)
    heat = torch.logit(targets.heat.clamp(1e-4, 1 - 1e-4))
    off = (sides + 0.3).requires_grad_()
    logits = TrafficLogits(heat.clone().requires_grad_(), off, torch.zeros(2, 1, *SIZE, requires_grad=True))
    traffic_loss(logits, BOXES, LABELS, drivable).backward()
    core = (targets.weight > 0)[:, None].expand_as(off)
    assert (off.grad[core] > 0).all(), "all sides are too long"
    assert (off.grad[~core] == 0).all()
    assert logits.drivable.grad.min() > 0
    assert float(logits.drivable.grad.sum()) == pytest.approx(0.5)  # sigmoid(0) - 0, the mean
    wrong = torch.full_like(heat, -4.0).requires_grad_()
    heat_loss(wrong, targets.heat).backward()
    assert (wrong.grad[targets.heat >= 1] < 0).all(), "middles should be found"
    assert (wrong.grad[targets.heat == 0] >= 0).all()


def test_a_picture_without_boxes_teaches_that_there_is_nothing():
    none, label = torch.full((1, 2, 4), torch.nan), torch.full((1, 2), -1)
    logits = TrafficLogits(
        torch.zeros(1, 5, 16, 24, requires_grad=True), torch.zeros(1, 4, 16, 24), torch.zeros(1, 1, *SIZE)
    )
    loss = traffic_loss(logits, none, label, torch.ones(1, *SIZE))
    loss.backward()
    assert loss.isfinite()
    assert (logits.heat.grad > 0).all()
