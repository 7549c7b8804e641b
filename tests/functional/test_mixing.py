"""Mixtures of a batch against their definition and their distribution."""

import pytest
import torch

from lightning_robust.functional.mixing import regmixup_batch


def test_is_its_definition():
    x, y = torch.rand(7, 3, 4, 4), torch.arange(7)
    mixed, first, second, share = regmixup_batch(x, y, 20.0, torch.Generator().manual_seed(3))
    assert torch.equal(first, y)
    torch.testing.assert_close(mixed, share * x + (1 - share) * x[second], rtol=0, atol=1e-6)
    assert sorted(second.tolist()) == y.tolist()


def test_shares_follow_the_beta_distribution():
    """Mean 1/2 and variance 1 / (4 (2 alpha + 1))."""
    generator, x = torch.Generator().manual_seed(0), torch.zeros(2, 1)
    for alpha in (0.5, 20.0):
        shares = torch.tensor([regmixup_batch(x, x, alpha, generator)[3] for _ in range(3000)])
        assert shares.mean().item() == pytest.approx(0.5, abs=0.03)
        assert shares.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)


def test_every_permutation_is_drawn():
    """The 24 of four samples in 400 draws: all are missed by one with probability below 24 (23/24)^400 = 1e-6."""
    y, generator = torch.arange(4), torch.Generator().manual_seed(0)
    drawn = {tuple(regmixup_batch(y.float(), y, 1.0, generator)[2].tolist()) for _ in range(400)}
    assert len(drawn) == 24


def test_a_generator_alone_decides():
    x, state = torch.rand(6, 2), torch.get_rng_state()
    one, two = (regmixup_batch(x, x, generator=torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(one[0], two[0])
    assert one[3] == two[3]
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert regmixup_batch(x, x)[3] != regmixup_batch(x, x)[3]


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf")])
def test_rejects_bad_alpha(alpha):
    with pytest.raises(ValueError, match="`alpha` of the Beta distribution"):
        regmixup_batch(torch.rand(2, 2), torch.arange(2), alpha)


def test_rejects_what_cannot_be_mixed():
    with pytest.raises(TypeError, match=r"floating-point inputs to mix, but got torch\.uint8"):
        regmixup_batch(torch.zeros(2, 2, dtype=torch.uint8), torch.arange(2))
    with pytest.raises(ValueError, match="as many targets as inputs, but got 3 and 2"):
        regmixup_batch(torch.zeros(2, 2), torch.arange(3))
