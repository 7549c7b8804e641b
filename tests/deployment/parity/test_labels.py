"""Metrics by labels: closed forms, signs that mean worse, and labels that do not fit."""

import math

import pytest
import torch
from torch import nn

from lightning_robust import measure_parity
from lightning_robust.decoding import Boxes, Masks
from lightning_robust.deployment.engines import Built, Runtime, Subject
from lightning_robust.deployment.parity.labels import label_metrics
from lightning_robust.deployment.report.tables import target_rows

EDGES = torch.tensor([[[0.0, 0, 10, 10]], [[20.0, 20, 30, 40]]])


def boxes(edges=EDGES, scores=None):
    scores = torch.ones(edges.shape[:2]) if scores is None else torch.tensor(scores)
    return Boxes(edges, scores, torch.zeros(edges.shape[:2], dtype=torch.long))


def masks(*columns):
    return Masks(torch.tensor([[columns]]), 2)


def test_closed_forms():
    """Half of the boxes lost: precision 1 up to recall 0.5, which are 51 of 101 points."""
    lost = {"boxes": boxes(scores=[[0.9], [math.nan]])}
    found = label_metrics({"boxes": boxes()}, lost, {"boxes": boxes()})
    assert found == pytest.approx({"boxes_map": 51 / 101, "boxes_map_worse": 50 / 101})
    # of four pixels three are right on one side, two on the other
    found = label_metrics({"mask": masks(0, 0, 0, 1)}, {"mask": masks(0, 0, 0, 0)}, {"mask": masks(0, 0, 1, 1)})
    assert found == pytest.approx({"mask_miou": (1 / 2 + 0) / 2, "mask_miou_worse": (2 / 3 + 1 / 2) / 2 - 1 / 4})
    truth = {"x_px": torch.tensor([1.0, math.nan, 3.0]), "sure": torch.tensor([True, True, False])}
    ours = {"x_px": torch.tensor([2.0, 5.0, 3.0]), "sure": torch.tensor([True, True, True])}
    theirs = {"x_px": torch.tensor([1.5, 9.0, 3.0]), "sure": torch.tensor([False, True, True])}
    assert label_metrics(ours, theirs, truth) == pytest.approx(
        {"x_px_error": 0.25, "x_px_error_worse": -0.25, "sure_accuracy": 1 / 3, "sure_accuracy_worse": 1 / 3}
    )
    assert label_metrics(ours, theirs, {}) == {}


def test_an_error_is_worse_on_the_points_that_both_sides_have():
    """A deployed side that loses its hard point is not the better one for it."""
    truth, ours, theirs = (torch.tensor(places) for places in ([1.0, 2.0], [1.0, 5.0], [1.5, math.nan]))
    assert label_metrics({"x": ours}, {"x": theirs}, {"x": truth}) == {"x_error": 0.5, "x_error_worse": 0.5}
    nowhere = torch.full((2,), math.nan)
    assert "x_error_worse" not in label_metrics({"x": nowhere}, {"x": theirs}, {"x": truth})


@pytest.mark.parametrize(
    ("value", "truth", "told"),
    [
        ({"boxes": boxes()}, {"box": boxes()}, r"decoded values \['boxes'\], but got some of \['box'\]"),
        ({"boxes": boxes()}, {"boxes": EDGES}, "Boxes of 2 samples, but got Tensor of 2 samples"),
        ({"boxes": boxes()}, {"boxes": boxes()[:1]}, "Boxes of 2 samples, but got Boxes of 1 samples"),
        ({"mask": masks(0, 1)}, {"mask": masks(0, 1, 1)}, r"true masks of shape \(1, 1, 2\).* but got \(1, 1, 3\)"),
        ({"x": torch.ones(2, 3)}, {"x": torch.ones(2, 1)}, r"labels of 'x' of shape \(2, 3\), but got \(2, 1\)"),
    ],
)
def test_rejects_labels_that_do_not_fit(value, truth, told):
    with pytest.raises(ValueError, match=told):
        label_metrics(value, value, truth)


class Losing(Runtime):
    """An engine that loses the box of every picture but the first half."""

    def __init__(self):
        super().__init__("engine", "fp32")

    def build(self, subject):
        def run(args):
            outputs = args[0].clone()
            outputs[len(outputs) // 2 :, 0, 4] = math.nan
            return [outputs]

        return Built(run)


def test_a_pass_counts_boxes_by_labels():
    """The truth of 20 pictures in windows of 16 and 20; what fits none of them is one line, and all else goes on."""
    edges = EDGES[:1].expand(20, 1, 4)
    pictures = torch.cat([edges, torch.ones(20, 1, 1)], -1)

    def decode(outputs):
        none = torch.zeros(outputs.shape[:2], dtype=torch.long)
        return {"boxes": Boxes(outputs[..., :4], outputs[..., 4], none)}

    def report(truth):
        subject = Subject(nn.Identity(), (pictures,))
        return measure_parity(subject, [Losing()], decode=decode, truth=truth)

    told = report(lambda rows: {"boxes": boxes(edges)[rows]})
    metrics = told.targets["engine-fp32"].metrics
    assert metrics["boxes_map"] == pytest.approx(51 / 101)
    assert metrics["boxes_map_worse"] == pytest.approx(50 / 101)
    assert {"boxes map", "boxes map worse"} <= set(target_rows(told)[0])
    failed = report(lambda rows: {"boxes": boxes(edges)})
    assert failed.targets["engine-fp32"].metrics["boxes_lost"] == pytest.approx(0.5)
    assert "boxes_map" not in failed.targets["engine-fp32"].metrics
    assert any(note.startswith("`truth` failed and is left out: ValueError: Expected labels") for note in failed.notes)


def test_labels_in_whole_numbers_of_values_that_are_not_decisions():
    """Places in pixels: the error counts, and not that 1.2 is not 1."""
    truth, ours, theirs = torch.tensor([1, 5]), torch.tensor([1.2, 5.1]), torch.tensor([1.3, 5.3])
    found = label_metrics({"x_px": ours}, {"x_px": theirs}, {"x_px": truth})
    assert found == pytest.approx({"x_px_error": 0.3, "x_px_error_worse": 0.15})
