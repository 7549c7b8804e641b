"""Motions: what they do to places is a closed form, and pictures follow them."""

import math

import pytest
import torch

from lightning_robust.deployment.fingerprint.motion import Motion, warp

from .samples import sampled, texture


def test_places_closed_form():
    """A quarter turn clockwise takes the corner's content from the corner before it."""
    rows, columns = Motion(angle=math.pi / 2).places(3, 3)
    assert (float(rows[0, 0]), float(columns[0, 0])) == pytest.approx((2, 0))
    rows, columns = Motion(lens=0.1).places(3, 3)
    assert float(columns[0, 0]) == pytest.approx(1 - 1.1)
    assert float(columns[1, 0]) == pytest.approx(1 - 1.05)


def test_straight_motions_are_the_same_both_ways():
    """Rows and columns apart, or every place sampled on its own."""
    motion, images = Motion(1.25, -0.5, 1.1, 0.9), texture(2, 48, 64)
    for kernel in ("linear", "cubic"):
        inside = motion.inside(48, 64, margin=3)
        apart, together = warp(images, motion, kernel), warp(images, Motion(1.25, -0.5, 1.1, 0.9, 1e-12), kernel)
        torch.testing.assert_close(apart[:, inside], together[:, inside], rtol=0, atol=1e-6)


def test_a_warp_moves_content():
    """Of waves known everywhere, to what the cubic kernel is wrong by."""
    inside = Motion(0.5, 0.25).inside(64, 96, margin=3)
    moved = warp(sampled(0, 0), Motion(0.5, 0.25), "cubic")
    assert float((moved - sampled(0.5, 0.25))[:, inside].abs().max()) < 2.0
