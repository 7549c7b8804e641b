"""Motions against what the operations do to a picture whose pixels say where they come from."""

import pytest
import torch

from lightning_robust.deployment.pixels.catalogue import CATALOGUE

HEIGHT, WIDTH = 60, 80
SLOPE = 3.1  # levels a pixel; no whole number, so that rounding to levels averages out
MOVING = ["resize_align_corners", "resize_asymmetric", "resize_nearest", "shift_quarter_pixel", "shift_half_pixel"]
MOVING += ["shift_one_pixel", "crop", "letterbox"]


def ramps():
    """Two pictures: the level of a pixel is its column, and its row, times the slope."""
    columns = torch.arange(WIDTH).expand(HEIGHT, WIDTH)
    rows = torch.arange(HEIGHT)[:, None].expand(HEIGHT, WIDTH)
    return (torch.stack([columns, rows])[:, None] * SLOPE).round() / 255


def places(pixels):
    """Column, along the middle row, and row, along the middle column, that each pixel came from."""
    levels = 255 * pixels[:, 0].double() / SLOPE
    return levels[0, HEIGHT // 2], levels[1, :, WIDTH // 2]


@pytest.mark.parametrize("name", MOVING)
def test_convention_content_moves_as_the_matrix_says(name):
    """A moved ramp reads, at each place, the place that its content had: the inverse of the matrix."""
    entry = CATALOGUE[name]
    inverse = torch.linalg.inv(entry.matrix(HEIGHT, WIDTH))
    assert not torch.equal(inverse, torch.eye(3).double())
    inner = slice(8, -8)
    for axis, (trained, deployed) in enumerate(
        zip(places(entry.trained(ramps())), places(entry.deployed(ramps())), strict=True)
    ):
        place = torch.arange(len(trained)).double()
        expected = inverse[axis, axis] * place + inverse[axis, 2]
        error = (deployed - trained + place - expected)[inner]
        assert error.mean().abs() < 0.1
        assert error.abs().max() < 0.5  # each rounding to levels is a sixth of a pixel, and there are up to three


def test_the_others_move_nothing():
    still = set(CATALOGUE) - set(MOVING)
    assert len(still) == 27
    for name in still:
        entry = CATALOGUE[name]
        assert torch.equal(entry.matrix(HEIGHT, WIDTH), torch.eye(3).double())
        if entry.family == "resize_filter":
            moved = places(entry.deployed(ramps()))[0] - places(entry.trained(ramps()))[0]
            assert moved[8:-8].mean().abs() < 0.02
