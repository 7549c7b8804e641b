"""Rounding of arrays: against torch, closed forms and bits."""

import numpy as np
import pytest
import torch

from lightning_robust.deployment.numerics.rounding import HALF_RANGES, is_beyond, round_array, to_half_array

HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_rounding_matches_torch(precision):
    values = torch.cat([torch.randn(4000) * 10.0**k for k in range(-8, 9)])
    expected = values.to(HALF[precision]).float()
    assert np.array_equal(round_array(values.numpy(), precision), expected.numpy())


def test_tf32_rounding_closed_form():
    """10 mantissa bits: spacing 2^-10 in [1, 2), ties to even; infinity and NaN stay."""
    x = np.array([1 + 2**-10, 1 + 2**-11, 1 + 3 * 2**-11, 1 + 2**-12, np.inf, -3e38], np.float32)
    assert round_array(x, "tf32")[:5].tolist() == [1 + 2**-10, 1.0, 1 + 2**-9, 1.0, np.inf]
    assert np.isnan(round_array(np.array([np.nan], np.float32), "tf32"))[0]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_arrays_have_the_bits_of_torch(precision):
    values = torch.cat([torch.randn(4000) * 10.0**k for k in range(-8, 9)] + [torch.tensor([0.0, -0.0, torch.inf])])
    expected = values.to(HALF[precision]).view(torch.int16).numpy()
    assert np.array_equal(to_half_array(values.numpy(), precision).view(np.int16), expected)


@pytest.mark.parametrize("precision", ["fp16", "bf16", "tf32"])
def test_rounding_twice_is_rounding_once(precision):
    values = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    once = round_array(values, precision)
    assert np.array_equal(round_array(once, precision), once)


@pytest.mark.parametrize("precision", ["fp16", "bf16", "tf32"])
def test_scalars_stay_scalars(precision):
    rounded = round_array(np.array(0.1, np.float32), precision)
    assert rounded.shape == ()
    assert abs(float(rounded) - 0.1) < 1e-3


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_clamp_closed_form(precision):
    """The nearest finite number for what is too large, the smallest for what is too small; what is infinite stays."""
    smallest, largest = HALF_RANGES[precision]
    info = torch.finfo(HALF[precision])
    assert (smallest, largest) == (info.smallest_normal * info.eps, info.max)
    values = np.array([3.4028235e38, -3.4028235e38, np.inf, -np.inf, 1e-45, -1e-45, 0, -0.0, 1.0], np.float32)
    got = to_half_array(values, precision, "clamp").astype(np.float64)
    assert got[:4].tolist() == [largest, -largest, np.inf, -np.inf]
    assert got[4:].tolist() == [smallest, -smallest, 0, 0, 1]
    assert np.isnan(to_half_array(np.array([np.nan], np.float32), precision, "clamp").astype(np.float32)).all()
    assert to_half_array(np.array(3.4028235e38, np.float32), precision, "clamp").shape == ()


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_beyond_is_what_rounds_to_infinity(precision):
    edge = np.float32({"fp16": 65520, "bf16": (2 - 2**-8) * 2.0**127}[precision])
    below = np.nextafter(edge, np.float32(0))
    for values in ([edge], [-edge], [1, -edge], [np.nan, edge]):
        array = np.array(values, np.float32)
        assert is_beyond(array, precision)
        assert np.isinf(to_half_array(array, precision)).any()
    for values in ([below], [-below], [np.inf], [np.nan, 1], []):
        assert not is_beyond(np.array(values, np.float32), precision)
