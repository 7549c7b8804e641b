"""Masks against closed forms and torchmetrics."""

import pytest
import torch
from torchmetrics.functional.classification import multiclass_jaccard_index

from lightning_robust.decoding import Masks, mean_iou, segmentation_masks
from lightning_robust.decoding.masks import confusion


def random_masks(seed, classes=4):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(classes, (3, 6, 5), generator=generator)
    return Masks(coarse.repeat_interleave(8, 1).repeat_interleave(8, 2), classes)


def moved(masks, pixels):
    return Masks(masks.labels.roll(pixels, 2), masks.classes)


@pytest.mark.parametrize("pixels", [1, 3])
def test_boundary_closed_form(pixels):
    """Upright edges that move by so many pixels; a disc's whole boundary moves by about their share of it."""
    columns, rows = torch.arange(40).expand(1, 30, 40), torch.arange(30)[:, None].expand(1, 30, 40)
    stripe = Masks(((columns >= 10) & (columns < 25)).long(), 2)
    aligned = stripe.compare(moved(stripe, pixels))
    assert aligned.parts["boundary_px"][1].tolist() == [[pixels, pixels]]
    assert aligned.metrics()["flips"] == pytest.approx(2 * pixels / 40)
    square = Masks(((columns >= 10) & (columns < 20) & (rows >= 10) & (rows < 20)).long(), 2)
    half = square.compare(moved(square, pixels)).parts["boundary_px"][1]
    assert half.tolist() == [[pixels / 2, pixels / 2]]  # two of its four sides move
    grown = (columns >= 10 - pixels) & (columns < 20 + pixels) & (rows >= 10 - pixels) & (rows < 20 + pixels)
    area, sides = (10 + 2 * pixels) ** 2 - 100, 40
    assert square.compare(Masks(grown.long(), 2)).parts["boundary_px"][1][0, 1] == pytest.approx(area / sides)


def test_classes_that_are_on_one_side_or_on_none():
    ground = torch.zeros(1, 8, 8, dtype=torch.long)
    dotted = ground.clone()
    dotted[0, 2:4, 2:4] = 2
    exact, found = Masks(ground, 4).compare(Masks(dotted, 4)).parts["boundary_px"]
    assert found[0, [0, 2]].tolist() == [0.5, 0.5]  # four pixels over eight edges of the deployed mask
    assert found.isnan().tolist() == exact.isnan().tolist() == [[False, True, False, True]]
    same = Masks(ground, 4).compare(Masks(ground, 4))
    assert same.parts["boundary_px"][1][0, 0] == 0
    assert same.metrics() == {"flips": 0.0, "iou_loss": 0.0}
    turned = Masks(ground, 2).compare(Masks(ground + 1, 2))
    assert turned.parts["boundary_px"][1].isnan().all()
    assert turned.metrics() == {"flips": 1.0, "iou_loss": 1.0}
    assert Masks(ground, 4).remarks("mask") == [
        "All pixels of mask are of one class on these samples: there is no boundary that could move."
    ]
    assert Masks(dotted, 4).remarks("mask") == []


def test_matches_torchmetrics():
    one, two = random_masks(0), random_masks(1)
    expected = multiclass_jaccard_index(two.labels, one.labels, num_classes=4)
    assert mean_iou(two, one) == pytest.approx(expected.item(), abs=1e-6)
    assert one.compare(two).metrics()["iou_loss"] == pytest.approx(1 - expected.item(), abs=1e-6)
    ignored = one.labels.masked_fill(one.labels == 3, 255)
    expected = multiclass_jaccard_index(two.labels, ignored, num_classes=4, ignore_index=255)
    seen = Masks(ignored, 4)
    assert mean_iou(two, seen) <= expected.item() + 1e-6  # class 3 is found where the truth has others
    assert int(confusion(seen, two).sum()) == int((ignored != 255).sum())


def test_logits():
    logits = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(segmentation_masks(logits).labels, logits.argmax(1))
    assert segmentation_masks(logits, (8, 12)).labels.shape == (2, 8, 12)
    assert torch.equal(segmentation_masks(logits[:, :1]).labels, (logits[:, 0].sigmoid() > 0.5).long())


def test_motion():
    stripe = Masks((torch.arange(8).expand(1, 4, 8) >= 3).long(), 2)
    right = torch.tensor([[1.0, 0, 2], [0, 1, 0], [0, 0, 1]])
    assert torch.equal(stripe.moved(right).labels, (torch.arange(8).expand(1, 4, 8) >= 5).long())


def test_rejects_other_sizes_and_types():
    with pytest.raises(ValueError, match=r"masks of shape \(3, 48, 40\), .* but got \(3, 24, 20\)"):
        random_masks(0).compare(Masks(random_masks(0).labels[:, ::2, ::2], 4))
    with pytest.raises(ValueError, match=r"integers \(N, H, W\), but got torch.float32 \(1, 2, 3, 4\)"):
        Masks(torch.zeros(1, 2, 3, 4), 2)
