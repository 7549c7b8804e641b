import math
from fractions import Fraction

import pytest
import torch

from lightning_robust.functional.quantization import quantize_block, quantize_channels


def slow_nearest(values, bits):
    """The definition in exact arithmetic, one block."""
    largest = max(abs(value) for value in values)
    if largest == 0:
        return list(values)
    step = Fraction(2) ** (math.frexp(largest)[1] - 1 - (bits - 2))
    levels = [math.floor(Fraction(value) / step + Fraction(1, 2)) for value in values]
    return [float(step * min(max(level, -(2 ** (bits - 1))), 2 ** (bits - 1) - 1)) for level in levels]


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
def test_nearest_matches_exact_arithmetic(bits, scale):
    values = (torch.randn(200) * scale).tolist()
    found = quantize_block(torch.tensor(values), bits, rounding="nearest")
    assert found.tolist() == torch.tensor(slow_nearest(torch.tensor(values).tolist(), bits)).tolist()


def test_exact_at_powers_of_two_where_log2_is_not():
    wrong = 0
    for exponent in range(-100, 101):
        for value in (2.0**exponent, torch.nextafter(torch.tensor(2.0**exponent), torch.tensor(0.0)).item()):
            tensor = torch.tensor([value])
            wrong += int(torch.floor(torch.log2(tensor)).item() != math.frexp(value)[1] - 1)
            assert quantize_block(tensor, 8, rounding="nearest").tolist() == slow_nearest([value], 8)
    assert wrong > 50


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("block_dim", [None, 0, -1])
def test_values_lie_on_the_grid_of_their_block(rounding, block_dim):
    values = torch.randn(6, 50) * torch.logspace(-6, 6, 6)[:, None]
    found = quantize_block(values, 5, block_dim=block_dim, rounding=rounding)
    blocks = (
        [(values, found)]
        if block_dim is None
        else list(zip(values.unbind(block_dim), found.unbind(block_dim), strict=True))
    )
    for block, rounded in blocks:
        step = 2.0 ** (math.frexp(block.abs().max().item())[1] - 1 - 3)
        levels = rounded / step
        assert torch.equal(levels, levels.round())
        assert levels.min() >= -16
        assert levels.max() <= 15
        assert (rounded - block).abs().max() <= step


def test_stochastic_rounding_is_unbiased_to_the_expected_error():
    """Over n draws the mean lies within 5 standard errors; a draw has a spread of at most half a step."""
    values = torch.rand(1000) * 1.9 - 0.95
    values[0] = -1.0
    draws, step = 400, 2.0**-6
    total = sum(quantize_block(values, 8, generator=torch.Generator().manual_seed(i)) for i in range(draws))
    errors = (total / draws - values) / (0.5 * step / math.sqrt(draws))
    assert errors.abs().max() < 5
    assert errors.mean().abs() < 5 / math.sqrt(1000)


def test_the_largest_value_can_only_be_lowered():
    """1.9999 lies above the largest level, 127/64."""
    assert quantize_block(torch.tensor([1.9999]), 8).item() == 127 / 64


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_twice_is_once(rounding):
    once = quantize_block(torch.randn(100).clamp(-0.9, 0.9), 8, rounding=rounding)
    assert torch.equal(quantize_block(once, 8, rounding=rounding), once)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types(dtype):
    values = torch.randn(64, dtype=dtype)
    found = quantize_block(values, 6, rounding="nearest")
    assert found.dtype == dtype
    assert found.tolist() == slow_nearest(values.tolist(), 6)


