"""Levels that were cut are told where noise or a codec hides them, and not where nothing was cut."""

import pytest
import torch

from lightning_robust.deployment.fingerprint.search import fingerprint
from lightning_robust.deployment.pixels.operations import fewer_levels, jpeg
from tests.deployment.fingerprint.samples import scenes


def in_levels(x):
    return (x * 255).round().clamp(0, 255) / 255


def noisy(x, deviation):
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
    return in_levels(x + deviation / 255 * noise)


def causes(trained, deployed):
    return {cause.name: cause.parameters for cause in fingerprint(trained, deployed).causes}


@pytest.mark.parametrize("bits", [4, 5, 6])
@pytest.mark.parametrize("deviation", [3.0, 6.0])
def test_fewer_bits_are_told_under_noise_that_fills_the_gaps(bits, deviation):
    x = scenes(2)
    found = causes(x, noisy(fewer_levels(x, bits), deviation))
    assert set(found) == {"rounding", "noise"}
    assert found["rounding"] == {"kind": "fewer levels", "levels": 2**bits, "expected": 256}
    assert found["noise"]["std"] == pytest.approx(deviation, rel=0.04)


def test_fewer_bits_are_told_before_a_gain_and_noise():
    x = scenes(2)
    found = causes(x, noisy(fewer_levels(x, 6) * 1.05, 3.0))
    assert set(found) == {"rounding", "noise", "gain_offset"}
    assert found["rounding"]["levels"] == 64


@pytest.mark.parametrize("change", [lambda x: x, lambda x: 1.05 * x, lambda x: x**0.9, lambda x: x - 1.5 / 255])
def test_noise_alone_has_no_steps(change):
    """An offset by what a cut to 6 bits takes away in the mean is none of its own."""
    x = scenes(2)
    assert "rounding" not in causes(x, noisy(change(x), 3.0))


def test_half_a_level_is_told_under_what_a_codec_leaves():
    """Training's pictures are blurred after the codec's, so that no codec reproduces these; the mean is off by 0.5."""
    x = scenes(2)
    blurred = [0.5 * side + 0.25 * (side.roll(1, 3) + side.roll(-1, 3)) for side in (x, jpeg(x, 90))]
    trained, rounded = map(in_levels, blurred)
    cut = (blurred[1] * 255).floor() / 255
    assert {"compression", "rounding"} <= set(causes(trained, cut))
    assert "rounding" not in causes(trained, rounded)
