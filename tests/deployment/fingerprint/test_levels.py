"""Units of dumped pictures: each is recognised, and levels come back exactly."""

import pytest
import torch

from lightning_robust.deployment.fingerprint.levels import find_gains, find_units
from lightning_robust.functional.pixels import PixelSpace

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LEVELS = torch.arange(256.0).repeat(3, 1).view(1, 3, 16, 16)


@pytest.mark.parametrize(
    ("images", "given", "description"),
    [
        (LEVELS.byte(), {}, "levels from 0 to 255"),
        (LEVELS, {}, "levels from 0 to 255"),
        (LEVELS / 255, {}, "[0, 1]"),
        (PixelSpace(*IMAGENET).from_pixels(LEVELS / 255), {}, "normalised with ImageNet's mean and std"),
        (PixelSpace(0.5, 0.5).from_pixels(LEVELS / 255), {}, "normalised with 0.5 as mean and std"),
        (PixelSpace(0.5, 0.5).from_pixels(LEVELS[:, :1] / 255), {}, "normalised with 0.5 as mean and std"),
        (PixelSpace(0.4, 0.2).from_pixels(LEVELS / 255), {}, "normalised with an unknown mean and std"),
        (
            PixelSpace(0.4, 0.2).from_pixels(LEVELS / 255),
            {"mean": 0.4, "std": 0.2},
            "normalised with the given mean and std",
        ),
    ],
)
def test_units_are_recognised(images, given, description):
    units = find_units(images, **given)
    assert units.description == description
    assert units.guessed == ("unknown" in description)
    torch.testing.assert_close(units.to_levels(images), LEVELS[:, : images.shape[1]].double(), rtol=0, atol=1e-3)


def test_half_precision_keeps_the_grid():
    images = PixelSpace(0.4, 0.2).from_pixels(LEVELS / 255).half()
    torch.testing.assert_close(find_units(images).to_levels(images), LEVELS.double(), rtol=0, atol=0.5)


def test_offset_of_a_channel_whose_grid_passes_zero_by_chance():
    """Gains and offsets are (0.5, 60.2), (0.45, 60.3 = 134 steps) and (0.4, 45.1): the second grid goes through 0."""
    generator = torch.Generator().manual_seed(0)
    levels = torch.randint(0, 256, (2, 3, 24, 24), generator=generator).double()
    gains, offsets = (torch.tensor(v).double()[:, None, None] for v in ((0.5, 0.45, 0.4), (60.2, 60.3, 45.1)))
    found = find_gains(levels, levels * gains + offsets)
    torch.testing.assert_close(found[0], gains, rtol=0, atol=1e-3)
    torch.testing.assert_close(found[1], offsets, rtol=0, atol=0.02)
    plain = find_gains(levels, levels * gains)  # no offset where all do
    torch.testing.assert_close(plain[1], torch.zeros_like(gains), rtol=0, atol=0.02)
