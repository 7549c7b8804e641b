"""Rounding of arrays: against torch, closed forms and bits."""

import numpy as np
import pytest
import torch

from lightning_robust.deployment.numerics.rounding import round_array, to_half_array

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
