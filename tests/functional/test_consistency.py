"""The losses of unsupervised adversarial training against torch's own."""

import pytest
import torch
from torch import nn

from lightning_robust.functional.consistency import divergence, pseudo_label_loss


@pytest.mark.parametrize(("shape", "dim"), [((4, 5), 1), ((4, 5, 3, 2), 1), ((4, 2, 3, 5), -1)])
def test_are_those_of_torch(shape, dim):
    logits, goal = torch.randn(shape), torch.randn(shape)
    flat = [torch.movedim(t, dim, -1).reshape(4, -1, 5) for t in (logits, goal)]
    for row in range(4):
        p, g = (t[row].log_softmax(1) for t in flat)
        expected = nn.functional.kl_div(p, g, log_target=True, reduction="batchmean")
        assert divergence(logits, goal, dim)[row].item() == pytest.approx(expected.item(), rel=1e-5)
    labels = goal.argmax(dim)
    found = pseudo_label_loss(logits, labels, dim)
    for row in range(4):
        expected = nn.functional.cross_entropy(flat[0][row], labels[row].flatten())
        assert found[row].item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_target_is_stopped_and_agreement_is_the_minimum():
    logits = torch.randn(3, 4, requires_grad=True)
    goal = torch.randn(3, 4, requires_grad=True)
    divergence(logits, goal).sum().backward()
    assert goal.grad is None
    expected = (logits.softmax(1) - goal.softmax(1)).detach()
    torch.testing.assert_close(logits.grad, expected, rtol=1e-5, atol=1e-6)
    assert divergence(logits, logits).abs().max() < 1e-6


def test_rejects_a_target_with_other_classes():
    with pytest.raises(ValueError, match=r"shape \(2, 3\), but got \(2, 4\)\. Has the target model other classes"):
        divergence(torch.zeros(2, 3), torch.zeros(2, 4))
