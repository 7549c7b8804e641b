import itertools
import math

import pytest
import torch

from lightning_robust.functional.datapath import (
    LayerDivergence,
    channel_energy,
    lasting,
    parting_point,
    same_norm_noise,
)

NOISE = [0.20, 0.35, 0.32, 0.43, 0.27, 0.35, 0.31]
PGD = [0.21, 0.38, 0.42, 0.64, 0.79, 1.12, 0.97]


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize(("shape", "dim"), [((3, 5), 1), ((3, 5, 4, 2), 1), ((3, 7, 5), -1)])
def test_channel_energy_is_the_sum_of_squares_of_each_channel(generator, shape, dim):
    activation = torch.randn(shape, generator=generator)
    expected = [channel.double().square().sum().item() for channel in activation.unbind(dim)]
    assert channel_energy(activation, dim).tolist() == pytest.approx(expected, rel=1e-6)


def test_relative_divergence_of_a_linear_layer(generator):
    weight, inputs, moved = (torch.randn(size, generator=generator) for size in ((6, 4), (10, 4), (10, 4)))
    clean, after = inputs @ weight.T, (inputs + moved) @ weight.T
    layer = LayerDivergence("linear", channel_energy(clean, 1), channel_energy(after - clean, 1))
    assert layer.relative == pytest.approx(((moved @ weight.T).norm() / clean.norm()).item(), rel=1e-6)
    assert layer.control is None
    root_mean_square = clean.square().sum(0).mean().sqrt()
    assert torch.allclose(layer.levels.float(), (moved @ weight.T).norm(dim=0) / root_mean_square)


def test_what_overflows_or_comes_out_of_nothing_is_infinite():
    ones = torch.ones(2)
    assert LayerDivergence("a", ones, torch.tensor([1.0, math.inf])).relative == math.inf
    assert LayerDivergence("a", ones, torch.tensor([1.0, math.nan])).relative == math.inf
    assert LayerDivergence("a", 0 * ones, ones).relative == math.inf
    assert LayerDivergence("a", 0 * ones, 0 * ones).relative == 0
    assert LayerDivergence("a", ones, torch.tensor([1.0, math.inf])).carriers(0.8) == [1]


def test_carriers_are_the_fewest_that_hold_the_share(generator):
    moved = torch.rand(9, generator=generator, dtype=torch.float64)
    for share in (0.3, 0.8, 0.99):
        found = LayerDivergence("a", torch.ones(9), moved).carriers(share)
        assert moved[found].sum() >= share * moved.sum()
        fewer = itertools.combinations(range(9), len(found) - 1)
        assert max(moved[list(each)].sum() for each in fewer) < share * moved.sum()
        assert moved[found].tolist() == sorted(moved[found].tolist(), reverse=True)


def test_lasting_and_parting_point():
    assert (lasting([]), lasting([False]), lasting([True]), lasting([False, True])) == (None, None, 0, 1)
    # ratios 1.05 1.09 1.31 1.49 2.93 3.2 3.13, measured on another Fashion-MNIST network
    assert parting_point(PGD, NOISE, 1.5) == 4
    assert parting_point(PGD, NOISE, 1.3) == 2
    assert parting_point(NOISE, NOISE, 1.5) is None
    assert parting_point(PGD, NOISE, 1.5, 0.6) == 5
    # one trained by PGD: ratios up to 5.4, but nothing grows
    assert parting_point([0.205, 0.217, 0.19, 0.201], [0.164, 0.144, 0.0905, 0.0373], 1.5, 0.2) is None
    assert parting_point([0.0, 0.0], [0.0, 0.0]) is None
    assert parting_point([1.0, 9.0, 1.1, 1.6, 2.0], None, 1.5) == 3


def test_noise_has_the_norm_of_the_perturbation_sample_by_sample(generator):
    clean = torch.randn(5, 3, 16, 16, generator=generator)
    perturbed = clean + torch.randn(clean.shape, generator=generator) * torch.arange(5.0).reshape(5, 1, 1, 1)
    noisy = same_norm_noise(clean, perturbed, generator)
    moves = [(each - clean).flatten(1) for each in (noisy, perturbed)]
    assert torch.allclose(moves[0].norm(dim=1), moves[1].norm(dim=1), rtol=1e-5)
    assert torch.equal(noisy[0], clean[0])
    signs = moves[0][1:].sign()
    # 3,072 fair coins: five standard deviations
    assert abs(signs.mean()) < 5 / math.sqrt(signs.numel())
    assert same_norm_noise(clean.bfloat16(), perturbed.bfloat16()).dtype == torch.bfloat16
