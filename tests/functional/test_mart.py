import pytest
import torch

from lightning_robust.functional.mart import mart_losses


def by_probabilities(clean, perturbed, classes):
    """The formulas of the paper as they stand, in probabilities of fp64."""
    p, q = clean.double().softmax(1), perturbed.double().softmax(1)
    boosted, weighted = [], []
    for one, other, y in zip(p, q, classes.tolist(), strict=True):
        wrong = max(other[k] for k in range(len(other)) if k != y)
        boosted.append(-other[y].log() - (1 - wrong).log())
        weighted.append((one * (one / other).log()).sum() * (1 - one[y]))
    return torch.stack(boosted), torch.stack(weighted)


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_matches_the_formulas_in_probabilities(classes):
    torch.manual_seed(0)
    clean, perturbed = 3 * torch.randn(2, 40, classes, dtype=torch.float64)
    labels = torch.arange(40) % classes
    found, expected = mart_losses(clean, perturbed, labels), by_probabilities(clean, perturbed, labels)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_closed_form():
    """p = (1/2, 1/4, 1/4) before and (1/4, 1/2, 1/4) after: 2 log 2 + log 2, and half of (1/4) log 2."""
    clean, perturbed = torch.tensor([[2.0, 1, 1]]).log(), torch.tensor([[1.0, 2, 1]]).log()
    boosted, weighted = mart_losses(clean, perturbed, torch.tensor([0]))
    log2 = torch.tensor(2.0).log()
    torch.testing.assert_close(boosted, 3 * log2[None])
    torch.testing.assert_close(weighted, (0.5 * 0.25 * log2)[None])


def test_stays_finite_with_gradients_where_probabilities_are_not():
    """Logits of 1,000 apart: probabilities are 0 and 1 in fp32, their logarithms would be infinite."""
    clean = torch.tensor([[1000.0, 0, 0], [0, 1000, 0]], requires_grad=True)
    perturbed = torch.tensor([[0.0, 1000, 0], [0, 1000, 0]], requires_grad=True)
    boosted, weighted = mart_losses(clean, perturbed, torch.tensor([0, 0]))
    torch.testing.assert_close(
        boosted, torch.tensor([2000.0 - torch.tensor(2.0).log(), 2000 - torch.tensor(2.0).log()])
    )
    torch.testing.assert_close(weighted, torch.tensor([0.0, 0.0]))
    (boosted + weighted).sum().backward()
    assert clean.grad.isfinite().all()
    assert perturbed.grad.isfinite().all()


@pytest.mark.parametrize(("one", "other"), [((4, 3), (4, 2)), ((4, 1), (4, 1)), ((4, 3, 2), (4, 3, 2))])
def test_rejects_other_shapes(one, other):
    with pytest.raises(ValueError, match="at least two classes for clean and perturbed"):
        mart_losses(torch.zeros(one), torch.zeros(other), torch.zeros(4, dtype=torch.long))
