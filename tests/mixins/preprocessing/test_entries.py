"""Which entries are drawn, and how often."""

import math
from collections import Counter

import torch

from lightning_robust.deployment.pixels.catalogue import CATALOGUE, perturbations
from lightning_robust.mixins.preprocessing.entries import choose_entries

DRAWS = 20_000


def drawn(entries, weights):
    chosen = choose_entries(entries, weights, DRAWS, torch.Generator().manual_seed(0))
    return Counter(entry.name for entry in chosen)


def within(count, share):
    """Four standard deviations of a binomial count."""
    return abs(count - DRAWS * share) < 4 * math.sqrt(DRAWS * share * (1 - share))


def test_families_are_drawn_alike_and_then_their_entries():
    counts = drawn(perturbations(["bgr", "gamma", "noise_2"]), {})
    assert within(counts["bgr"], 1 / 3)
    assert within(counts["noise_2"], 1 / 3)
    assert all(within(counts[name], 1 / 9) for name in ("gamma_07", "gamma_09", "gamma_11"))


def test_the_whole_catalogue_is_drawn():
    counts = drawn(perturbations("all"), {})
    assert set(counts) == set(CATALOGUE)
    assert within(counts["bgr"], 1 / 11)


def test_weights_decide_where_there_are_some():
    counts = drawn(perturbations(["bgr", "gamma_07", "gamma_09"]), {"bgr": 1.0, "gamma_09": 3.0})
    assert set(counts) == {"bgr", "gamma_09"}
    assert within(counts["gamma_09"], 3 / 4)
