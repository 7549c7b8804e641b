"""Mixtures of low-rank adapters against their products."""

import pytest
import torch

from lightning_robust.functional.averaging import interpolate
from lightning_robust.functional.low_rank import adapter_pairs, mixable_start, require_one_basis


def factors(seed, zero=""):
    generator = torch.Generator().manual_seed(seed)
    state = {
        "q.lora_A.default.weight": torch.randn(2, 6, generator=generator, dtype=torch.float64),
        "q.lora_B.default.weight": torch.randn(5, 2, generator=generator, dtype=torch.float64),
    }
    return {name: tensor * (f"lora_{zero}" not in name if zero else 1) for name, tensor in state.items()}


def product(state):
    return state["q.lora_B.default.weight"] @ state["q.lora_A.default.weight"]


@pytest.mark.parametrize("zero", ["A", "B"])
@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 1.0])
def test_closed_form(zero, alpha):
    start, end = factors(1, zero), factors(2)
    mixed = interpolate(mixable_start(start, end), end, alpha)
    torch.testing.assert_close(product(mixed), alpha * product(end))


@pytest.mark.parametrize("fixed", ["q.lora_A.default.weight", "q.lora_B.default.weight"])
def test_a_factor_that_is_fixed_makes_the_product_linear(fixed):
    start, end = factors(1), factors(2)
    end[fixed] = start[fixed]
    assert mixable_start(start, end) == start
    mixed = interpolate(mixable_start(start, end), end, 0.3)
    torch.testing.assert_close(product(mixed), 0.7 * product(start) + 0.3 * product(end))
    require_one_basis([start, end])


def test_rejects_what_is_no_mixture_of_products():
    with pytest.raises(ValueError, match="both factors differ and neither is zero"):
        mixable_start(factors(1), factors(2))
    with pytest.raises(ValueError, match="both factors differ between the ingredients"):
        require_one_basis([factors(1), factors(2)])
    # each pair shares a factor, all three together share none
    one, other = factors(1), factors(2)
    first, second = one
    with pytest.raises(ValueError, match="both factors differ"):
        require_one_basis([one, {**one, first: other[first]}, {**one, second: other[second]}])


def test_names_of_several_libraries():
    names = ["lora_A", "lora_B", "q.lora_a.weight", "q.lora_b.weight", "e.lora_embedding_A.x", "e.lora_embedding_B.x"]
    assert adapter_pairs([*names, "lora_Alpha", "k.lora_A.weight"]) == list(zip(names[::2], names[1::2], strict=True))
