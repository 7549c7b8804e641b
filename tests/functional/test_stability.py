"""Stability losses against torch's divergences and closed forms."""

import pytest
import torch
from torch import nn

from lightning_robust.functional.stability import (
    absolute_distance,
    scaled_distance,
    spread_of,
    symmetric_divergence,
)


@pytest.mark.parametrize(("shape", "dim"), [((4, 5), 1), ((4, 5, 3, 2), 1), ((4, 2, 3, 5), -1)])
def test_symmetric_divergence_is_the_mean_of_torchs_two(shape, dim):
    one, other = torch.randn(shape), torch.randn(shape)
    p, q = (torch.movedim(t, dim, -1).reshape(4, -1, 5).log_softmax(2) for t in (one, other))
    found = symmetric_divergence(one, other, dim)
    for row in range(4):
        both = [
            nn.functional.kl_div(a[row], b[row], log_target=True, reduction="batchmean") for a, b in ((p, q), (q, p))
        ]
        assert found[row].item() == pytest.approx((sum(both) / 2).item(), rel=1e-5)
    torch.testing.assert_close(found, symmetric_divergence(other, one, dim))


def test_symmetric_divergence_pulls_both_predictions_together():
    one, other = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    symmetric_divergence(one, other).sum().backward()
    assert one.grad.abs().max() > 0 < other.grad.abs().max()
    with torch.no_grad():
        before = symmetric_divergence(one, other)
        assert (symmetric_divergence(one - 0.01 * one.grad, other) < before).all()
        assert (symmetric_divergence(one, other - 0.01 * other.grad) < before).all()
        assert symmetric_divergence(one, one).abs().max() == 0


def test_symmetric_divergence_of_small_changes_is_half_of_the_fisher_form():
    """To second order, the quadratic form of the covariance of a softmax: z' (diag(p) - p p') z / 2."""
    logits, change = torch.randn(2, 5, dtype=torch.float64), 1e-2 * torch.randn(2, 5, dtype=torch.float64)
    p = logits.softmax(1)
    expected = ((p * change**2).sum(1) - (p * change).sum(1) ** 2) / 2
    torch.testing.assert_close(symmetric_divergence(logits, logits + change).double(), expected, rtol=0.05, atol=1e-6)


def test_distances_closed_form():
    """Moving all points by twice the spread costs 4; by three units, 3; missing points count on no side."""
    values = torch.randn(6, 2, 7)
    values[1, 0, 3] = torch.nan
    values[2] = torch.nan
    spread = spread_of(values)
    assert spread.item() == pytest.approx(values[values.isfinite()].std(correction=0).item())
    moved = values + 2 * spread
    moved[3, 1, 2] = torch.nan
    expected = torch.tensor([4.0, 4, 0, 4, 4, 4])
    torch.testing.assert_close(scaled_distance(values, moved, spread), expected)
    torch.testing.assert_close(absolute_distance(values, values - 1.5, 0.5), torch.tensor([3.0, 3, 0, 3, 3, 3]))


def test_distances_have_finite_gradients_beside_missing_points():
    for distance in (lambda a, b: scaled_distance(a, b, spread_of(a)), lambda a, b: absolute_distance(a, b, 2.0)):
        one, other = torch.randn(2, 4, requires_grad=True), torch.randn(2, 4)
        other[0, 1] = torch.nan
        distance(one, other).sum().backward()
        assert one.grad.isfinite().all()
        assert one.grad[0, 1] == 0
        assert (one.grad != 0).sum() == 7


def test_constant_values_have_no_unit():
    constant = torch.ones(3, 2)
    assert spread_of(constant) == spread_of(torch.ones(1)) == spread_of(torch.full((2,), torch.nan)) == 0
    assert scaled_distance(constant, constant + 1, spread_of(constant)).tolist() == [0, 0, 0]


@pytest.mark.parametrize("distance", [symmetric_divergence, lambda a, b: absolute_distance(a, b, 1.0)])
def test_rejects_other_shapes(distance):
    with pytest.raises(ValueError, match=r"of one shape, but got \(2, 3\) and \(2, 4\)"):
        distance(torch.zeros(2, 3), torch.zeros(2, 4))
