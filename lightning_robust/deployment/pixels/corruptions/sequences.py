"""What needs the frames before: exposure lag, rolling shutter, lost frames.

They take the frames of one sequence ``(T, C, H, W)`` in order. Frame ``t`` depends on frames up to ``t`` alone, so that
the beginning of a sequence is the same as that of a longer one. A single picture is a sequence of one frame.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from lightning_robust.deployment.pixels.corruptions.patterns import seeded

STOPS = (0.5, 1.0, 1.5, 2.0, 2.5)
"""Of exposure lag: how much too bright the first frame is."""
LAG = 3.0
"""Frames in which the error of the exposure falls to 1 / e."""
_GAMMA = 2.2
SWINGS = (0.01, 0.02, 0.035, 0.055, 0.08)
"""Of the rolling shutter: how far its camera swings to either side in a frame, as a share of the height."""
PERIOD = 5.0
"""Frames in which the camera swings once there and back."""
LOST = tuple(severity / 6 for severity in range(1, 6))
"""The share of frames that are lost."""


def exposure_lag(frames: Tensor, severity: int) -> Tensor:
    """Too bright at once, as behind a tunnel, and less so from frame to frame as the exposure follows.

    Frame ``t`` has ``stops * exp(-t / LAG)`` stops too many: its light is multiplied by two to that power.
    """
    stops = STOPS[severity - 1] * torch.exp(-torch.arange(len(frames), dtype=torch.float64) / LAG)
    gains = 2 ** (stops / _GAMMA)
    return frames * gains.to(frames)[:, None, None, None]


def row_motion(height: int, severity: int, frame: int) -> Tensor:
    """How far each row of a frame lies to the right of where the middle row's moment has it, ``(H,)`` in heights.

    Rows are read one after another over the whole time of a frame while the camera swings about the vertical,
    ``A sin(2 pi t / PERIOD)``: the frame shows each row at the moment of its reading.
    """
    late = (torch.arange(height, dtype=torch.float64) + 0.5) / height - 0.5
    # A is such that the fastest frame is bent by twice the severity's share, from its first row to its last
    amplitude = SWINGS[severity - 1] / math.sin(math.pi / PERIOD)
    turn = 2 * math.pi / PERIOD
    return amplitude * (torch.sin(turn * (frame + late)) - math.sin(turn * frame))


def rolling_shutter(frames: Tensor, severity: int) -> Tensor:
    """Rows moved sideways by the camera's own motion while they were read; the middle row stays."""
    return torch.cat([_bend(each[None], row_motion(each.shape[-2], severity, t)) for t, each in enumerate(frames)])


def _bend(picture: Tensor, motion: Tensor) -> Tensor:
    """Each row moved to the right by a share of the height."""
    height, width = picture.shape[-2:]
    rows = (2 * torch.arange(height, dtype=torch.float64) + 1) / height - 1
    columns = (2 * torch.arange(width, dtype=torch.float64) + 1) / width - 1
    across = columns[None] - 2 * motion[:, None] * height / width
    grid = torch.stack([across, rows[:, None].expand(height, width)], -1)[None].to(picture)
    return grid_sample(picture, grid, padding_mode="border", align_corners=False)


def frame_loss(frames: Tensor, severity: int) -> Tensor:
    """Lost frames: the last frame that came is shown again, and black before any has come; the picture decides.

    A frame that is lost at one severity is lost at all above.
    """
    shown, result = torch.zeros_like(frames[0]), []
    for frame in frames:
        if torch.rand((), generator=seeded("frame_loss", frame)).item() >= LOST[severity - 1]:
            shown = frame
        result.append(shown)
    return torch.stack(result)
