"""Fog by its formula, snow and rain by what they add."""

import pytest
import torch

from lightning_robust.deployment.pixels.corruptions import Corruption
from lightning_robust.deployment.pixels.corruptions.weather import TRANSMISSIONS, airlight, fog, rain, snow

from ..pictures import picture


@pytest.mark.parametrize("severity", range(1, 6))
def test_fog_by_its_formula(severity):
    """The mean is that of ``t x + (1 - t) A``, and contrast shrinks by the transmission."""
    x, t = picture(2, 3, 48, 64), TRANSMISSIONS[severity - 1]
    light = airlight(48, 64)
    assert 0.7 <= light.min() < light.max() <= 0.9
    hazy = torch.cat([fog(each[None], severity) for each in x])
    assert hazy.mean().item() == pytest.approx(t * x.mean().item() + (1 - t) * light.mean().item(), abs=1e-6)
    difference = (hazy[0] - hazy[1]).abs().mean() / (x[0] - x[1]).abs().mean()
    assert difference.item() == pytest.approx(t, abs=1e-5)


def test_fog_is_the_same_veil_for_all_pictures():
    black = torch.zeros(1, 3, 48, 64)
    veil = fog(black, 3)
    assert torch.equal(veil[:, 0], veil[:, 1])
    x = picture(1)
    torch.testing.assert_close(fog(x, 3) - TRANSMISSIONS[2] * x, veil)


def test_snow_only_brightens_and_covers_more_with_severity():
    x = 0.5 * picture(1, 3, 112, 160)
    added = [snow(x, severity) - x for severity in range(1, 6)]
    assert all(each.min() > -1e-5 for each in added)
    flakes = [(each.mean(1) > 0.25).float().mean().item() for each in added]
    assert flakes == sorted(flakes)
    assert 0.005 < flakes[0] < 0.1
    assert 0.2 < flakes[-1] < 0.7


def run_lengths(mask):
    """The mean length of what is lit in rows and in columns."""

    def mean(rows):
        starts = (rows[:, 1:] & ~rows[:, :-1]).sum() + rows[:, 0].sum()
        return (rows.sum() / starts).item()

    return mean(mask), mean(mask.T)


def test_rain_falls_and_snow_drifts():
    """Streaks of rain are far longer than wide and near the vertical; flakes of snow are not."""
    black = torch.zeros(1, 1, 224, 224)
    veil = rain(black, 1).min()
    across, down = run_lengths(rain(black, 1)[0, 0] > veil + 0.05)
    assert down > 3 * across
    across, down = run_lengths(snow(black, 1)[0, 0] > 0.3)
    assert down < 3 * across


def test_weather_differs_from_picture_to_picture():
    """Drops and flakes fall on: two frames never have the same; the same frame always has."""
    x, y = torch.zeros(1, 3, 48, 64), torch.full((1, 3, 48, 64), 1 / 255)
    for name in ("snow", "rain"):
        one, other = Corruption(name, 3)(x), Corruption(name, 3)(y)
        assert (one - other).abs().mean() > 0.02
