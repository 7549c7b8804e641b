"""Motion and defocus blur against their closed forms."""

import math

import pytest
import torch

from lightning_robust.deployment.pixels.corruptions import Corruption
from lightning_robust.deployment.pixels.corruptions.blur import defocus_blur, disc_kernel, line_kernel, motion_blur
from lightning_robust.deployment.pixels.corruptions.patterns import seeded


def moments(kernel, angle=0.0):
    """Sum, mean along and across a direction, variances along and across it."""
    radius = kernel.shape[0] // 2
    axis = torch.arange(-radius, radius + 1, dtype=torch.float64)
    turn = math.radians(angle)
    along = axis[None] * math.cos(turn) - axis[:, None] * math.sin(turn)
    across = axis[None] * math.sin(turn) + axis[:, None] * math.cos(turn)
    means = [(kernel * each).sum().item() for each in (along, across)]
    variances = [(kernel * each**2).sum().item() for each in (along, across)]
    return kernel.sum().item(), means, variances


@pytest.mark.parametrize("angle", [0, 17, -30, 45, 90])
@pytest.mark.parametrize("length", [0.7, 5, 13.4, 40])
def test_the_length_of_motion_in_closed_form(length, angle):
    """Sums to one, does not move the picture, varies along the path as a line does and across it hardly at all.

    Sharing a point among four pixels adds between 0 and 1/4 to each variance, 1/6 for points at random places.
    """
    total, means, (along, across) = moments(line_kernel(length, angle), angle)
    assert total == pytest.approx(1, abs=1e-12)
    assert means == pytest.approx([0, 0], abs=1e-9)
    assert length**2 / 12 - 0.01 <= along <= length**2 / 12 + 0.26
    assert 0 <= across <= 0.26
    if length == 40:
        assert math.sqrt(12 * (along - 1 / 6)) == pytest.approx(length, rel=0.01)


def test_angles_turn_as_in_mathematics():
    """At 90 degrees the horizontal line stands upright; 45 degrees rises to the right, where rows count down."""
    assert torch.allclose(line_kernel(9, 90), line_kernel(9, 0).T, atol=1e-9)
    rising = line_kernel(9, 45)
    assert rising.flip(0).diagonal().sum() > 0.5
    assert rising.diagonal().sum() < 0.25


@pytest.mark.parametrize("radius", [0.375, 1.0, 2.5, 20.0])
def test_the_disc_in_closed_form(radius):
    total, means, (x, y) = moments(disc_kernel(radius))
    assert total == pytest.approx(1, abs=1e-12)
    assert means == pytest.approx([0, 0], abs=1e-9)
    assert x == pytest.approx(y, rel=1e-6)
    assert radius**2 / 4 * 0.97 <= x <= radius**2 / 4 + 0.26
    if radius == 20:
        flat = disc_kernel(radius)[21, 5:38]
        assert flat.std() / flat.mean() < 0.1


def test_impulse_response_and_energy():
    """A white pixel becomes the kernel: its energy stays, and its place."""
    impulse = torch.zeros(1, 3, 112, 112)
    impulse[..., 50, 60] = 1.0
    for blur in (motion_blur, defocus_blur):
        for severity in range(1, 6):
            spread = blur(impulse, severity)
            assert spread.sum((2, 3))[0].tolist() == pytest.approx([1.0] * 3, abs=1e-5)
            axis = torch.arange(112.0)
            place = (spread[0, 0] * axis[None]).sum(), (spread[0, 0] * axis[:, None]).sum()
            assert torch.stack(place).tolist() == pytest.approx([60, 50], abs=1e-3)
    disc = defocus_blur(impulse, 5)[0, 0]
    assert (disc > 1e-4).sum().item() == pytest.approx(math.pi * (10 / 224 * 112 + 0.5) ** 2, rel=0.25)


def test_the_angle_is_the_pictures_and_lies_within_45_degrees():
    """Published: uniform from -45 to 45 degrees; read off the path of a white pixel."""
    angles = []
    for place in range(60, 68):
        impulse = torch.zeros(1, 1, 128, 128)
        impulse[..., 64, place] = 1.0
        path = motion_blur(impulse, 5)[0, 0].clamp(min=0).double()
        across, down = torch.arange(128) - place, torch.arange(128) - 64
        slope = -(path * down[:, None] * across).sum() / (path * across**2).sum()
        angles.append(math.degrees(math.atan(slope)))
        drawn = 90 * torch.rand((), generator=seeded("motion_blur", impulse)).item() - 45
        assert angles[-1] == pytest.approx(drawn, abs=2.0)
    assert -45 <= min(angles) < -5 < 5 < max(angles) <= 45


def test_flat_pictures_stay():
    flat = torch.full((1, 3, 30, 40), 100 / 255)
    for name in ("motion_blur", "defocus_blur"):
        assert torch.equal(Corruption(name, 5)(flat), flat)
