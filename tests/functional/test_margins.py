import pytest
import torch

from lightning_robust.functional.margins import margin_loss, targeted_dlr_loss, targeted_margin_loss

LOGITS = torch.tensor([[5.0, 1.0, 3.0, 0.0, -2.0], [0.5, 2.0, 1.5, 1.0, -1.0]])


def test_closed_form():
    """By hand: (3 - 5) / (5 - (1 + 0) / 2) and (1 - 0.5) / (2 - (1 + 0.5) / 2)."""
    found = targeted_dlr_loss(LOGITS, torch.tensor([0, 0]), torch.tensor([2, 3]))
    torch.testing.assert_close(found, torch.tensor([-2 / 4.5, 0.5 / 1.25]))
    assert torch.equal(
        targeted_margin_loss(LOGITS, torch.tensor([0, 0]), torch.tensor([2, 3])), torch.tensor([-2, 0.5])
    )
    assert torch.equal(margin_loss(LOGITS, torch.tensor([0, 0])), torch.tensor([-2.0, 1.5]))
    assert torch.equal(margin_loss(LOGITS, torch.tensor([1, 1])), torch.tensor([4.0, -0.5]))


def test_dlr_does_not_know_the_scale_of_the_logits():
    torch.manual_seed(0)
    logits, classes = torch.randn(50, 10, dtype=torch.float64), torch.arange(50) % 10
    targets = (classes + 3) % 10
    first = targeted_dlr_loss(logits, classes, targets)
    torch.testing.assert_close(targeted_dlr_loss(1000 * logits - 7, classes, targets), first, rtol=1e-9, atol=1e-9)
    assert (targeted_margin_loss(logits, classes, targets) > 0).equal(first > 0)


def test_a_positive_margin_is_a_wrong_prediction():
    torch.manual_seed(0)
    logits, classes = torch.randn(200, 5), torch.randint(5, (200,))
    assert torch.equal(margin_loss(logits, classes) > 0, logits.argmax(1) != classes)


@pytest.mark.parametrize("count", [2, 3])
def test_rejects_too_few_classes_for_dlr(count):
    classes = torch.zeros(4, dtype=torch.long)
    with pytest.raises(ValueError, match=f"at least 4 classes for the targeted DLR loss.*but got {count}.*difference"):
        targeted_dlr_loss(torch.randn(4, count), classes, classes + 1)


@pytest.mark.parametrize(
    ("logits", "classes", "message"),
    [
        (torch.zeros(4), torch.zeros(4, dtype=torch.long), "logits \\(batch, classes\\)"),
        (torch.zeros(4, 1), torch.zeros(4, dtype=torch.long), "at least two classes"),
        (torch.zeros(4, 3), torch.zeros(3, dtype=torch.long), "one class \\(int64\\) for each of 4 samples"),
        (torch.zeros(4, 3), torch.zeros(4), "one class \\(int64\\)"),
        (torch.zeros(4, 3), torch.tensor([0, 1, 2, -1]), "classes from 0 to 2, but got some from -1 to 2"),
        (torch.zeros(4, 3), torch.tensor([0, 1, 2, 3]), "from 0 to 3"),
    ],
)
def test_rejects_what_is_no_classifier(logits, classes, message):
    with pytest.raises(ValueError, match=message):
        margin_loss(logits, classes)
