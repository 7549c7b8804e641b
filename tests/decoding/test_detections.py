"""Outputs of detectors as others read them."""

import pytest
import torch

from lightning_robust.decoding import detr_boxes, torchvision_boxes, yolo_boxes

from .test_overlap import suppressed_by_hand


def detr_outputs(queries=12, classes=4):
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, queries, classes + 1, generator=generator)
    return {"pred_logits": logits, "pred_boxes": 0.2 + 0.6 * torch.rand(2, queries, 4, generator=generator)}


def test_detr_by_hand():
    outputs = detr_outputs()
    found = detr_boxes(outputs, 100, 200, threshold=0.3)
    for picture in range(2):
        for query in range(12):
            probabilities = outputs["pred_logits"][picture, query].softmax(0)[:-1].tolist()
            x, y, width, height = outputs["pred_boxes"][picture, query].tolist()
            expected = [200 * (x - width / 2), 100 * (y - height / 2), 200 * (x + width / 2), 100 * (y + height / 2)]
            assert found.xyxy[picture, query].tolist() == pytest.approx(expected, abs=1e-4)
            assert bool(found.present[picture, query]) == (max(probabilities) > 0.3)
            assert found.labels[picture, query] == probabilities.index(max(probabilities))


def test_detr_of_other_names_and_of_sigmoids():
    outputs = detr_outputs()
    pair = outputs["pred_logits"], outputs["pred_boxes"]
    renamed = {"loss": torch.zeros(()), "logits": pair[0], "pred_boxes": pair[1]}
    for other in (pair, renamed):
        assert torch.equal(
            detr_boxes(other, 10, 10).scores.nan_to_num(), detr_boxes(outputs, 10, 10).scores.nan_to_num()
        )
    found = detr_boxes(outputs, 10, 10, 0.0, sigmoid=True)
    assert torch.equal(found.scores, pair[0].sigmoid().amax(-1))
    with pytest.raises(KeyError, match="Expected outputs with 'logits' or 'pred_logits', and 'pred_boxes', but got"):
        detr_boxes({"scores": pair[0], "pred_boxes": pair[1]}, 10, 10)


def yolo_outputs(anchors=60, classes=3, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    centre, size = (
        40 * torch.rand(2, 2, anchors, generator=generator),
        10 + 20 * torch.rand(2, 2, anchors, generator=generator),
    )
    return torch.cat([centre, size, torch.rand(2, classes, anchors, generator=generator)], 1).to(dtype)


@pytest.mark.parametrize("iou", [0.45, 0.7])
def test_yolo_by_hand(iou):
    outputs = yolo_outputs()
    found = yolo_boxes(outputs, threshold=0.6, iou=iou)
    for picture in range(2):
        anchors = outputs[picture].T.tolist()
        sure = [(max(each[4:]), each[4:].index(max(each[4:])), each[:4]) for each in anchors if max(each[4:]) > 0.6]
        edges = [[x - w / 2, y - h / 2, x + w / 2, y + h / 2] for _, _, (x, y, w, h) in sure]
        kept = suppressed_by_hand(edges, [score for score, _, _ in sure], iou, [label for _, label, _ in sure])
        count = int(found.present[picture].sum())
        assert count == len(kept) < len(sure)
        torch.testing.assert_close(found.xyxy[picture, :count], torch.tensor(edges)[kept])
        assert found.labels[picture, :count].tolist() == [sure[index][1] for index in kept]


def test_yolo_has_a_fixed_number_of_slots():
    assert yolo_boxes(yolo_outputs(), threshold=0.0, limit=7).shape == (2, 7)
    assert not yolo_boxes(yolo_outputs(), threshold=1.0, limit=7).present.any()
    assert bool(yolo_boxes(yolo_outputs(), 0.0, 1.0, limit=7).present.all())


def test_half_outputs_are_read_in_fp32():
    assert yolo_boxes(yolo_outputs(dtype=torch.bfloat16)).xyxy.dtype == torch.float32
    assert yolo_boxes(yolo_outputs(dtype=torch.float64)).xyxy.dtype == torch.float64
    outputs = {name: value.half() for name, value in detr_outputs().items()}
    assert detr_boxes(outputs, 10, 10).scores.dtype == torch.float32


def test_torchvision():
    pictures = [
        {
            "boxes": torch.tensor([[0.0, 0, 5, 5], [2, 2, 9, 9]]),
            "scores": torch.tensor([0.9, 0.02]),
            "labels": torch.tensor([3, 1]),
        },
        {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.int64)},
    ]
    found = torchvision_boxes(pictures)
    assert found.present.tolist() == [[True], [False]]
    assert (found.labels[0, 0], found.xyxy[0, 0].tolist()) == (3, [0.0, 0.0, 5.0, 5.0])
    assert torchvision_boxes(pictures, limit=4).shape == (2, 4)
    targets = [{"boxes": each["boxes"], "labels": each["labels"]} for each in pictures]
    assert torchvision_boxes(targets).present.tolist() == [[True, True], [False, False]]


@pytest.mark.parametrize("shape", [(2, 84), (1, 4, 100)])
def test_rejects_other_shapes(shape):
    with pytest.raises(ValueError, match=r"Expected outputs \(N, 4 \+ classes, anchors\), but got"):
        yolo_boxes(torch.zeros(shape))
