"""APGD against the paper's algorithm written out sample by sample, closed forms, and the constraints."""

import math

import pytest
import torch
from torch import nn

from lightning_robust.functional.apgd import apgd
from lightning_robust.functional.ascent import AttackRecord
from lightning_robust.functional.attacks import pgd
from lightning_robust.functional.worst_case import worst_loss

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def linear(weight):
    return lambda x: (x * weight).flatten(1).sum(1)


def by_the_paper(loss, x, eps, steps, start, norm):
    """Algorithm 1 of arXiv 2003.01690 for one sample, in plain loops."""
    shares = [0.0, 0.22]
    while shares[-1] <= 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    checks = [math.ceil(share * steps) for share in shares]

    def slope(point):
        point = point.clone().requires_grad_()
        value = loss(point[None])[0]
        (gradient,) = torch.autograd.grad(value, point)
        return value.item(), gradient

    def project(point):
        if norm == "linf":
            return torch.maximum(torch.minimum(point, x + eps), x - eps).clamp(0, 1)
        delta = point - x
        return (x + delta * min(1.0, eps / delta.norm().clamp(min=1e-30).item())).clamp(0, 1)

    def along(gradient):
        return gradient.sign() if norm == "linf" else gradient / gradient.norm()

    size, previous, point = 2 * eps, start, start
    value, gradient = slope(point)
    best, best_value, best_gradient = point, value, gradient
    rises, at_check, halved_before = 0, value, True
    for k in range(steps):
        ahead = project(point + size * along(gradient))
        share = 1.0 if k == 0 else 0.75
        new = project(point + share * (ahead - point) + (1 - share) * (point - previous))
        new_value, new_gradient = slope(new)
        rises += new_value > value
        previous, point, value, gradient = point, new, new_value, new_gradient
        if value > best_value:
            best, best_value, best_gradient = point, value, gradient
        if k + 1 in checks:
            window = k + 1 - checks[checks.index(k + 1) - 1]
            halved = rises < 0.75 * window or (not halved_before and best_value == at_check)
            if halved:
                size, point, value, gradient = size / 2, best, best_value, best_gradient
            rises, at_check, halved_before = 0, best_value, halved
    return best


