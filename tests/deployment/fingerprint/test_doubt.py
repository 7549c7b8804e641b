"""What an explanation leaves is told from noise: by the share that a known dependence makes up, in planted pixels."""

import pytest
import torch
from torch.nn.functional import affine_grid, grid_sample

from lightning_robust.deployment.fingerprint.doubt import _moved_channels, _moved_tiles, doubt_view
from lightning_robust.deployment.fingerprint.view import best_view
from tests.deployment.fingerprint.samples import scenes


def viewed(deployed, trained):
    return best_view(*((side * 255).round().double() for side in (trained, deployed)))[0]


def sampled(x, grid):
    return grid_sample(x, grid.expand(len(x), -1, -1, -1), padding_mode="border", align_corners=True)


@pytest.fixture(scope="module")
def pictures():
    x = scenes(3)
    return x, affine_grid(torch.eye(2, 3)[None], [1, 1, *x.shape[2:]], align_corners=True)


def test_noise_a_gain_and_a_shift_leave_no_doubt(pictures):
    x, grid = pictures
    noisy = x + 3 / 255 * torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
    shifted = sampled(x, grid + torch.tensor([0.02, 0.01])) * 0.9
    assert [doubt_view(viewed(side, x)) for side in (noisy, shifted)] == ["", ""]


def test_a_tone_curve_depends_on_brightness_and_a_vignette_on_the_place(pictures):
    x, _ = pictures
    curve = x + 0.06 * torch.sin(2 * torch.pi * x)
    vignette = x * (1 - 0.3 * torch.linspace(-1, 1, x.shape[3]).square())
    assert doubt_view(viewed(curve, x)).startswith("brightness")
    assert doubt_view(viewed(vignette, x)).startswith("the place in the picture, as a vignette's")


def test_what_moves_otherwise_from_place_to_place_is_measured_in_pixels(pictures):
    """A wave of 1.5 pixels across the picture, which no shift or zoom takes away, has a root mean square of 1.06."""
    x, grid = pictures
    grid = grid.clone()
    grid[..., 0] += 2 * 1.5 / (x.shape[3] - 1) * torch.sin(3 * torch.pi * grid[..., 1])
    view = viewed(sampled(x, grid), x)
    share, pixels = _moved_tiles(view)
    assert share > 0.5
    assert pixels == pytest.approx(1.5 / 2**0.5, rel=0.35)
    assert "moves otherwise" in doubt_view(view)


def test_a_channel_that_lies_aside_is_measured_in_pixels(pictures):
    """Red lies two pixels aside. From any common motion m its distance is 2 - m, the others' m: a root mean square
    of 0.94 at least (m = 2/3) and 1.15 where m is 0."""
    x, grid = pictures
    aside = x.clone()
    aside[:, :1] = sampled(x[:, :1], grid + torch.tensor([4 / (x.shape[3] - 1), 0.0]))
    view = viewed(aside, x)
    share, pixels = _moved_channels(view)
    assert share > 0.8
    assert 0.94 * 0.8 < pixels < 1.15 * 1.2
    assert doubt_view(view).startswith("the channel")
