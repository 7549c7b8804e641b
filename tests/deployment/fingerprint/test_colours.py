"""Known matrices, channel order and gains, recovered from colours."""

import math

import numpy as np
import pytest
import torch

from lightning_robust.deployment.fingerprint.blocks import Blocks
from lightning_robust.deployment.fingerprint.colours import fit_colors
from lightning_robust.deployment.pixels.operations import BT601, BT709

from .samples import colours


@pytest.mark.parametrize(
    ("matrix", "cause"),
    [(BT709.inverse() @ BT601, "color_matrix"), (BT601.inverse() @ BT709, "color_matrix")],
)
def test_known_matrices_are_told_apart_from_free_ones(matrix, cause):
    x = colours()
    found = fit_colors(Blocks(x, x @ matrix.T))
    assert found.causes == (cause,)
    torch.testing.assert_close(found.decoding.matrix, matrix, rtol=0, atol=1e-9)


def test_order_with_a_gain():
    x = colours()
    found = fit_colors(Blocks(x, 1.1 * x.flip(1)))
    assert set(found.causes) == {"channel_order", "gain_offset"}
    assert found.order == (2, 1, 0)
    assert np.allclose(found.gain, 1.1, atol=1e-6)


def test_nothing_is_no_cause():
    x = colours()
    assert fit_colors(Blocks(x, x)).causes == ()
    assert math.isclose(fit_colors(Blocks(x, x)).error, 0.0, abs_tol=1e-12)


def test_noise_is_no_slack_for_a_simpler_explanation():
    """The slack is for mistakes of the measurement. What noise leaves is known, and hides less than they do."""
    generator = torch.Generator().manual_seed(1)
    x = colours()
    x = x.mean(1, keepdim=True) + 0.13 * (x - x.mean(1, keepdim=True))  # hardly coloured
    noise = 2.0 * torch.randn(x.shape, generator=generator, dtype=torch.float64)
    y = x @ (BT709.inverse() @ BT601).T + noise
    without = float((y - x).square().mean())
    assert without < 1.4 * float(noise.square().mean())  # within the slack of as large a mistake
    assert "color_matrix" not in fit_colors(Blocks(x, y)).causes
    assert fit_colors(Blocks(x, y, noise=float(noise.square().mean()))).causes == ("color_matrix",)
