"""Overlap, suppression and matching against what a reader would do by hand."""

import itertools

import pytest
import torch

from lightning_robust.decoding import Boxes, box_iou, match_boxes, nms

from .made import scattered


def crowded(count, seed):
    generator = torch.Generator().manual_seed(seed)
    corner, size = 40 * torch.rand(count, 2, generator=generator), 5 + 30 * torch.rand(count, 2, generator=generator)
    scores = torch.rand(count, generator=generator).mul(20).round() / 20  # some are equal
    return torch.cat([corner, corner + size], 1), scores, torch.randint(3, (count,), generator=generator)


def overlap_by_hand(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0) * max(height, 0)
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)


def suppressed_by_hand(xyxy, scores, iou, labels):
    kept = []
    for index in sorted(range(len(scores)), key=lambda index: -scores[index]):
        rivals = [other for other in kept if labels[other] == labels[index]]
        if all(overlap_by_hand(xyxy[index], xyxy[other]) <= iou for other in rivals):
            kept.append(index)
    return kept


def test_overlap_matches_reference():
    (ours, *_), (theirs, *_) = crowded(7, 0), crowded(5, 1)
    expected = [[overlap_by_hand(a, b) for b in theirs.tolist()] for a in ours.tolist()]
    torch.testing.assert_close(box_iou(ours, theirs), torch.tensor(expected))


def test_overlap_of_boxes_without_area_is_zero():
    assert box_iou(torch.ones(1, 4), torch.ones(1, 4)).item() == 0.0


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("iou", [0.1, 0.45, 0.7])
def test_suppression_matches_reference(seed, iou):
    xyxy, scores, labels = crowded(80, seed)
    expected = suppressed_by_hand(xyxy.tolist(), scores.tolist(), iou, labels.tolist())
    assert nms(xyxy, scores, iou, labels).tolist() == expected
    alone = suppressed_by_hand(xyxy.tolist(), scores.tolist(), iou, [0] * 80)
    assert nms(xyxy, scores, iou).tolist() == alone


def test_suppression_of_a_chain_and_of_nothing():
    """Each box suppresses the next one, if it is there itself: every second one stays, found in the last round."""
    starts = 4.0 * torch.arange(9)
    xyxy = torch.stack([starts, torch.zeros(9), starts + 10, torch.ones(9)], 1)
    assert nms(xyxy, torch.linspace(1, 0, 9), 0.3).tolist() == [0, 2, 4, 6, 8]
    assert nms(torch.zeros(0, 4), torch.zeros(0), 0.5).tolist() == []


def test_matching_has_the_largest_total_weight():
    """Against all assignments of small sets."""
    edges, scores, _ = crowded(5, 3)
    others = edges[[3, 1, 4, 0, 2]] + 2 * torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    one, two = (Boxes(each[None], scores[None], torch.zeros(1, 5, dtype=torch.long)) for each in (edges, others))
    overlap = box_iou(edges.double(), others.double())
    gaps = (scores[:, None] - scores).abs()
    weights = torch.where(overlap >= 0.5, 2 - (1 - overlap) ** 2 + 1e-3 * (1 - gaps), 0.0)
    best = max(itertools.permutations(range(5)), key=lambda way: weights[range(5), way].sum())
    expected = [slot if weights[index, slot] > 0 else -1 for index, slot in enumerate(best)]
    assert match_boxes(one, two)[0, :5].tolist() == expected


def test_a_row_of_boxes_that_all_moved_is_not_matched_as_one_that_jumped():
    starts = 4.0 * torch.arange(5)
    edges = torch.stack([starts, torch.zeros(5), starts + 20, torch.full((5,), 20.0)], 1)[None]
    boxes = Boxes(edges, torch.full((1, 5), 0.5), torch.zeros(1, 5, dtype=torch.long))
    moved = Boxes(edges + torch.tensor([4.0, 0, 4, 0]), boxes.scores, boxes.labels)
    assert match_boxes(boxes, moved).tolist() == [[0, 1, 2, 3, 4]]


def test_order_class_and_what_is_left():
    boxes = scattered()
    order = torch.randperm(boxes.shape[1], generator=torch.Generator().manual_seed(1))
    shuffled = Boxes(boxes.xyxy[:, order], boxes.scores[:, order], boxes.labels[:, order])
    found = match_boxes(boxes, shuffled)
    assert found.shape == boxes.shape  # nothing is left over
    assert torch.equal(order[found][boxes.present], torch.arange(len(order)).expand(boxes.shape)[boxes.present])
    assert bool((found[~boxes.present] == -1).all())
    far = Boxes(boxes.xyxy + 300, boxes.scores, boxes.labels)
    assert bool((match_boxes(boxes, far)[:, : boxes.shape[1]] == -1).all())
    twice = Boxes(boxes.xyxy[:1, [0, 0]], torch.tensor([[0.9, 0.8]]), torch.tensor([[0, 1]]))
    assert match_boxes(twice, Boxes(twice.xyxy, twice.scores, twice.labels.flip(1))).tolist() == [[1, 0]]
