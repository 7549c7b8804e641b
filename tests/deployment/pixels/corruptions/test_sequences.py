"""What depends on the frames before, by its closed forms, and what does not depend on them."""

import math

import pytest
import torch

from lightning_robust.deployment.pixels.corruptions import Corruption
from lightning_robust.deployment.pixels.corruptions.sequences import (
    LAG,
    LOST,
    PERIOD,
    STOPS,
    SWINGS,
    exposure_lag,
    frame_loss,
    rolling_shutter,
    row_motion,
)

from ..pictures import picture

IN_TIME = ("exposure_lag", "rolling_shutter", "frame_loss")


@pytest.mark.parametrize("name", IN_TIME)
def test_sequences_in_a_batch(name):
    """Two sequences in a batch are the two; the beginning does not know the end; one frame is a picture."""
    x, corruption = picture(12, 3, 32, 48), Corruption(name, 4)
    both = corruption(x, sequence_length=6)
    assert torch.equal(both, torch.cat([corruption(x[:6], 6), corruption(x[6:], 6)]))
    assert torch.equal(both[:4], corruption(x[:4], 6))
    assert torch.equal(corruption(x), torch.cat([corruption(each[None], 6) for each in x]))
    assert torch.equal(both[::6], corruption(x[::6]))
    assert not torch.equal(both, corruption(x))


def test_what_is_not_in_time_does_not_care():
    x = picture(4, 3, 32, 48)
    assert torch.equal(Corruption("snow", 2)(x, 4), Corruption("snow", 2)(x))


def test_rejects_no_frames():
    with pytest.raises(ValueError, match="`sequence_length` of at least 1"):
        Corruption("fog", 1)(picture(1), 0)


@pytest.mark.parametrize("severity", range(1, 6))
def test_exposure_follows_as_a_lag_of_first_order(severity):
    """The stops too many, read off the light of a dark picture, fall to 1 / e in LAG frames."""
    frames = torch.full((7, 1, 8, 8), 0.1, dtype=torch.float64)
    stops = 2.2 * (exposure_lag(frames, severity)[:, 0, 0, 0] / 0.1).log2()
    expected = [STOPS[severity - 1] * math.exp(-t / LAG) for t in range(7)]
    assert stops.tolist() == pytest.approx(expected, abs=1e-6)


def test_rows_move_by_the_cameras_swing():
    """The middle row stays, the first frame is bent evenly, half a period later it is bent the other way."""
    for severity in range(1, 6):
        motion = row_motion(101, severity, 0)
        assert motion[50].abs() < 1e-12
        assert (motion[-1] - motion[0]).item() == pytest.approx(2 * SWINGS[severity - 1], rel=0.02)
        assert torch.equal(motion.sort().values, motion)
        period = row_motion(101, severity, int(PERIOD))
        torch.testing.assert_close(period, motion, rtol=0, atol=1e-9)
    bends = [(row_motion(101, 3, t)[-1] - row_motion(101, 3, t)[0]).item() for t in range(5)]
    assert min(bends) < 0 < max(bends)


def test_an_upright_line_bends_by_that():
    """The place of a bright column in each row of the result, against the closed form to a tenth of a pixel."""
    height, width = 60, 120
    frames = torch.zeros(3, 1, height, width)
    frames[..., 58:63] = torch.tensor([0.25, 0.75, 1.0, 0.75, 0.25])
    bent = rolling_shutter(frames, 5)
    for t in range(3):
        mass = bent[t, 0]
        place = (mass * torch.arange(width)).sum(1) / mass.sum(1) - 60
        torch.testing.assert_close(place.double(), height * row_motion(height, 5, t), rtol=0, atol=0.1)


@pytest.mark.parametrize("severity", range(1, 6))
def test_the_share_of_lost_frames(severity):
    """A sixth for each severity, as published: of 600 pictures, within three standard deviations."""
    x = torch.rand(600, 1, 4, 4) * 0.9 + 0.1
    lost = (Corruption("frame_loss", severity)(x) == 0).flatten(1).all(1)
    share = LOST[severity - 1]
    assert share == severity / 6
    assert lost.float().mean().item() == pytest.approx(share, abs=3 * (share * (1 - share) / 600) ** 0.5)
    worse = (Corruption("frame_loss", min(severity + 1, 5))(x) == 0).flatten(1).all(1)
    assert (lost & ~worse).sum() == 0


def test_the_last_frame_that_came_is_shown_again():
    x = torch.rand(60, 1, 4, 4) * 0.9 + 0.1
    shown, alone = frame_loss(x, 3), torch.cat([frame_loss(each[None], 3) for each in x])
    came, last = alone.flatten(1).any(1), torch.zeros(1, 4, 4)
    assert 15 < came.sum() < 45
    for t in range(60):
        last = x[t] if came[t] else last
        assert torch.equal(shown[t], last)
