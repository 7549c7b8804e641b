"""Low light by the statistics of its noise, glare by its closed form."""

import pytest
import torch

from lightning_robust.deployment.pixels.corruptions import Corruption
from lightning_robust.deployment.pixels.corruptions.light import (
    GAINS,
    PHOTONS,
    READ_NOISE,
    glare,
    glare_light,
    low_light,
)


@pytest.mark.parametrize("severity", range(1, 6))
@pytest.mark.parametrize("value", [0.0, 0.6, 1.0])
def test_noise_of_photons_and_of_the_sensor(severity, value):
    """Mean ``g x^2`` and variance ``g x^2 / photons + read_noise^2``, of 49,152 pixels: four standard errors."""
    gain, photons, deviation = (each[severity - 1] for each in (GAINS, PHOTONS, READ_NOISE))
    dark = low_light(torch.full((1, 3, 128, 128), value, dtype=torch.float64), severity)
    mean, variance, count = gain * value**2, gain * value**2 / photons + deviation**2, dark.numel()
    assert dark.mean().item() == pytest.approx(mean, abs=4 * (variance / count) ** 0.5)
    # a Poisson variable's excess kurtosis is 1 / mean, at most that of the darkest case here
    spread = variance * ((2 + 1 / max(mean * photons, 1)) / count) ** 0.5
    assert dark.var().item() == pytest.approx(variance, abs=4 * spread)


def test_channels_and_neighbours_are_independent():
    dark = low_light(torch.full((1, 3, 128, 128), 0.8), 4)
    noise = dark - dark.mean()
    assert torch.corrcoef(noise[0].flatten(1)).triu(1).abs().max() < 0.03
    rows = torch.stack([noise[..., 1:].flatten(), noise[..., :-1].flatten()])
    assert torch.corrcoef(rows)[0, 1].abs() < 0.03


def test_noise_is_other_in_each_picture():
    x = torch.full((2, 1, 64, 64), 0.8)
    x[1, 0, 0, 0] = 0.7
    dark = Corruption("low_light", 3)(x)
    assert torch.corrcoef(dark.flatten(1))[0, 1].abs() < 0.06


@pytest.mark.parametrize("severity", range(1, 6))
def test_glare_falls_with_the_square_of_the_distance(severity):
    """``1 / (1 + (d / halo)^2)`` beside the veil, along the column through the source."""
    light = glare_light(2000, 2000, severity)
    source, halo, veil = (
        (0.03, 0.10, 0.10),
        (0.04, 0.15, 0.16),
        (0.05, 0.21, 0.23),
        (0.06, 0.28, 0.31),
        (0.08, 0.36, 0.40),
    )[severity - 1]
    column = light[:, round(0.62 * 2000)]
    assert column[600] == pytest.approx(1, abs=1e-4)
    for distance in (0.15, 0.3, 0.6):
        expected = veil + (1 - veil) / (1 + (distance - source) ** 2 / halo**2)
        assert column[600 + round(distance * 2000)].item() == pytest.approx(expected, abs=2e-3)


def test_glare_adds_light_and_keeps_white():
    x = torch.rand(1, 3, 40, 60)
    assert (glare(x, 4) - x).min() >= 0
    assert torch.equal(Corruption("glare", 5)(torch.ones(1, 3, 40, 60)), torch.ones(1, 3, 40, 60))
