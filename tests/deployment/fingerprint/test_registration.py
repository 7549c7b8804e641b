"""Known shifts, zooms, turns and lenses, recovered from pictures."""

import math

import pytest
import torch
from torch.nn.functional import affine_grid, grid_sample

from lightning_robust.deployment.fingerprint.motion import Motion, warp
from lightning_robust.deployment.fingerprint.registration import estimate_motion, phase_correlation

from .samples import sampled, texture


@pytest.mark.parametrize(("dx", "dy"), [(0.25, -0.25), (0.5, 0.5), (1.0, 0.0)])
def test_phase_correlation_to_a_twentieth_of_a_pixel(dx, dy):
    """The window stays where it is, which pulls the estimate towards zero; the refinement takes that back."""
    found = phase_correlation(sampled(0, 0), sampled(dx, dy))
    assert found == pytest.approx((dx, dy), abs=0.05)


@pytest.mark.parametrize("motion", [Motion(0.5, 0.5), Motion(0, 0, 1.04, 1.04), Motion(-1.5, 0.75, 0.97, 1.0)])
def test_motion_is_found(motion):
    before = texture(2, 96, 128)
    found, _ = estimate_motion(before, warp(before, motion))
    assert (found.dx, found.dy) == pytest.approx((motion.dx, motion.dy), abs=0.05)
    assert (found.zoom_x, found.zoom_y) == pytest.approx((motion.zoom_x, motion.zoom_y), abs=0.002)
    assert found.is_straight


@pytest.mark.parametrize("degrees", [0.5, -3.0])
def test_a_turn_is_found(degrees):
    """Turned by PyTorch's own sampling, clockwise as seen where y points down."""
    before, (height, width) = texture(2, 96, 128), (96, 128)
    a, ratio = math.radians(degrees), 95 / 127
    rows = torch.tensor([[math.cos(a), math.sin(a) * ratio, 0], [-math.sin(a) / ratio, math.cos(a), 0]]).double()
    grid = affine_grid(rows[None], [1, 1, height, width], align_corners=True).expand(2, -1, -1, -1)
    after = grid_sample(before[:, None], grid, padding_mode="border", align_corners=True)[:, 0]
    found, _ = estimate_motion(before, after)
    assert math.degrees(found.angle) == pytest.approx(degrees, abs=0.01)
    assert (found.dx, found.dy, found.lens) == pytest.approx((0, 0, 0), abs=0.01)


@pytest.mark.parametrize("k", [0.05, -0.04])
def test_a_lens_is_found(k):
    before = texture(2, 96, 128)
    y, x = torch.meshgrid(torch.linspace(-47.5, 47.5, 96), torch.linspace(-63.5, 63.5, 128), indexing="ij")
    bent = 1 + k * (x.square() + y.square()) / (47.5**2 + 63.5**2)
    grid = torch.stack([x * bent / 63.5, y * bent / 47.5], -1).double().expand(2, -1, -1, -1)
    after = grid_sample(before[:, None], grid, padding_mode="border", align_corners=True)[:, 0]
    found, _ = estimate_motion(before, after)
    assert (found.lens, found.angle) == pytest.approx((k, 0), abs=5e-4)