class Hills(nn.Module):
    """Losses with many hills, so that steps are halved."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 1)).double()

    def forward(self, x):
        return torch.sin(6 * self.net(x)).flatten() + 0.1 * x.flatten(1).sum(1)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.2), ("l2", 0.7)])
def test_matches_the_papers_algorithm(norm, eps):
    hills, generator = Hills(), torch.Generator().manual_seed(1)
    x = torch.rand(8, 3, 2, 2, generator=generator, dtype=torch.float64)
    start = (x + 0.05 * torch.randn(x.shape, generator=generator, dtype=torch.float64)).clamp(0, 1)
    if norm == "l2":
        start = x
    found = apgd(hills, x, eps, steps=40, start=start, norm=norm, bounds=(0, 1))
    expected = torch.stack([by_the_paper(hills, *each, norm) for each in [(x[i], eps, 40, start[i]) for i in range(8)]])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-7)
    # the checkpoints matter: a walk that never halves its steps ends elsewhere
    assert not torch.allclose(found, pgd(hills, x, eps, steps=40, step_size=2 * eps, start=start, norm=norm))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_optimum_on_a_linear_loss(norm):
    """The corner of the ball, or the centre plus eps times the unit gradient: steps halve toward the latter."""
    w, x = torch.randn(4, 4), torch.randn(5, 4, 4)
    found = apgd(linear(w), x, 0.5, steps=60, norm=norm)
    best = x + 0.5 * (w.sign() if norm == "linf" else w / w.norm())
    torch.testing.assert_close(linear(w)(found), linear(w)(best), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_ball_and_bounds_hold_exactly(dtype, norm):
    x, w, eps = torch.rand(16, 3, 6, 6, dtype=dtype), torch.randn(3, 6, 6, dtype=dtype), 8 / 255
    original = x.clone()
    found = apgd(linear(w), x, eps, steps=12, norm=norm, bounds=(0, 1), restarts=2)
    assert found.dtype == dtype
    assert not found.requires_grad
    assert torch.equal(x, original)
    assert found.min() >= 0
    assert found.max() <= 1
    delta = found.double() - x.double()
    reach = delta.abs().max() if norm == "linf" else delta.flatten(1).norm(dim=1).max()
    assert 0 < reach <= torch.tensor(eps, dtype=dtype).double()


def test_the_best_point_is_returned_and_more_steps_never_lose():
    hills, x = Hills(), torch.rand(40, 3, 2, 2, dtype=torch.float64)
    seen = []

    def noting(points):
        losses = hills(points)
        seen.append(losses.detach())
        return losses

    found = apgd(noting, x, 0.3, steps=20, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(hills(found), torch.stack(seen).amax(0), rtol=0, atol=1e-12)
    # two starts are at least as good as the first of them
    twice = apgd(hills, x, 0.3, steps=20, restarts=2, generator=torch.Generator().manual_seed(0))
    assert (hills(twice) >= hills(found) - 1e-6).all()
    assert hills(twice).mean() > hills(found).mean()


def test_finds_more_than_pgd_on_a_loss_with_hills():
    """As many passes of both; PGD keeps its best iterate too."""
    hills, x = Hills(), torch.rand(200, 3, 2, 2, dtype=torch.float64)
    ours = hills(apgd(hills, x, 0.3, steps=40, generator=torch.Generator().manual_seed(0)))
    theirs = hills(pgd(hills, x, 0.3, steps=40, keep_best=True, generator=torch.Generator().manual_seed(0)))
    assert ours.mean() > theirs.mean()


def test_passes_and_solved_samples():
    """20 gradients and one loss for each sample; solved ones leave at the iterate that solved them."""
    torch.manual_seed(0)
    net, y, x = nn.Linear(6, 3), torch.arange(30) % 3, torch.randn(30, 6)
    record = AttackRecord()
    apgd(lambda z: nn.functional.cross_entropy(net(z), y, reduction="none"), x, 0.5, steps=20, record=record)
    assert (record.passes, record.forwards, record.samples) == (21, 21 * 30, 20 * 30)
    calls = []

    def loss(z, rows):
        calls.append(len(z))
        logits = net(z)
        return nn.functional.cross_entropy(logits, y[rows], reduction="none"), logits.argmax(1) != y[rows]

    wrong = net(x).argmax(1) != y
    record = AttackRecord()
    found = apgd(loss, x, 0.5, steps=20, random_start=False, drop_solved=True, record=record)
    assert torch.equal(found[wrong], x[wrong])
    assert calls == sorted(calls, reverse=True)
    assert calls[1] == int((~wrong).sum())
    assert record.forwards == sum(calls) < 21 * 30
    # on a linear network one step of 2 eps reaches the corner: what the ball holds is found
    margin = [(net.weight[y] - net.weight[i]).abs().sum(1) for i in range(3)]
    logits = net(x)
    reach = torch.stack([logits[range(30), y] - logits[:, i] - 0.5 * margin[i] for i in range(3)], 1)
    reach[range(30), y] = math.inf
    fooled = net(found).argmax(1) != y
    assert not fooled[reach.amin(1) > 1e-4].any()
    assert fooled.float().mean() > 0.5


def test_no_gradient_of_a_parameter_and_no_grad_is_fine():
    net = nn.Linear(4, 2)
    net.weight.grad = torch.full((2, 4), 7.0)
    with torch.no_grad():
        apgd(lambda z: net(z).sum(1), torch.rand(3, 4), 0.1, steps=3)
    assert torch.equal(net.weight.grad, torch.full((2, 4), 7.0))


def test_mask_eps_for_each_and_a_radius_of_zero():
    x, mask = torch.rand(3, 3, 4, 4), torch.zeros(1, 1, 4, 4)
    mask[..., :2] = 1
    radii = torch.tensor([0.0, 0.1, 0.2])
    found = apgd(linear(torch.randn(3, 4, 4)), x, radii, steps=5, mask=mask)
    assert torch.equal(found[..., 2:], x[..., 2:])
    assert torch.equal(found[0], x[0])
    torch.testing.assert_close((found - x).abs().amax((1, 2, 3)), radii, rtol=1e-5, atol=1e-6)


def test_losses_and_gradients_that_are_no_numbers_stay_behind():
    def loss(x):
        return torch.stack([x[0].sum() * math.nan, x[1].sum()])

    record, x = AttackRecord(), torch.rand(2, 5)
    found = apgd(loss, x, 0.1, steps=4, random_start=False, record=record)
    assert torch.equal(found[0], x[0])
    torch.testing.assert_close(found[1], x[1] + 0.1)
    assert record.nonfinite == 4


@pytest.mark.parametrize("attack", [apgd, lambda *args, **settings: worst_loss(*args, queries=10, **settings).inputs])
def test_an_infinite_loss_is_no_solved_sample(attack):
    """The loss sees the whole batch in every call, and all of the others are attacked."""
    x, sizes = torch.rand(4, 3), []

    def loss(z):
        sizes.append(len(z))
        return torch.where(torch.arange(4) == 1, math.inf, z.sum(1))

    found = attack(loss, x, 0.1, steps=3, restarts=2)
    assert set(sizes) == {4}
    torch.testing.assert_close((found - x)[[0, 2, 3]], torch.full((3, 3), 0.1))


def test_rejects_what_cannot_be_attacked():
    x = torch.rand(2, 3)
    with pytest.raises(ValueError, match=r"one loss for each of 2 samples.*reduction='none'"):
        apgd(lambda z: z.sum(), x, 0.1)
    with pytest.raises(TypeError, match="embeddings"):
        apgd(linear(torch.ones(3)), torch.ones(2, 3, dtype=torch.long), 0.1)
    with pytest.raises(ValueError, match="at least one step"):
        apgd(linear(torch.ones(3)), x, 0.1, steps=0)
    with pytest.raises(ValueError, match="`eps` to be finite"):
        apgd(linear(torch.ones(3)), x, -0.1)
