"""Average precision against pycocotools' numbers and closed forms."""

import contextlib
import io
import math

import pytest
import torch

from lightning_robust.decoding import Boxes, mean_average_precision

from .made import coco_case, scattered

COCO = {  # pycocotools 2.0.11 (and faster-coco-eval 1.8.0): COCOeval(..., "bbox").stats[:3] of coco_case(seed)
    0: (0.205934900300325, 0.4397957652908148, 0.17177756237162178),
    1: (0.1411077528151638, 0.24862706522368486, 0.13659300712679961),
    2: (0.13069727049024465, 0.2783674291813721, 0.11412763727148482),
    3: (0.2094680947755466, 0.4053369897429303, 0.14907212236550435),
}


@pytest.mark.parametrize("seed", COCO)
def test_matches_the_numbers_of_pycocotools(seed):
    truth, found = coco_case(seed)
    assert tuple(mean_average_precision(found, truth).values()) == pytest.approx(COCO[seed], abs=1e-12)


def test_matches_pycocotools_where_it_is_installed():
    truth, found = coco_case(7, pictures=30, classes=5, most=20)
    assert tuple(mean_average_precision(found, truth).values()) == pytest.approx(
        by_pycocotools(truth, found), abs=1e-12
    )


def by_pycocotools(truth, found):
    coco = pytest.importorskip("pycocotools.coco")
    evaluation = pytest.importorskip("pycocotools.cocoeval")
    with contextlib.redirect_stdout(io.StringIO()):
        ground = coco.COCO()
        classes = [{"id": label} for label in range(1, 6)]
        ground.dataset = {
            "images": [{"id": picture + 1} for picture in range(len(truth.scores))],
            "annotations": annotations(truth),
            "categories": classes,
            "info": {},
        }
        ground.createIndex()
        judged = evaluation.COCOeval(ground, ground.loadRes(annotations(found)), "bbox")
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
    return judged.stats[:3]


def annotations(boxes):
    made = []
    for picture, slot in boxes.present.nonzero().tolist():
        left, top, right, bottom = boxes.xyxy[picture, slot].tolist()
        made.append(
            {
                "id": len(made) + 1,
                "image_id": picture + 1,
                "category_id": int(boxes.labels[picture, slot]) + 1,
                "bbox": [left, top, right - left, bottom - top],
                "area": (right - left) * (bottom - top),
                "iscrowd": 0,
                "score": float(boxes.scores[picture, slot]),
            }
        )
    return made


def test_closed_form():
    """One of two found by the higher of two scores: precision 1 up to recall 0.5, so that 51 of 101 points are 1."""
    edges = torch.tensor([[[0.0, 0, 10, 10], [40, 40, 60, 60]]])
    labels = torch.zeros(1, 2, dtype=torch.long)
    truth = Boxes(edges, torch.ones(1, 2), labels)
    found = Boxes(edges + torch.tensor([[[0.0], [200.0]]]), torch.tensor([[0.9, 0.8]]), labels)
    assert mean_average_precision(found, truth)["map"] == pytest.approx(51 / 101)


def test_the_truth_itself_is_perfect_and_nothing_is_zero():
    truth = scattered()
    empty = Boxes(truth.xyxy, torch.full_like(truth.scores, torch.nan), truth.labels)
    assert mean_average_precision(truth, truth) == {"map": 1.0, "map_50": 1.0, "map_75": 1.0}
    assert mean_average_precision(empty, truth)["map"] == 0.0
    assert math.isnan(mean_average_precision(truth, empty)["map"])
