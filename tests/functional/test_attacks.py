import math

import pytest
import torch
from torch import nn

from lightning_robust.functional.ascent import AttackRecord
from lightning_robust.functional.attacks import fgsm, nfgsm, pgd

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def linear(weight):
    return lambda x: (x * weight).flatten(1).sum(1)


def test_fgsm_is_pgd_of_one_step():
    x, w = torch.rand(4, 3, 5, 5), torch.randn(3, 5, 5)
    one = fgsm(linear(w), x, 0.1, bounds=(0, 1))
    assert torch.equal(one, pgd(linear(w), x, 0.1, steps=1, random_start=False, bounds=(0, 1)))
    torch.testing.assert_close(one, (x + 0.1 * w.sign()).clamp(0, 1), rtol=0, atol=2e-7)


def test_matches_reference():
    """A plain loop of Madry's attack, from the same start."""
    torch.manual_seed(3)
    net, x, y = (
        nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3)),
        torch.rand(6, 3, 2, 2),
        torch.arange(6) % 3,
    )

    def loss(z):
        return nn.functional.cross_entropy(net(z), y, reduction="none")

    start = (x + torch.empty_like(x).uniform_(-0.2, 0.2)).clamp(0, 1)
    point = start.clone()
    for _ in range(7):
        point.requires_grad_()
        (gradient,) = torch.autograd.grad(loss(point).sum(), point)
        point = (x + (point.detach() + 0.05 * gradient.sign() - x).clamp(-0.2, 0.2)).clamp(0, 1)
    found = pgd(loss, x, 0.2, steps=7, step_size=0.05, start=start, bounds=(0, 1))
    torch.testing.assert_close(found, point, rtol=0, atol=1e-6)


@pytest.mark.parametrize("eps", [0.3, 1.0])
def test_l2_optimum_on_a_linear_loss(eps):
    """The best point of the ball is the centre plus eps times the unit gradient."""
    w, x = torch.randn(4, 4), torch.randn(5, 4, 4)
    found = pgd(linear(w), x, eps, steps=5, norm="l2", random_start=False)
    torch.testing.assert_close(found, x + eps * w / w.norm(), rtol=1e-4, atol=1e-4)


