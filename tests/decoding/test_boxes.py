"""Boxes of another runtime: planted faults show in their own number, another order in none."""

import pytest
import torch

from lightning_robust.decoding import Boxes
from lightning_robust.functional import move_boxes

from .made import scattered

QUIET = {"lost": 0.0, "new": 0.0, "label_flips": 0.0, "ap_loss": 0.0}


def deviations(boxes, other):
    found = {}
    for name, (exact, seen) in boxes.compare(other).parts.items():
        error = (seen - exact).flatten()
        found[name] = error[~error.isnan()]
    return found


def shuffled(boxes, seed=1):
    order = torch.randperm(boxes.shape[1], generator=torch.Generator().manual_seed(seed))
    return Boxes(boxes.xyxy[:, order], boxes.scores[:, order], boxes.labels[:, order])


def test_another_order_shows_nothing():
    boxes = scattered()
    assert boxes.compare(shuffled(boxes)).metrics() == pytest.approx(QUIET)
    assert all(not bool(error.any()) for error in deviations(boxes, shuffled(boxes)).values())


def test_a_shift_shows_in_the_centres_alone():
    boxes = scattered()
    moved = shuffled(Boxes(boxes.xyxy + 2, boxes.scores, boxes.labels))
    found = deviations(boxes, moved)
    torch.testing.assert_close(found["centre_px"], torch.full((2 * int(boxes.present.sum()),), 2.0))
    assert found["size_px"].abs().max() < 1e-4  # a step of fp32 at 300 px is 3e-5
    assert not found["score"].any()
    assert {name: value for name, value in boxes.compare(moved).metrics().items() if name != "ap_loss"} == {
        "lost": 0.0,
        "new": 0.0,
        "label_flips": 0.0,
    }


def test_sizes_scores_and_classes_show_in_their_own_number():
    boxes = scattered()
    wider = shuffled(Boxes(boxes.xyxy + torch.tensor([-1.0, 0, 1, 0]), boxes.scores, boxes.labels))
    error = deviations(boxes, wider)
    assert error["size_px"].reshape(-1, 2).mean(0).tolist() == pytest.approx([2.0, 0.0], abs=1e-4)
    assert error["centre_px"].abs().max() < 1e-4
    halved = shuffled(Boxes(boxes.xyxy, 0.5 * boxes.scores, boxes.labels))
    torch.testing.assert_close(deviations(boxes, halved)["score"], -0.5 * boxes.scores[boxes.present])
    assert boxes.compare(halved).metrics() == pytest.approx(QUIET)  # the order of scores is that of precision
    flipped = boxes.labels.clone()
    flipped[0, 0] = (flipped[0, 0] + 1) % 3
    changed = boxes.compare(shuffled(Boxes(boxes.xyxy, boxes.scores, flipped))).metrics()
    assert changed["label_flips"] == pytest.approx(1 / int(boxes.present.sum()))
    assert changed["lost"] == changed["new"] == 0.0


def test_lost_and_new_boxes_are_counted():
    boxes = scattered()
    count = int(boxes.present.sum())
    scores = boxes.scores.clone()
    scores[0, 0] = torch.nan
    fewer = shuffled(Boxes(boxes.xyxy, scores, boxes.labels))
    assert boxes.compare(fewer).metrics()["lost"] == pytest.approx(1 / count)
    assert boxes.compare(fewer).metrics()["new"] == 0.0
    more = fewer.compare(boxes).metrics()
    assert (more["lost"], more["new"]) == (0.0, pytest.approx(1 / (count - 1)))
    exact, found = fewer.compare(boxes).parts["centre_px"]
    assert (exact[..., 0].isnan() & ~found[..., 0].isnan()).sum() == 1
    torch.testing.assert_close(exact[:, : boxes.shape[1]].isnan().any(-1), ~fewer.present)  # first, in its own order


def test_lost_precision_is_that_of_the_boxes():
    """All boxes of one class, the one of lowest score is lost: recall ends at (n - 1) / n with precision 1."""
    boxes = scattered(classes=1)
    count = int(boxes.present.sum())
    lowest = boxes.scores == boxes.scores[boxes.present].min()
    fewer = Boxes(boxes.xyxy, boxes.scores.masked_fill(lowest, torch.nan), boxes.labels)
    points = sum(k / 100 <= (count - 1) / count for k in range(101))
    assert boxes.compare(fewer).metrics()["ap_loss"] == pytest.approx(1 - points / 101)


