"""Known shifts and zooms, recovered from pictures."""

import pytest

from lightning_robust.deployment.fingerprint.motion import Motion, estimate_motion, phase_correlation, warp

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
