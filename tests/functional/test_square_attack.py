"""The Square attack: what it reaches, what it keeps, and the constraints."""

import pytest
import torch
from torch import nn

from lightning_robust.functional.ascent import AttackRecord
from lightning_robust.functional.square_attack import _bump, _covered_share, square_attack


def linear(weight):
    return lambda x: (x * weight).flatten(1).sum(1)


def test_the_share_of_a_square_is_the_papers():
    """0.8, halved after 10, 50, 200, 500, 1000, 2000, 4000, 6000 and 8000 of 10,000 queries."""
    places = [10, 11, 51, 201, 501, 1001, 2001, 4001, 6001, 8001]
    assert [_covered_share(place, 10_000) for place in places] == [0.8 / 2**k for k in range(10)]
    assert _covered_share(101, 1000) == _covered_share(1010, 10_000)


def test_a_bump_is_the_papers():
    """Their formula for a 3 x 3 hill: 1 + 1/4 in the middle, 1/4 around it; the valley below it has the other sign."""
    bump = _bump(6, 3, True)
    hill = torch.tensor([[1.0, 1, 1], [1, 5, 1], [1, 1, 1]])
    torch.testing.assert_close(bump, torch.cat([hill, -hill]) / (2 * hill.square().sum()).sqrt())
    assert torch.equal(_bump(3, 6, False), bump.T)
    assert bump.norm().item() == pytest.approx(1)


@pytest.mark.parametrize(("shape", "share"), [((3, 8, 8), 0.9), ((12,), 0.999), ((2, 9), 0.999), ((2, 3, 6, 6), 0.75)])
def test_reaches_the_corner_of_a_linear_loss(shape, share):
    """Signs alternate in blocks of two columns, so that single squares are of use; a random corner gains nothing."""
    w = torch.ones(shape) * (1 - 2 * ((torch.arange(shape[-1]) // 2) % 2))
    x = torch.rand(4, *shape)
    generator = torch.Generator().manual_seed(0)
    found = square_attack(linear(w), x, 0.1, queries=1500, generator=generator)
    gained = linear(w)(found) - linear(w)(x)
    assert (gained > share * 0.1 * w.numel()).all()


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 28, 28), (12,), (2, 9)])
def test_l2_keeps_the_norm_and_raises_the_loss(shape):
    """The norm is that of the radius after every query; on a smooth loss pictures gain more than by random points."""
    w = torch.ones(shape)
    x, seen = torch.full((6, *shape), 0.5), []

    def loss(points):
        seen.append((points - x).flatten(1).norm(dim=1))
        return linear(w)(points)

    found = square_attack(loss, x, 0.4, queries=600, norm="l2", generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(torch.stack(seen), torch.full((600, 6), 0.4), rtol=1e-4, atol=1e-4)
    gained = linear(w)(found) - linear(w)(x)
    directions = torch.randn(600, w.numel(), generator=torch.Generator().manual_seed(0))
    by_chance = (directions / directions.norm(dim=1, keepdim=True) * 0.4 @ w.flatten()).amax()
    assert (gained > 0).all()
    assert len(shape) < 3 or gained.mean() > 1.5 * by_chance


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_ball_and_bounds_hold_exactly(dtype, norm):
    x, eps = torch.rand(8, 3, 6, 6, dtype=dtype), 8 / 255
    original = x.clone()
    found = square_attack(linear(torch.randn(3, 6, 6, dtype=dtype)), x, eps, queries=30, norm=norm, bounds=(0, 1))
    assert found.dtype == dtype
    assert torch.equal(x, original)
    assert found.min() >= 0
    assert found.max() <= 1
    delta = found.double() - x.double()
    reach = delta.abs().max() if norm == "linf" else delta.flatten(1).norm(dim=1).max()
    assert 0 < reach <= torch.tensor(eps, dtype=dtype).double()


def test_finds_what_has_no_gradient():
    """A loss of steps: gradients are zero everywhere, squares climb it."""
    x = torch.zeros(5, 1, 6, 6)
    found = square_attack(lambda z: (z > 0.05).float().sum((1, 2, 3)), x, 0.1, queries=400)
    assert ((found > 0.05).float().mean((1, 2, 3)) > 0.9).all()


def test_queries_are_counted_and_solved_samples_leave():
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), torch.rand(40, 1, 4, 4)
    y, calls, record = net(x).argmax(1), [], AttackRecord()

    def loss(points, rows):
        calls.append(len(points))
        logits = net(points)
        return nn.functional.cross_entropy(logits, y[rows], reduction="none"), logits.argmax(1) != y[rows]

    found = square_attack(loss, x, 0.3, queries=100, drop_solved=True, record=record)
    wrong = net(found).argmax(1) != y
    assert calls[0] == 40
    assert calls == sorted(calls, reverse=True)
    assert calls[-1] == 40 - int(wrong.sum()) or wrong.all()
    assert wrong.float().mean() > 0.2
    assert (record.forwards, record.samples, record.passes) == (sum(calls), 0, len(calls))


def test_mask_and_generator():
    x, mask = torch.rand(2, 1, 6, 6), torch.zeros(1, 1, 6, 6)
    mask[..., :3] = 1
    loss = linear(torch.randn(1, 6, 6))
    found = [
        square_attack(loss, x, 0.1, queries=20, mask=mask, generator=torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    ]
    assert torch.equal(found[0][..., 3:], x[..., 3:])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_rejects_a_loss_of_the_batch_and_no_queries():
    x = torch.rand(2, 1, 4, 4)
    with pytest.raises(ValueError, match="one loss for each of 2 samples"):
        square_attack(lambda z: z.sum(), x, 0.1)
    with pytest.raises(ValueError, match="at least one step"):
        square_attack(linear(torch.ones(1, 4, 4)), x, 0.1, queries=0)
