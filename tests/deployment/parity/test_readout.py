"""Boxes and masks through a parity pass: planted faults of engines show in their own number and within 10 %."""

import math
from functools import partial

import pytest
import torch
from torch import nn

from lightning_robust import measure_parity
from lightning_robust.decoding import Boxes, Masks, segmentation_masks, torchvision_boxes, yolo_boxes
from lightning_robust.deployment.engines import Built, Runtime, Subject, available
from lightning_robust.deployment.parity.judge import judge_report
from lightning_robust.deployment.parity.readout import Readout
from lightning_robust.deployment.parity.result import BEYOND
from lightning_robust.deployment.pixels.catalogue import perturbations
from lightning_robust.deployment.report.tables import summary, target_rows
from lightning_robust.functional import PixelSpace

PICTURES, ANCHORS, CLASSES = 24, 6, 3


def outputs(seed=0):
    """Detections as YOLO gives them, in cells of their own, each with a score of its own."""
    generator = torch.Generator().manual_seed(seed)
    cells = torch.stack([torch.randperm(16, generator=generator)[:ANCHORS] for _ in range(PICTURES)])
    centre = torch.stack([cells % 4, cells // 4], 1) * 60.0 + 30
    size = 20 + 30 * torch.rand(PICTURES, 2, ANCHORS, generator=generator)
    scores = 0.5 + 0.4 * torch.rand(PICTURES, 1, ANCHORS, generator=generator)
    labels = torch.randint(CLASSES, (PICTURES, ANCHORS), generator=generator)
    return torch.cat([centre, size, scores * nn.functional.one_hot(labels, CLASSES).transpose(1, 2)], 1)


class Faulty(Runtime):
    """What the network gives, and then a fault."""

    def __init__(self, fault, name="engine"):
        super().__init__(name, "fp32")
        self.fault = fault

    def build(self, subject):
        return Built(lambda args: [self.fault(args[0].clone())])


def read(values):
    return {"boxes": yolo_boxes(values)}


def measured(fault, **settings):
    settings.setdefault("decode", read)
    return measure_parity(Subject(nn.Identity(), (outputs(),)), [Faulty(fault)], **settings)


def metrics_of(fault, **settings):
    return measured(fault, **settings).targets["engine-fp32"].metrics


def shuffled(x):
    return x[:, :, torch.randperm(ANCHORS, generator=torch.Generator().manual_seed(1))]


def shifted(x, dx=2.0, dy=2.0):
    x[:, 0] += dx
    x[:, 1] += dy
    return x


ERRORS = ("centre_px", "size_px", "score")


def test_another_order_alone_shows_nothing():
    found = metrics_of(shuffled)
    assert found["rel_l2"] > 0.5  # the outputs themselves are elsewhere
    # the reference computes in fp64: a step of fp32 at 255 px is 1.5e-5
    assert (
        max(abs(found[f"boxes_{name}_{metric}"]) for name in ERRORS for metric in ("p99", "max", "bias", "lost")) < 1e-4
    )
    assert [found[f"boxes_{name}"] for name in ("lost", "new", "label_flips", "ap_loss")] == [0, 0, 0, pytest.approx(0)]


def test_a_shift_in_another_order():
    report = measured(lambda x: shuffled(shifted(x)))
    found = report.targets["engine-fp32"].metrics
    assert report.unit == "boxes_centre_px_p99"
    assert [found[f"boxes_centre_px_{metric}"] for metric in ("mean", "p99", "max", "bias")] == pytest.approx([2] * 4)
    assert found["boxes_size_px_max"] < 1e-4
    assert found["boxes_score_max"] < 1e-6
    assert found["boxes_lost"] == found["boxes_new"] == 0
    assert report.basis["parity/engine-fp32/boxes_centre_px_p99"].low == pytest.approx(2)
    across = metrics_of(lambda x: shuffled(shifted(x, dy=0.0)))
    assert across["boxes_centre_px_p99"] == pytest.approx(2)
    assert across["boxes_centre_px_mean"] == across["boxes_centre_px_bias"] == pytest.approx(1)  # of x and y


def test_one_box_lost_and_one_new_in_each_picture():
    def lose(x):
        x[:, 4:, 0] = 0
        return shuffled(x)

    report = measured(lose)
    found = report.targets["engine-fp32"].metrics
    assert (found["boxes_lost"], found["boxes_new"]) == (pytest.approx(1 / ANCHORS), 0)
    assert found["boxes_centre_px_lost"] == pytest.approx(1 / ANCHORS)
    assert found["boxes_centre_px_max"] < 1e-4
    assert 0.5 / ANCHORS < found["boxes_ap_loss"] < 2 / ANCHORS
    basis = report.basis["parity/engine-fp32/boxes_lost"]
    assert (basis.low, basis.high) == pytest.approx((1 / ANCHORS,) * 2)  # the same in every picture

    extra = torch.zeros(PICTURES, 4 + CLASSES, 1)
    extra[:, :5] = torch.tensor([300.0, 300, 20, 20, 0.9])[None, :, None]
    found = metrics_of(lambda x: torch.cat([extra[: len(x)], x], 2))
    assert "rel_l2" not in found  # outputs of another number of boxes have no plain distance
    assert (found["boxes_lost"], found["boxes_new"]) == (0, pytest.approx(1 / ANCHORS))
    assert found["boxes_centre_px_max"] < 1e-4


def test_scaled_scores_and_exchanged_classes():
    def scale(x):
        x[:, 4:] *= 0.9
        return shuffled(x)

    found = metrics_of(scale)
    scores = outputs()[:, 4:].amax(1)
    assert found["boxes_score_bias"] == pytest.approx(-0.1 * scores.mean().item(), rel=0.1)
    assert found["boxes_score_max"] == pytest.approx(0.1 * scores.max().item(), rel=0.1)
    assert found["boxes_lost"] == found["boxes_label_flips"] == 0 <= found["boxes_centre_px_max"] < 1e-4
    found = metrics_of(lambda x: shuffled(torch.cat([x[:, :4], x[:, 4:].roll(1, 1)], 1)))
    assert found["boxes_label_flips"] == 1
    assert found["boxes_lost"] == found["boxes_centre_px_max"] < 1e-4


def test_what_the_reference_knows_goes_with_its_boxes():
    """Boxes of class 0 are known and alone move, in the reference, in the chain and under another order."""

    def known(values, rows):
        return {"boxes": values["boxes"].labels == 0}

    def move_class(x):
        x[:, 0] += 2.0 * (x[:, 4] > 0)
        return shuffled(x)

    runtimes = [Faulty(shuffled, "emulated"), Faulty(move_class, "onnxruntime")]
    runtimes[0].precision = "fp16"
    runtimes[1].precision = "fp16"
    report = measure_parity(Subject(nn.Identity(), (outputs(),)), runtimes, decode=read, known=known)
    found = report.targets["onnxruntime-fp16"].metrics
    assert report.unit == "boxes_centre_px_known_p99"
    assert found["boxes_centre_px_known_p99"] == pytest.approx(2)
    assert found["boxes_centre_px_guessed_max"] < 1e-4
    (engine,) = (link for link in report.chain if link.name == "engine")
    assert (engine.source, engine.value, engine.bias) == ("emulated-fp16", pytest.approx(2), pytest.approx(1))


def test_reference_without_boxes_is_nothing_measured():
    report = measured(lambda x: x, decode=lambda values: {"boxes": yolo_boxes(values, threshold=0.99)})
    assert math.isnan(report.targets["engine-fp32"].metrics["boxes_centre_px_p99"])
    assert "The reference finds no boxes with an area on these samples: there is nothing to compare." in report.remarks
    judged = judge_report(report, {"engine-fp32/boxes_centre_px_p99": 1.0})
    assert judged.status != "within"
    assert "there is no value to compare on these samples" in judged.text()


def test_reference_without_boxes_is_counted_in_what_is_there():
    """In the next value that has a point, else by the plain outputs; tables hold no column of nothing."""

    def decode(values, scale):
        return {"boxes": yolo_boxes(values, threshold=0.99), "score": values[:, 4:].amax((1, 2)) * scale}

    for scale, unit in ((1.0, "score_p99"), (math.nan, "rel_l2")):
        report = measured(lambda x: 1.01 * x, decode=partial(decode, scale=scale))
        assert report.unit == unit
        assert 0.005 < report.attribution.get("engine/engine-fp32", report.targets["engine-fp32"].metrics[unit]) < 0.02
        assert not any("boxes" in column for column in target_rows(report)[0])
        assert "nan" not in summary(report)
    none = measured(lambda x: torch.cat([x, x], 2), decode=lambda values: {"boxes": yolo_boxes(values, threshold=0.99)})
    assert none.targets["engine-fp32"].status == "failed"  # of another number of boxes, and nothing else to compare
    assert "Expected an output of shape (16, 7, 6), but got (16, 7, 12)" in none.targets["engine-fp32"].note


def test_all_boxes_lost_is_infinitely_far():
    found = metrics_of(torch.zeros_like)
    assert (found["boxes_lost"], found["boxes_centre_px_p99"]) == (1, math.inf)


def test_columns_of_boxes():
    columns, _ = target_rows(measured(shifted))
    for name in (
        "boxes centre px p99",
        "boxes size px p99",
        "boxes lost",
        "boxes new",
        "boxes label flips",
        "boxes ap loss",
    ):
        assert name in columns


class Brightest(nn.Module):
    """One bright box in each dark picture, by its moments, which move with the picture to fractions of a pixel."""

    def forward(self, pictures):
        weights = pictures.mean(1).clamp(min=0)
        weights = weights / weights.sum((1, 2), keepdim=True)
        found = []
        for dim in (1, 2):
            share = weights.sum(dim)
            places = torch.arange(share.shape[1], dtype=share.dtype, device=share.device) + 0.5
            mean = (share * places).sum(1)
            variance = (share * (places - mean[:, None]).square()).sum(1)
            found += [(mean, (12 * variance).sqrt())]
        (x, width), (y, height) = found
        return torch.stack([x, y, width, height, torch.full_like(x, 0.9)], 1)[:, :, None]


def test_beyond_geometry_with_moved_boxes():
    pictures = torch.zeros(4, 3, 32, 48)
    for index, picture in enumerate(pictures):
        picture[:, 8 + index : 20, 10 + 2 * index : 30] = 1.0
    report = measure_parity(
        Subject(Brightest(), (pictures,)),
        available(["torch-fp32"]),
        decode=read,
        moved=lambda values, matrix: {"boxes": values["boxes"].moved(matrix, (32, 48))},
        perturbations=perturbations(["shift_half_pixel", "brightness"]),
        pixels=PixelSpace(),
    )
    shift, brighter = report.sensitivity["shift_half_pixel"], report.sensitivity["brightness"]
    assert shift["boxes_centre_px_mean"] == pytest.approx(0.5, abs=0.3)
    assert shift[BEYOND] < 1e-3
    assert brighter["boxes_centre_px_max"] < 1e-3


class Thirds(nn.Module):
    """Three classes by brightness."""

    def forward(self, pictures):
        level = 3 * pictures.mean(1, keepdim=True)
        return -(level - torch.tensor([0.5, 1.5, 2.5]).reshape(1, 3, 1, 1)).square()


def gradient(count=4):
    return torch.linspace(0, 1, 48).expand(count, 3, 32, 48).clone()


def test_masks_by_class():
    report = measure_parity(
        Subject(Thirds(), (gradient(),)),
        [Faulty(lambda x: Thirds()(x).roll(1, -1))],
        decode=lambda logits: {"mask": segmentation_masks(logits)},
    )
    found = report.targets["engine-fp32"].metrics
    assert report.unit == "mask_boundary_px_p99"
    # two upright edges move by a pixel; the column that comes in at the left adds one to the outer classes
    assert found["mask_boundary_px_p99"] == pytest.approx(2)
    assert found["mask_flips"] == pytest.approx(3 / 48)
    # 16 columns of each class: 15 of 17, the last of them 14 of 18
    assert 0.1 < found["mask_iou_loss"] < 0.25


def test_beyond_geometry_with_moved_masks():
    """Both upright edges move by a pixel with the picture, and by nothing beyond."""
    report = measure_parity(
        Subject(Thirds(), (gradient(),)),
        available(["torch-fp32"]),
        decode=lambda logits: {"mask": segmentation_masks(logits)},
        moved=lambda values, matrix: {"mask": values["mask"].moved(matrix)},
        perturbations=perturbations(["shift_one_pixel", "brightness"]),
        pixels=PixelSpace(),
    )
    shift, brighter = report.sensitivity["shift_one_pixel"], report.sensitivity["brightness"]
    assert shift["mask_boundary_px_mean"] == pytest.approx(1.0, abs=0.01)
    assert shift[BEYOND] == 0
    assert brighter["mask_boundary_px_mean"] > 0.5
    assert BEYOND not in brighter or brighter[BEYOND] == brighter["mask_boundary_px_mean"]


def test_masks_of_another_size_are_one_sentence():
    report = measure_parity(
        Subject(Thirds(), (gradient(),)),
        [Faulty(lambda x: Thirds()(x)[..., ::2, ::2])],
        decode=lambda logits: {"mask": segmentation_masks(logits)},
    )
    target = report.targets["engine-fp32"]
    assert target.status == "failed"
    assert "Expected masks of shape (4, 32, 48), as the reference's are, but got (4, 16, 24)" in target.note


def test_a_list_of_pictures_is_refused_with_what_to_do():
    class Listed(nn.Module):
        def forward(self, x):
            return [
                {"boxes": torch.ones(2, 4) * each, "scores": each[:2], "labels": torch.arange(2)} for each in x[:, 0]
            ]

    report = measure_parity(
        Subject(Listed(), (torch.rand(20, 3, 4),)),
        available(["torch-fp32"]),
        decode=lambda pictures: {"boxes": torchvision_boxes(pictures)},
    )
    assert any("torchvision_boxes(outputs, limit=100)" in note for note in report.notes), report.notes


def test_rejects_values_of_another_kind():
    boxes = Boxes(torch.ones(2, 1, 4), torch.ones(2, 1), torch.zeros(2, 1, dtype=torch.long))
    masks = Masks(torch.zeros(2, 4, 4, dtype=torch.long), 2)
    plain = [torch.ones(2, 1)]
    with pytest.raises(ValueError, match="Expected 'x' to be decoded as Boxes, but got Masks"):
        Readout(plain, {"x": boxes}).distance(Readout(plain, {"x": masks}))
