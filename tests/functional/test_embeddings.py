import math

import pytest
import torch
from torch import nn

from lightning_robust.functional.embeddings import EmbeddingDeltas, freelb_loss, perturb_embedding


class Text(nn.Module):
    """A linear score of embedded tokens, and a head that shares the matrix."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.embedding = nn.Embedding(10, 4, padding_idx=0)
        self.score = nn.Linear(4, 1, bias=False)
        self.drop = nn.Dropout(dropout)

    def forward(self, tokens):
        return self.score(self.drop(self.embedding(tokens))).sum((1, 2))


TOKENS = torch.tensor([[1, 2, 3], [4, 5, 0]])


def test_fgm_closed_form():
    """For a linear score the gradient is the weight at every token: the step is eps along it, over the sample."""
    text = Text()
    deltas = perturb_embedding(lambda: 100 * text(TOKENS).sum(), text.embedding, 0.5)
    (delta,) = deltas.deltas
    w = text.score.weight[0].detach()
    unit = w / w.norm()
    expected = torch.stack([unit.expand(3, 4) / math.sqrt(3), unit.expand(3, 4) / math.sqrt(2)]) * 0.5
    expected[1, 2] = 0  # padding is not perturbed
    torch.testing.assert_close(delta.detach(), expected, rtol=1e-5, atol=1e-6)
    clean = text(TOKENS)
    with deltas.applied():
        gain = text(TOKENS) - clean
    torch.testing.assert_close(gain, 0.5 * w.norm() * torch.tensor([3.0, 2.0]).sqrt(), rtol=1e-4, atol=1e-5)
    assert torch.equal(text(TOKENS), clean)


@pytest.mark.parametrize("steps", [1, 4])
def test_stays_in_the_ball_and_leaves_no_gradient(steps):
    text = Text()
    deltas = perturb_embedding(lambda: text(TOKENS).square().sum(), text.embedding, 0.3, steps=steps, step_size=0.2)
    assert (deltas.deltas[0].flatten(1).norm(dim=1) <= 0.3 + 1e-6).all()
    assert all(parameter.grad is None for parameter in text.parameters())
    assert not text.embedding._forward_hooks


def test_freelb_trains_on_every_step():
    """With no start and a linear score: mean over t of score + t * step * |w| * sqrt(tokens)."""
    text = Text()
    w = text.score.weight.detach().norm()
    clean = text(TOKENS)
    expected = (clean + 0.1 * w * torch.tensor([3.0, 2.0]).sqrt() * (0 + 1 + 2) / 3).sum()
    loss = freelb_loss(lambda: text(TOKENS).sum(), text.embedding, steps=3, step_size=0.1, magnitude=0.0)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    loss.backward()
    assert text.score.weight.grad.abs().sum() > 0


def test_start_of_freelb_is_bounded_by_the_tokens():
    text = Text()
    deltas = EmbeddingDeltas(text.embedding)
    deltas.loss(lambda: text(TOKENS).sum())
    deltas.draw(0.6)
    (delta,) = deltas.deltas
    assert delta[0].abs().max() <= 0.6 / math.sqrt(12)
    assert delta[1, :2].abs().max() <= 0.6 / math.sqrt(8)
    assert (delta[1, 2] == 0).all()


def test_dropout_masks_agree_over_the_steps():
    text, masks = Text(0.5), []
    text.drop.register_forward_hook(lambda module, args, output: masks.append((output != 0).tolist()))
    torch.manual_seed(0)
    freelb_loss(lambda: text(TOKENS).sum(), text.embedding, steps=3)
    # the first pass only finds the shape
    assert len(masks) == 4
    assert masks[1] == masks[2] == masks[3]
    assert len({str(mask) for mask in masks[1:]}) == 1


def test_an_embedding_called_twice_has_two_perturbations():
    text = Text()
    deltas = perturb_embedding(lambda: (text(TOKENS) * text(TOKENS.flip(1))).sum(), text.embedding, 0.1)
    assert len(deltas.deltas) == 2


def test_rejects_what_is_not_used_or_negative():
    text = Text()
    with pytest.raises(ValueError, match="never called"):
        perturb_embedding(lambda: text(TOKENS).sum(), nn.Embedding(3, 3), 0.1)
    with pytest.raises(ValueError, match="`eps`"):
        perturb_embedding(lambda: text(TOKENS).sum(), text.embedding, -1.0)
    with pytest.raises(ValueError, match="one step"):
        freelb_loss(lambda: text(TOKENS).sum(), text.embedding, steps=0)
