import math

import pytest
import torch
from torch import nn

from lightning_robust.functional.attacks import pgd
from lightning_robust.functional.smallest_radius import smallest_radius


def test_closed_form():
    """No further above the needed radius than the last interval, exact on its grid, infinite beyond the largest."""
    torch.manual_seed(0)
    needed, asked = torch.rand(200) * 1.5, []

    def solves(rows, radii):
        asked.append(len(rows))
        return radii >= needed[rows]

    found = smallest_radius(solves, torch.ones(200), halvings=6)
    within = needed <= 1
    assert torch.equal(found.isinf(), ~within)
    over = (found - needed)[within]
    assert (over >= 0).all()
    assert (over < 2**-6).all()
    assert torch.equal(found[within], (needed[within] * 64).ceil() / 64)
    assert asked == [200] + 6 * [int(within.sum())]


def test_the_border_of_a_linear_classifier():
    """``margin / |w|_1``: what one step of the sign reaches."""
    torch.manual_seed(0)
    net, x = nn.Linear(5, 1), torch.randn(40, 5)
    side = net(x).flatten().sign()

    def solves(rows, radii):
        moved = pgd(lambda z: -side[rows] * net(z).flatten(), x[rows], radii, steps=3, random_start=False)
        return net(moved).flatten().sign() != side[rows]

    found = smallest_radius(solves, torch.full((40,), 4.0), halvings=12)
    exact = net(x).flatten().detach().abs() / net.weight.detach().abs().sum()
    reached = exact < 3.99
    assert reached.sum() > 20
    torch.testing.assert_close(found[reached], exact[reached], rtol=0, atol=2e-3)


def test_nothing_to_solve_asks_once():
    asked = []
    found = smallest_radius(lambda rows, radii: asked.append(1) or torch.zeros(3, dtype=torch.bool), torch.ones(3))
    assert found.tolist() == 3 * [math.inf]
    assert len(asked) == 1


@pytest.mark.parametrize(("largest", "halvings"), [(0.0, 3), (-1.0, 3), (math.nan, 3), (1.0, -1)])
def test_rejects_a_radius_of_zero_and_less_than_no_halvings(largest, halvings):
    with pytest.raises(ValueError, match="radii above 0 and `halvings` of at least 0"):
        smallest_radius(lambda rows, radii: rows > 0, torch.full((2,), largest), halvings=halvings)
