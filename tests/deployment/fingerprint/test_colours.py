"""Known matrices, channel order and gains, recovered from colours."""

import math

import numpy as np
import pytest
import torch

from lightning_robust.deployment.fingerprint.colours import fit_colors
from lightning_robust.deployment.pixels.operations import BT601, BT709

from .samples import colours


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
