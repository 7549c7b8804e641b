"""Patterns: exact averages over a pixel, tiles without seams, numbers that depend on the index alone."""

import pytest
import torch

from lightning_robust.demo.lanes.draws import Draws
from lightning_robust.demo.lanes.textures import dashes, look_up, stripe, tile, white_noise


def test_stripe_matches_fine_sampling():
    position = torch.linspace(-1, 1, 41).double()
    fine = (torch.arange(10_000).double() + 0.5) / 10_000 - 0.5
    for half_width, footprint in ((0.1, 0.05), (0.1, 0.7)):
        sampled = ((position[:, None] + fine * footprint).abs() <= half_width).double().mean(1)
        exact = stripe(position, torch.tensor(half_width).double(), torch.tensor(footprint).double())
        torch.testing.assert_close(exact, sampled, atol=2e-4, rtol=0)  # two samples of 10,000


def test_dashes_match_fine_sampling():
    position = torch.linspace(-2, 2, 41).double()
    fine = (torch.arange(10_000).double() + 0.5) / 10_000 - 0.5
    for duty, footprint in ((0.3, 0.05), (0.3, 2.7), (1.0, 0.4)):
        sampled = ((position[:, None] + fine * footprint) % 1 < duty).double().mean(1)
        exact = dashes(position, torch.tensor(duty).double(), torch.tensor(footprint).double())
        torch.testing.assert_close(exact, sampled, atol=5e-4, rtol=0)


def test_tile_repeats_without_a_seam():
    assert torch.equal(tile()[..., 0], tile()[..., -1])
    assert torch.equal(tile()[..., 0, :], tile()[..., -1, :])
    here = torch.full((1, 1, 1), 0.3), torch.full((1, 1, 1), 0.7)
    there = here[0] + 2, here[1] - 5
    torch.testing.assert_close(look_up(*here, slice(0, 4)), look_up(*there, slice(0, 4)), atol=1e-2, rtol=0)


def test_white_noise_refuses_huge_pictures():
    with pytest.raises(ValueError, match="Expected a picture of at most"):
        white_noise(torch.zeros(1, dtype=torch.long), (3, 1000, 1000))


def test_draws_are_uniform_and_independent_of_the_batch():
    draws = Draws(torch.arange(100_000), seed=1)
    first, second = draws.uniform(), draws.uniform()
    # standard errors at 100,000 draws: 0.0009 for the mean, 0.003 for the correlation; five of them allowed
    assert abs(first.mean() - 0.5) < 0.005
    assert abs(first.var() - 1 / 12) < 0.002
    assert abs(torch.corrcoef(torch.stack([first, second]))[0, 1]) < 0.016
    assert abs(torch.corrcoef(torch.stack([first[1:], first[:-1]]))[0, 1]) < 0.016
    alone = Draws(torch.tensor([77]), seed=1)
    assert alone.uniform() == first[77]
    assert alone.uniform() == second[77]
    assert Draws(torch.tensor([77]), seed=2).uniform() != first[77]
