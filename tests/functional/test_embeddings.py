import math

import pytest
import torch
from torch import nn

from lightning_robust.functional.ascent import AttackRecord
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
    deltas = EmbeddingDeltas(text.embedding, magnitude=0.6)
    deltas.loss(lambda: text(TOKENS).sum())
    (delta,) = deltas.deltas
    assert 0 < delta[0].abs().max() <= 0.6 / math.sqrt(12)
    assert 0 < delta[1, :2].abs().max() <= 0.6 / math.sqrt(8)
    assert (delta[1, 2] == 0).all()


@pytest.mark.parametrize("seeded", [False, True])
def test_freelb_has_as_many_passes_as_steps_with_one_dropout_mask(seeded):
    text, masks, graphs = Text(0.5), [], []
    text.drop.register_forward_hook(lambda module, args, output: masks.append((output != 0).tolist()))
    text.score.register_forward_hook(lambda module, args, output: graphs.append(output.requires_grad))
    torch.manual_seed(0)
    record, generator = AttackRecord(), torch.Generator().manual_seed(1) if seeded else None
    loss = freelb_loss(lambda: text(TOKENS).sum(), text.embedding, steps=3, generator=generator, record=record)
    assert graphs == [True, True, True]
    assert masks[0] == masks[1] == masks[2]
    assert loss.requires_grad
    # two samples, and a gradient after each pass but the last
    assert (record.passes, record.samples, record.zero_gradients) == (2, 4, 0)
    # the global random numbers go on as after one pass, and one draw where there is no generator
    after = torch.rand(2)
    torch.manual_seed(0)
    if not seeded:
        torch.randint(2**62, ())
    text(TOKENS)
    assert torch.equal(after, torch.rand(2))


def test_gradients_that_fp16_cannot_hold_still_move_the_embedding():
    """A gradient of 2e-8 is zero in fp16; scaled on the way back it is not, as for attacks on pixels."""
    text = Text().half()
    record = AttackRecord()
    deltas = perturb_embedding(
        lambda: (text(TOKENS).float() * 2e-8 / text.score.weight[0, 0].item()).sum(), text.embedding, 0.5, record=record
    )
    assert deltas.deltas[0].flatten(1).norm(dim=1).tolist() == pytest.approx([0.5, 0.5], rel=1e-3)
    assert (record.passes, record.zero_gradients) == (1, 0)
    output = text.embedding(TOKENS).detach().requires_grad_()
    (gradient,) = torch.autograd.grad((text.score(output).float() * 2e-8).sum(), output)
    assert (gradient == 0).all()


def test_samples_without_a_gradient_are_counted_and_stay():
    text, record = Text(), AttackRecord()
    deltas = perturb_embedding(
        lambda: text(TOKENS)[0] + 0 * text(TOKENS)[1], text.embedding, 0.3, steps=2, record=record
    )
    # the embedding is called twice: two perturbations of two samples in each of two passes
    assert (record.passes, record.samples, record.forwards) == (2, 8, 4)
    assert record.zero_gradients == 6
    assert (deltas.deltas[1] == 0).all()
    assert (deltas.deltas[0][1] == 0).all()


@pytest.mark.parametrize("steps", [1, 5])
def test_an_embedding_called_twice_has_two_perturbations_of_one_length(steps):
    """The ball is that of the sample: eps over both calls together, along the gradients of both."""
    text, other = Text(), Text()
    deltas = perturb_embedding(
        lambda: (text(TOKENS) + 2 * other.score(text.embedding(TOKENS)).sum((1, 2))).sum(),
        text.embedding,
        0.1,
        steps=steps,
    )
    first, second = (delta.detach() for delta in deltas.deltas)
    w, v = text.score.weight[0].detach(), 2 * other.score.weight[0].detach()
    for row, tokens in ((0, 3), (1, 2)):
        length = math.sqrt(tokens * (w.square().sum() + v.square().sum()).item())
        torch.testing.assert_close(first[row, :tokens], (0.1 / length * w).expand(tokens, 4), rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(second[row, :tokens], (0.1 / length * v).expand(tokens, 4), rtol=1e-4, atol=1e-7)


def test_calls_of_other_batches_have_lengths_of_their_own():
    text = Text()
    deltas = perturb_embedding(lambda: text(TOKENS).sum() + text(TOKENS[:1]).sum(), text.embedding, 0.1)
    assert [delta.flatten(1).norm(dim=1).tolist() for delta in deltas.deltas] == [
        pytest.approx([0.1, 0.1]),
        pytest.approx([0.1]),
    ]


def test_rejects_what_is_not_used_or_negative():
    text = Text()
    with pytest.raises(ValueError, match="never called"):
        perturb_embedding(lambda: text(TOKENS).sum(), nn.Embedding(3, 3), 0.1)
    with pytest.raises(ValueError, match="`eps`"):
        perturb_embedding(lambda: text(TOKENS).sum(), text.embedding, -1.0)
    with pytest.raises(ValueError, match="one step"):
        freelb_loss(lambda: text(TOKENS).sum(), text.embedding, steps=0)
