import math

import pytest
import torch

from lightning_robust.functional.basins import barriers, cosine, share_start


def test_barrier_of_a_bowl_is_negative_and_of_a_double_well_known():
    states = [{"w": torch.tensor([[-1.0]])}, {"w": torch.tensor([[1.0]])}]
    (bowl,) = barriers(states, lambda s: -(s["w"].item() ** 2), [-1.0, -1.0])
    (wells,) = barriers(states, lambda s: (s["w"].item() ** 2 - 1) ** 2, [0.0, 0.0], mode="min")
    assert (bowl.height, wells.height, wells.cosine) == (-1.0, 1.0, -1.0)


def test_independent_weights_are_orthogonal_and_shared_starts_are_not():
    """The cosine of independent vectors of length n is normal with spread 1 / sqrt(n): within 5 of them."""
    start, one, two = (torch.randn(50, 40) for _ in range(3))
    assert abs(cosine({"w": one}, {"w": two})) < 5 / math.sqrt(2000)
    shared = cosine({"w": start + 0.5 * one}, {"w": start + 0.5 * two})
    assert shared == pytest.approx(1 / 1.25, abs=0.05)
    assert cosine({"w": start + one}, {"w": start + one}, base={"w": start}) == pytest.approx(1)


def test_without_a_base_biases_do_not_count():
    """Two layers with orthogonal matrices and equal biases, which would make the cosine 100 / 101."""
    one = {"w": torch.tensor([[1.0, 0.0]]), "b": torch.tensor([10.0])}
    two = {"w": torch.tensor([[0.0, 1.0]]), "b": torch.tensor([10.0])}
    assert cosine(one, two) == 0
    zero = {name: torch.zeros_like(tensor) for name, tensor in one.items()}
    assert cosine(one, two, zero) == pytest.approx(100 / 101)
    assert math.isnan(cosine(zero, two))


def test_share_start_by_the_noise_between_two_models():
    """Two of one start with noise s of each have the cosine 1 / (1 + s^2): 0.5 at s = 1, 0.2 at s = 2."""
    start, one, two = (torch.randn(60, 60) for _ in range(3))
    assert share_start({"w": start + one}, {"w": start + two})
    assert not share_start({"w": start + 2 * one}, {"w": start + 2 * two})
    assert share_start({"b": torch.randn(9)}, {"b": torch.randn(9)})  # biases alone tell nothing


def test_a_middle_that_overflows_is_a_barrier_without_end():
    states = [{"w": torch.tensor([[1.0, 1.0]])}, {"w": torch.tensor([[1.0, -1.0]])}]
    (barrier,) = barriers(states, lambda state: math.inf if state["w"][0, 1] == 0 else 1.0, [1.0, 2.0], mode="min")
    assert (barrier.ingredient, barrier.height) == (1, math.inf)
