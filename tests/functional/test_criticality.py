"""Draws, distances and shares against closed forms and simulation."""

import math

import pytest
import torch

from lightning_robust.functional.criticality import criticality_verdict, permuted, share_of_gain, weight_distance


def test_permutation_keeps_the_marginal_and_nothing_else():
    initial = {"w": torch.randn(40, 50), "n": torch.tensor(3)}
    one, other = (permuted(initial, torch.Generator().manual_seed(seed)) for seed in (0, 1))
    assert torch.equal(one["w"].flatten().sort().values, initial["w"].flatten().sort().values)
    assert one["n"] == 3
    # 2000 places: correlations of independent orders have a standard deviation of 0.022
    stacked = torch.stack([initial["w"].flatten(), one["w"].flatten(), other["w"].flatten()])
    assert (torch.corrcoef(stacked) - torch.eye(3)).abs().max() < 0.1


def test_distance_closed_form():
    start = {"a": torch.zeros(3), "b": torch.zeros(1)}
    end = {"a": torch.tensor([1.0, -1.0, 1.0], dtype=torch.bfloat16), "b": torch.tensor([-3.0])}
    assert weight_distance(start, end, ["a", "b"]) == (math.sqrt(12 / 4), 3.0)
    assert weight_distance(start, end, ["a"]) == (1.0, 1.0)


def test_share_is_the_same_for_metrics_that_grow_and_that_shrink():
    grows = share_of_gain([0.25, 0.15], [0.5, 0.4], [0.1, 0.1])
    shrinks = share_of_gain([0.75, 0.85], [0.5, 0.6], [0.9, 0.9])
    assert grows.value == pytest.approx(0.2 / 0.7)
    assert (grows.value, grows.low, grows.high) == pytest.approx((shrinks.value, shrinks.low, shrinks.high))
    assert math.isnan(share_of_gain([0.5], [0.5], [0.5]).value)
    assert math.isnan(share_of_gain([0.5], [1.0], [0.0]).low)


def test_interval_covers_the_truth_as_often_as_it_says():
    """The truth is a share of 0.7; batches of 50 right or wrong answers, the same samples in all three networks."""
    generator = torch.Generator().manual_seed(0)
    covered, runs, batches = 0, 400, 20
    for _ in range(runs):
        draws = torch.rand(batches, 50, generator=generator)
        trained, cell, start = ((draws < p).double().mean(1) / batches for p in (0.9, 0.66, 0.1))
        found = share_of_gain(cell.tolist(), trained.tolist(), start.tolist())
        covered += found.low <= 0.7 <= found.high
    # 95 % of 400, three standard deviations of 4.4 either way
    assert 367 <= covered <= 393


def test_verdicts():
    assert criticality_verdict(share_of_gain([1.0], [1.0], [0.0]), 0.9) == "ambient"
    assert criticality_verdict(share_of_gain([math.nan], [1.0], [0.0]), 0.9) == "undecided"
