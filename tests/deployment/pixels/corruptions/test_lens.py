"""Dirt by the share it covers, drops by what they show."""

import itertools

import pytest
import torch

from lightning_robust.deployment.pixels.corruptions import Corruption
from lightning_robust.deployment.pixels.corruptions.lens import COVERED, dirt, dirt_mask, drop_lenses, drops


@pytest.mark.parametrize("size", [(28, 28), (72, 128), (144, 256)])
def test_dirt_covers_the_share_that_it_says(size):
    """The mask's mean is the covered share times its opacity, but for what falls over the border."""
    masks = [dirt_mask(*size, severity) for severity in range(1, 6)]
    for mask, share in zip(masks, COVERED, strict=True):
        assert mask.mean().item() == pytest.approx(0.95 * share, rel=0.2)
        assert 0 <= mask.min() <= mask.max() <= 0.95 + 1e-5
    # spots grow where they are
    assert all((more - less).min() > -1e-4 for less, more in itertools.pairwise(masks))


def test_dirt_is_brown_and_stays_on_the_lens():
    white, black = (torch.full((1, 3, 72, 128), value) for value in (1.0, 0.0))
    mask = dirt_mask(72, 128, 5)
    torch.testing.assert_close(dirt(white, 5) - dirt(black, 5), (1 - mask).expand(1, 3, 72, 128), rtol=0, atol=1e-5)
    red, green, blue = dirt(black, 5)[0, :, mask == mask.max()][:, 0]
    assert red > green > blue > 0


def test_drops_show_the_scene_upside_down():
    """In the middle of a drop that no other touches, a picture that brightens downwards darkens downwards, fourfold."""
    height, width = 144, 256
    ramp = (torch.arange(height) / height)[None, None, :, None].expand(1, 1, height, width).contiguous()
    grid, shade, water = drop_lenses(height, width, 1)
    seen = drops(ramp, 1)[0, 0]
    slopes = height * seen.diff(dim=0)
    inside = (water[1:] > 0.999) & (shade[1:] > 0.999) & (grid[0, 1:, :, 1].abs() < 0.9)
    assert inside.sum() > 20
    assert slopes[inside].median().item() == pytest.approx(-4, rel=0.05)
    assert slopes[water[1:] == 0].median().item() == pytest.approx(1, rel=0.01)


def test_there_are_more_drops_at_the_same_places():
    covered = [drop_lenses(144, 256, severity)[2] > 0.5 for severity in range(1, 6)]
    shares = [each.float().mean().item() for each in covered]
    assert shares == sorted(set(shares))
    assert shares[0] > 0.005
    assert shares[-1] < 0.3
    assert all((less & ~more).sum() == 0 for less, more in itertools.pairwise(covered))


def test_both_are_the_same_in_all_pictures():
    x = torch.rand(2, 3, 48, 64)
    for name in ("dirt", "drops"):
        touched = (Corruption(name, 4)(x) - x).abs().amax(1) > 1.5 / 255
        assert (touched[0] != touched[1]).float().mean() < 0.02