def test_linf_optimum_on_a_linear_loss():
    w, x = torch.randn(4, 4), torch.rand(5, 4, 4)
    found = pgd(linear(w), x, 0.25, steps=10, bounds=(0, 1))
    torch.testing.assert_close(found, (x + 0.25 * w.sign()).clamp(0, 1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("eps", [8 / 255, 0.1, 0.7])
def test_ball_and_bounds_hold_exactly(dtype, norm, eps):
    x, w = torch.rand(16, 3, 6, 6, dtype=dtype), torch.randn(3, 6, 6, dtype=dtype)
    original = x.clone()
    found = pgd(linear(w), x, eps, steps=3, norm=norm, bounds=(0, 1), restarts=2)
    assert found.dtype == dtype
    assert not found.requires_grad
    assert torch.equal(x, original)
    assert found.min() >= 0
    assert found.max() <= 1
    delta = found.double() - x.double()
    reach = delta.abs().max() if norm == "linf" else delta.flatten(1).norm(dim=1).max()
    assert reach <= torch.tensor(eps, dtype=dtype).double()


def test_random_start_is_uniform_in_the_ball():
    """Radii r of points uniform in d dimensions: r^d is uniform, its mean one half, its spread 1 / sqrt(12 n)."""
    n, d = 4000, 3
    x = torch.zeros(n, d)
    for norm, measure in (("l2", lambda t: t.norm(dim=1) ** d), ("linf", lambda t: t.abs().amax(1) ** d)):
        # a loss without a slope leaves the start as it is
        found = pgd(lambda z: (z * 0).sum(1), x, 1.0, steps=1, norm=norm)
        assert measure(found).mean().item() == pytest.approx(0.5, abs=5 / math.sqrt(12 * n))


def test_no_gradient_of_a_parameter_and_no_grad_is_fine():
    net = nn.Linear(4, 2)
    net.weight.grad = torch.full((2, 4), 7.0)
    fired = []
    net.weight.register_hook(lambda gradient: fired.append(gradient))
    with torch.no_grad():
        pgd(lambda z: net(z).sum(1), torch.rand(3, 4), 0.1)
    assert torch.equal(net.weight.grad, torch.full((2, 4), 7.0))
    assert fired == []


def test_eps_for_each_sample_and_each_element():
    w, x = torch.ones(4), torch.zeros(3, 4)
    per_sample = fgsm(linear(w), x, torch.tensor([0.0, 0.5, 2.0]))
    assert torch.equal(per_sample, torch.tensor([0.0, 0.5, 2.0])[:, None].expand(3, 4))
    radii = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    assert torch.equal(fgsm(linear(w), x, radii), radii.expand(3, 4))


def test_mask_keeps_the_rest():
    x, mask = torch.rand(2, 3, 4, 4), torch.zeros(1, 1, 4, 4)
    mask[..., :2] = 1
    for norm in ("linf", "l2"):
        found = pgd(linear(torch.randn(3, 4, 4)), x, 0.2, norm=norm, mask=mask)
        assert torch.equal(found[..., 2:], x[..., 2:])
        assert not torch.equal(found[..., :2], x[..., :2])


class Wave:
    """A loss with many hills, where restarts and best iterates matter."""

    def __call__(self, x):
        return (torch.sin(9 * x) + 0.3 * x).sum(1)


def test_restarts_and_best_iterates_never_lose():
    x, wave = torch.zeros(200, 2), Wave()
    losses = []
    for settings in ({}, {"keep_best": True}, {"restarts": 5}, {"restarts": 5, "keep_best": True}):
        generator = torch.Generator().manual_seed(0)
        losses.append(wave(pgd(wave, x, 1.0, steps=4, step_size=0.7, generator=generator, **settings)))
    assert (losses[1] >= losses[0]).all()
    assert (losses[2] >= losses[0]).all()
    assert (losses[3] >= losses[2] - 1e-6).float().mean() > 0.9
    assert losses[3].mean() > losses[0].mean() + 0.5


def test_solved_samples_are_left_alone():
    net, y, x = nn.Linear(6, 3), torch.arange(30) % 3, torch.randn(30, 6)
    calls = []

    def loss(z, index):
        calls.append(len(z))
        logits = net(z)
        return nn.functional.cross_entropy(logits, y[index], reduction="none"), logits.argmax(1) != y[index]

    solved = net(x).argmax(1) != y
    record = AttackRecord()
    found = pgd(loss, x, 0.5, steps=10, random_start=False, drop_solved=True, record=record)
    assert torch.equal(found[solved], x[solved])
    assert calls == sorted(calls, reverse=True)
    assert record.samples == record.forwards == sum(calls) < 300
    everything = pgd(lambda z: nn.functional.cross_entropy(net(z), y, reduction="none"), x, 0.5, random_start=False)
    wrong = [(net(z).argmax(1) != y).float().mean().item() for z in (found, everything)]
    assert wrong[0] >= wrong[1]


def test_targeted_by_the_sign_of_the_loss():
    net, x = nn.Linear(6, 3), torch.randn(20, 6)
    target = torch.ones(20, dtype=torch.long)
    found = pgd(lambda z: -nn.functional.cross_entropy(net(z), target, reduction="none"), x, 5.0, steps=20)
    assert (net(found).argmax(1) == 1).float().mean() > 0.95


def test_nfgsm_is_a_step_from_a_noisy_point():
    x, w = torch.zeros(1000, 4), torch.ones(4)
    delta = nfgsm(linear(w), x, 0.1) - x
    assert delta.max() <= 0.3 + 1e-6
    assert delta.min() >= -0.1 - 1e-6
    assert delta.mean().item() == pytest.approx(0.1, abs=5 * 0.2 / math.sqrt(12 / 4 * 4000))


@pytest.mark.parametrize("alpha", [1.0, 1.25])
def test_nfgsm_is_the_authors(alpha):
    """Their lines: noise in 2 eps cut to the range, a step of alpha eps along the sign, the sum cut to the range."""
    eps, x, w = 8 / 255, torch.rand(50, 3, 4, 4), torch.randn(3, 4, 4)
    drawn = torch.Generator().manual_seed(4)
    eta = torch.empty_like(x).uniform_(-2, 2, generator=drawn) * eps
    eta = torch.clamp(eta, 0 - x, 1 - x)
    delta = torch.clamp(eta + alpha * eps * w.sign(), 0 - x, 1 - x)
    found = nfgsm(linear(w), x, eps, step_size=alpha * eps, bounds=(0, 1), generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(found, x + delta, rtol=0, atol=3e-7)
    assert found.min() >= 0
    assert found.max() <= 1
    assert (found - x).abs().max() > 2 * eps
    with pytest.raises(ValueError, match="normalised"):
        nfgsm(linear(w), x + 1, eps, bounds=(0, 1))


def test_samples_whose_gradient_is_not_finite_stay_and_zeros_are_counted():
    def loss(x):
        return torch.stack([x[0].sum() * math.nan, x[1].sum() * 0, x[2].sum()])

    record, x = AttackRecord(), torch.rand(3, 5)
    found = fgsm(loss, x, 0.1, record=record)
    assert torch.equal(found[:2], x[:2])
    torch.testing.assert_close(found[2], x[2] + 0.1)
    assert (record.passes, record.samples, record.zero_gradients, record.nonfinite) == (1, 3, 1, 1)


def test_half_precision_is_no_false_robustness():
    """A mean over 4096 samples underflows in fp16; the sum, scaled, does not."""
    x = torch.rand(4096, 2).half()
    small = torch.full((2,), 1e-4).half()
    record = AttackRecord()
    pgd(lambda z: (z * small).sum(1) * 1e-3, x, 0.1, steps=1, record=record)
    assert record.zero_share == 0
    mean = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(((mean * small).sum(1) * 1e-3).mean(), mean)
    assert (gradient == 0).all()


@pytest.mark.parametrize("eps", [-0.1, math.nan, math.inf, torch.tensor([0.1, -0.1])])
def test_rejects_bad_radii(eps):
    with pytest.raises(ValueError, match="`eps` to be finite"):
        fgsm(linear(torch.ones(3)), torch.rand(2, 3), eps)


def test_rejects_what_cannot_be_attacked():
    x = torch.rand(2, 3)
    with pytest.raises(TypeError, match="embeddings"):
        fgsm(linear(torch.ones(3)), torch.ones(2, 3, dtype=torch.long), 0.1)
    for loss in (lambda z: torch.ones(2), lambda z: torch.ones(2, requires_grad=True) * 2):
        with pytest.raises(ValueError, match="depends on the inputs"):
            fgsm(loss, x, 0.1)
    with pytest.raises(ValueError, match="normalised"):
        fgsm(linear(torch.ones(3)), x * 3 - 1, 0.1, bounds=(0, 1))
    with pytest.raises(ValueError, match="one for each of 2 samples"):
        fgsm(linear(torch.ones(3)), x, torch.tensor([0.1, 0.1, 0.1]))
    with pytest.raises(ValueError, match="at least one step"):
        pgd(linear(torch.ones(3)), x, 0.1, steps=0)
    with pytest.raises(ValueError, match="'linf' or 'l2'"):
        pgd(linear(torch.ones(3)), x, 0.1, norm="l1")


def test_reentrant_checkpointing_is_refused_with_the_remedy():
    from torch.utils.checkpoint import checkpoint

    layer = nn.Linear(3, 3)
    with pytest.raises(ValueError, match="use_reentrant=False"):
        fgsm(lambda z: checkpoint(layer, z, use_reentrant=True).sum(1), torch.rand(2, 3), 0.1)
    found = fgsm(lambda z: checkpoint(layer, z, use_reentrant=False).sum(1), torch.rand(2, 3), 0.1)
    assert found.shape == (2, 3)


def test_of_points_with_the_same_loss_the_first_is_kept():
    """A loss of 0 everywhere, with a slope: whatever comes later is no better than the start."""
    x = torch.tensor([[0.25, -0.5]])
    found = pgd(lambda z: (z - z.detach()).sum(1), x, 1.0, steps=3, keep_best=True, random_start=False)
    assert torch.equal(found, x)
    last = pgd(lambda z: (z - z.detach()).sum(1), x, 1.0, steps=3, random_start=False)
    assert not torch.equal(last, x)
