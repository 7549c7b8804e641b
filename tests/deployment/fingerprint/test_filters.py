"""Closed forms of what a fingerprint measures: matrices, gains, powers, filters, levels, motion."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import conv2d, interpolate

from lightning_robust.deployment.fingerprint.colours import fit_colors
from lightning_robust.deployment.fingerprint.filters import (
    blockiness,
    fit_filter,
    fit_gains,
    fit_gamma,
    occupied_levels,
    sharpness,
)
from lightning_robust.deployment.fingerprint.motion import Motion, estimate_motion, phase_correlation, warp
from lightning_robust.deployment.pixels.operations import BT601, BT709, jpeg


def colours(count=800):
    return 20 + 200 * torch.rand(count, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def texture(count=2, height=64, width=96):
    """Smooth pictures with some detail, in levels."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(count, 1, height // 4, width // 4, dtype=torch.float64, generator=generator)
    return 255 * interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1)[:, 0]


def sampled(shift_x, shift_y, height=64, width=96):
    """A sum of waves known everywhere, its content moved right and down: no interpolation is involved."""
    y, x = torch.arange(height).double()[:, None] - shift_y, torch.arange(width).double() - shift_x
    waves = [(0.31, 0.17, 40), (0.11, 0.43, 30), (0.52, -0.23, 20), (-0.09, 0.06, 50), (0.71, 0.37, 10)]
    return sum(a * torch.sin(fx * x + fy * y + a) for fx, fy, a in waves)[None] + 128


def test_gains_closed_form():
    x = colours()
    gain, offset = fit_gains(x, x * x.new_tensor([1.1, 0.9, 1.0]) + x.new_tensor([3.0, 0.0, -7.0]))
    assert gain.tolist() == pytest.approx([1.1, 0.9, 1.0], abs=1e-9)
    assert offset.tolist() == pytest.approx([3.0, 0.0, -7.0], abs=1e-6)


@pytest.mark.parametrize("gamma", [0.7, 0.9, 1.1, 2.2])
def test_gamma_closed_form(gamma):
    x = colours()
    assert fit_gamma(x, 255 * (x / 255) ** gamma) == pytest.approx(gamma, abs=1e-3)


def test_filter_is_found():
    taps = torch.tensor([[0, 1, 0], [1, 4, 1], [0, 1, 0]], dtype=torch.float64) / 8
    before = texture()
    after = conv2d(before[:, None], taps[None, None], padding=1)[:, 0]
    mask = torch.zeros(64, 96, dtype=torch.bool)
    mask[4:-4, 4:-4] = True
    kernel, rest = fit_filter(before + torch.randn_like(before), after, mask, radius=1)
    found, exact = fit_filter(before, after, mask, radius=1)
    assert rest.square().mean() > exact.square().mean()
    noisy = before + 20 * torch.randn(before.shape, dtype=torch.float64)
    after = conv2d(noisy[:, None], taps[None, None], padding=1)[:, 0]
    found, _ = fit_filter(noisy, after, mask, radius=1)
    torch.testing.assert_close(found, taps, rtol=0, atol=1e-4)
    assert kernel.shape == (3, 3)


def test_sharpness_of_known_filters():
    identity = torch.zeros(3, 3, dtype=torch.float64)
    identity[1, 1] = 1
    assert sharpness(identity) == pytest.approx(1.0)
    assert sharpness(torch.full((3, 3), 1 / 9, dtype=torch.float64)) < 0.4
    assert sharpness(2 * identity - torch.full((3, 3), 1 / 9, dtype=torch.float64)) > 1.5


@pytest.mark.parametrize(("bits", "share"), [(8, 1.0), (7, 0.5), (6, 0.25)])
def test_occupied_levels_closed_form(bits, share):
    step = 2 ** (8 - bits)
    values = (torch.arange(256) // step * step).double()
    assert occupied_levels(values) == pytest.approx(share, abs=0.005)


def test_blockiness_belongs_to_jpegs_grid():
    generator = torch.Generator().manual_seed(0)
    x = (texture(2, 64, 96)[:, None] / 255 + 0.05 * torch.randn(2, 1, 64, 96, generator=generator)).clamp(0, 1)
    compressed = jpeg(x, 50) * 255
    assert blockiness(compressed[:, 0]) > 0.2
    assert abs(blockiness(x[:, 0] * 255)) < 0.05
    assert blockiness(compressed[:, 0, 4:-4, 4:-4]) < 0


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


@pytest.mark.parametrize(
    ("matrix", "cause"),
    [(BT709.inverse() @ BT601, "color_matrix"), (BT601.inverse() @ BT709, "color_matrix")],
)
def test_known_matrices_are_told_apart_from_free_ones(matrix, cause):
    x = colours()
    found = fit_colors(x, x @ matrix.T)
    assert found.causes == (cause,)
    torch.testing.assert_close(found.decoding.matrix, matrix, rtol=0, atol=1e-9)


def test_order_with_a_gain():
    x = colours()
    found = fit_colors(x, 1.1 * x.flip(1))
    assert set(found.causes) == {"channel_order", "gain_offset"}
    assert found.order == (2, 1, 0)
    assert np.allclose(found.gain, 1.1, atol=1e-6)


def test_nothing_is_no_cause():
    x = colours()
    assert fit_colors(x, x).causes == ()
    assert math.isclose(fit_colors(x, x).error, 0.0, abs_tol=1e-12)
