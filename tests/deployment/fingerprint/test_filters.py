"""Closed forms of gains, powers, filters, levels and traces of JPEG."""

import pytest
import torch
from torch.nn.functional import conv2d

from lightning_robust.deployment.fingerprint.filters import (
    blockiness,
    fit_filter,
    fit_gains,
    fit_gamma,
    sharpness,
)
from lightning_robust.deployment.pixels.operations import jpeg

from .samples import colours, texture


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


def test_blockiness_belongs_to_jpegs_grid():
    generator = torch.Generator().manual_seed(0)
    x = (texture(2, 64, 96)[:, None] / 255 + 0.05 * torch.randn(2, 1, 64, 96, generator=generator)).clamp(0, 1)
    compressed = jpeg(x, 50) * 255
    assert blockiness(compressed[:, 0]) > 0.2
    assert abs(blockiness(x[:, 0] * 255)) < 0.05
    assert blockiness(compressed[:, 0, 4:-4, 4:-4]) < 0
