"""Swings and bends: closed forms."""

import math

import pytest
import torch

from lightning_robust.functional.line_motion import bends, swings

TIME = torch.arange(40, dtype=torch.float64)


@pytest.mark.parametrize("speed", [0.0, 3.0, -0.25])
def test_even_movement_has_no_swing(speed):
    assert swings(100 + speed * TIME).abs().max() < 1e-12


def test_alternation_has_its_movement():
    # a line that jumps between -a and a moves by 2 a each frame, also on top of even movement
    jumping = 1.5 * (-1.0) ** TIME
    torch.testing.assert_close(swings(jumping + 4 * TIME).abs(), torch.full((38,), 3.0, dtype=torch.float64))


def test_jump_is_seen_once():
    # one step of s is s in all, spread over the two triples that see it
    step = 5.0 * (TIME >= 20)
    assert swings(step).abs().sum() == 5.0


@pytest.mark.parametrize("period", [4, 8, 20])
def test_sway(period):
    sway = torch.sin(2 * math.pi * TIME / period)
    largest = swings(sway).abs().max()
    expected = 2 * math.sin(math.pi / period) ** 2 * sway[1:-1].abs().max()
    torch.testing.assert_close(largest, expected)


def test_noise():
    # x[t+1] - 2 x[t] + x[t-1] has variance 6: mean |s| = sqrt(6) / 2 * sqrt(2 / pi) = 0.977
    noise = torch.randn(400_000, dtype=torch.float64)
    assert abs(float(swings(noise).abs().mean()) - math.sqrt(3 / math.pi)) < 0.005


def test_bend_is_blind_to_place_and_tilt_and_sees_curvature():
    rows = torch.arange(9, dtype=torch.float64)
    columns = torch.stack([7 - 3 * rows, 0.5 * rows**2])[None]
    torch.testing.assert_close(bends(columns), torch.stack([torch.zeros(7), torch.ones(7)])[None].double())


def test_missing_points_spread_to_those_that_need_them():
    columns = torch.tensor([0.0, 1.0, torch.nan, 3.0, 4.0, 5.0])
    assert swings(columns).isnan().tolist() == [True, True, True, False]
    assert bends(columns).isnan().tolist() == [True, True, True, False]


def test_too_short():
    assert swings(torch.ones(2, 3)).shape == (0, 3)
    assert bends(torch.ones(2, 2)).shape == (2, 0)