def test_other_numbers_of_slots_and_pictures_without_boxes():
    boxes = scattered()
    wide = Boxes.stack([(e, s, c) for e, s, c in zip(boxes.xyxy, boxes.scores, boxes.labels, strict=True)], limit=20)
    assert wide.shape == (6, 20)
    assert boxes.compare(wide).metrics() == pytest.approx(QUIET)
    none = Boxes.stack([(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.long))] * 6)
    assert none.shape == (6, 0)
    assert boxes.compare(none).metrics()["lost"] == 1.0
    assert all(error.numel() == 0 for error in deviations(none, none).values())
    assert none.remarks("boxes") == [
        "The reference finds no boxes with an area on these samples: there is nothing to compare."
    ]


def test_boxes_without_area_are_none():
    boxes = scattered()
    flat = boxes.xyxy.clone()
    flat[0, 0, 2] = flat[0, 0, 0]
    flat[2, 0, 1] = torch.inf
    worse = Boxes(flat, boxes.scores, boxes.labels)
    count = int(boxes.present.sum())
    assert int(worse.present.sum()) == count - 2
    assert boxes.compare(worse).metrics()["lost"] == pytest.approx(2 / count)
    assert worse.compare(worse).metrics() == pytest.approx(QUIET)
    assert worse.remarks("boxes") == [f"2 of {count} boxes have no area, or no finite edge, and are left out."]


def test_the_highest_scores_take_the_slots():
    edges, scores = torch.arange(16.0).reshape(4, 4), torch.tensor([0.2, 0.9, 0.5, 0.7])
    boxes = Boxes.stack([(edges, scores, torch.arange(4))], limit=2)
    assert boxes.labels.tolist() == [[1, 3]]
    assert torch.equal(boxes.xyxy[0], edges[[1, 3]])


def test_convention_of_pixels():
    """A box of the whole picture stays that of the whole picture when it is enlarged about its corner."""
    twice = torch.tensor([[2.0, 0, 0.5], [0, 2, 0.5], [0, 0, 1]])  # pixel centres: (x + 0.5) * 2 - 0.5
    box = Boxes(torch.tensor([[[0.0, 0, 8, 6]]]), torch.ones(1, 1), torch.zeros(1, 1, dtype=torch.long))
    assert box.moved(twice).xyxy.tolist() == [[[0.0, 0.0, 16.0, 12.0]]]
    assert torch.equal(move_boxes(box.xyxy - 0.5, twice), box.moved(twice).xyxy - 0.5)


def test_boxes_that_leave_the_picture():
    left = torch.tensor([[1.0, 0, -6], [0, 1, 0], [0, 0, 1]])
    edges = torch.tensor([[[0.0, 0, 5, 5], [4, 0, 12, 5]]])
    moved = Boxes(edges, torch.ones(1, 2), torch.zeros(1, 2, dtype=torch.long)).moved(left, (10, 20))
    assert moved.present.tolist() == [[False, True]]
    assert moved.xyxy[0, 1].tolist() == [0.0, 0.0, 6.0, 5.0]


def test_gradients_reach_matched_boxes():
    boxes = scattered()
    edges = (boxes.xyxy + 1).requires_grad_()
    exact, found = boxes.compare(shuffled(Boxes(edges, boxes.scores, boxes.labels))).parts["centre_px"]
    (found - exact)[boxes.present].sum().backward()
    assert torch.equal(edges.grad[boxes.present], torch.full((int(boxes.present.sum()), 4), 0.5))


def test_rejects_what_does_not_fit():
    with pytest.raises(ValueError, match=r"Expected boxes \(N, K, 4\), .* but got \(1, 2, 4\), \(1, 3\) and \(1, 3\)"):
        Boxes(torch.zeros(1, 2, 4), torch.zeros(1, 3), torch.zeros(1, 3, dtype=torch.long))
    with pytest.raises(ValueError, match="at least one picture"):
        Boxes.stack([])
    with pytest.raises(ValueError, match="boxes of 6 pictures, but got those of 2"):
        scattered().compare(scattered()[:2])


def test_an_empty_slot_takes_no_place_of_a_box():
    """NaN is its mark, which torch sorts above every score."""
    edges, scores = torch.tensor([[0.0, 0, 1, 1], [2, 2, 4, 4]]), torch.tensor([torch.nan, 0.9])
    boxes = Boxes.stack([(edges, scores, torch.tensor([0, 1]))], limit=1)
    assert boxes.xyxy.tolist() == [[[2, 2, 4, 4]]]