def test_reproducible_and_in_place():
    values = torch.randn(50)
    one, two = (quantize_block(values, 8, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one, two)
    place = values.data_ptr()
    assert quantize_block(values, 8, out=values, generator=torch.Generator().manual_seed(3)).data_ptr() == place
    assert torch.equal(values, one)


def test_zeros_extremes_and_what_is_not_finite():
    assert quantize_block(torch.zeros(3), 8).tolist() == [0.0] * 3
    assert quantize_block(torch.empty(0), 8).shape == (0,)
    assert torch.isfinite(quantize_block(torch.tensor([1.6e38, -1.6e38, 1e-45]), 8)).all()
    assert quantize_block(torch.tensor([1e-40, -1e-45]), 8, rounding="nearest").abs().max() < 1e-37
    mixed = quantize_block(
        torch.tensor([[1.0, math.nan], [0.3, 0.7], [math.inf, 2.0]]), 3, block_dim=0, rounding="nearest"
    )
    assert torch.equal(mixed[1], torch.tensor([0.25, 0.75]))
    assert mixed[:, 0].tolist() == [1.0, 0.25, math.inf]
    assert math.isnan(mixed[0, 1])
    assert mixed[2, 1] == 2


def test_rejects_integers_and_bad_lengths():
    with pytest.raises(TypeError, match="floating-point"):
        quantize_block(torch.arange(3), 8)
    for bits in (1, 25):
        with pytest.raises(ValueError, match="between 2 and 24"):
            quantize_block(torch.ones(1), bits)


def slow_channel(values, bits):
    """The definition in exact arithmetic, one channel; ties to even, as Python rounds fractions."""
    scale = Fraction(max(abs(value) for value in values)) / (2 ** (bits - 1) - 1)
    return [float(round(Fraction(value) / scale) * scale) for value in values]


@pytest.mark.parametrize("bits", [2, 4, 8, 12])
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_channels_match_exact_arithmetic(bits, dim):
    values = torch.randn(5, 4, 3, dtype=torch.float64) * torch.logspace(-6, 6, 5)[:, None, None]
    found = quantize_channels(values, bits, dim=dim)
    for channel, rounded in zip(values.unbind(dim), found.unbind(dim), strict=True):
        assert rounded.flatten().tolist() == pytest.approx(slow_channel(channel.flatten().tolist(), bits), rel=1e-12)
        assert (rounded - channel).abs().max() <= channel.abs().max() / (2 ** (bits - 1) - 1) / 2 * (1 + 1e-9)


def test_noise_of_channels_is_that_of_uniform_rounding():
    """A step s has a mean squared error of s**2 / 12; each bit less doubles the step, but for the 1 in 2**(b-1) - 1."""
    values = torch.rand(1, 200_000) * 2 - 1
    values[0, 0] = 1.0
    for bits in (8, 6, 4):
        step = 1 / (2 ** (bits - 1) - 1)
        error = (quantize_channels(values, bits) - values).square().mean().item()
        assert error == pytest.approx(step**2 / 12, rel=0.02)


def test_channels_that_are_zero_or_not_finite():
    values = torch.tensor([[0.0, 0.0], [1.0, torch.inf], [torch.nan, 1.0], [1.0, -2.0]])
    found = quantize_channels(values, 8)
    assert found[0].tolist() == [0, 0]
    assert found[3, 1] == -2
    assert found[1].isnan().any()
    assert found[2].isnan().any()


@pytest.mark.parametrize(
    ("tensor", "bits", "error", "says"),
    [
        (torch.ones(2, 2), 1, ValueError, "Expected `bits` between 2 and 16, but got 1"),
        (torch.ones(2, 2), 17, ValueError, "between 2 and 16, but got 17"),
        (torch.ones(2, dtype=torch.int64), 8, TypeError, "Expected a floating-point tensor, but got torch.int64"),
        (torch.ones(0, 3), 8, ValueError, r"Expected weights with channels, but got a tensor of shape \(0, 3\)"),
        (torch.tensor(1.0), 8, ValueError, r"Expected weights with channels, but got a tensor of shape \(\)"),
    ],
)
def test_channels_reject(tensor, bits, error, says):
    with pytest.raises(error, match=says):
        quantize_channels(tensor, bits)
