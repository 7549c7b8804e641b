"""The lane network, its loss, and the way from its logits to pixel columns."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_robust.demo.lanes.anchors import STRIDE, crop_top, first_anchor, rescale

LINES = 2
UNLABELLED = -1.0
"""Stands for every column of a picture without a label."""
_WINDOW = 3


class LaneOutput(NamedTuple):
    """The detector's output.

    Args:
        columns: Left and right ego line at each row anchor in pixel columns of the original frame, (N, 2, R).
        presence: Probability that the line is present, (N, 2, R).
    """

    columns: Tensor
    presence: Tensor


def convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """A convolution of 3 x 3, BatchNorm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class LaneNetwork(nn.Module):
    """Convolutional network that rates, for each line and row anchor, every cell of the row and "absent".

    It looks at the lower part of the picture only (`crop_top`), goes down to a sixteenth of the resolution, mixes the
    whole view in one hidden layer (a dash tells where the line runs in the gap) and comes back up to a quarter.

    Args:
        height: Height of the input in pixels, a multiple of 16.
        width: Width of the input in pixels, a multiple of 16.
        channels: Channels at a quarter of the resolution; deeper layers have two and three times as many.
        hidden: Width of the hidden layer that sees the whole picture.

    Shape:
        ``(N, 3, height, width)`` to ``(N, 2, R, W + 1)`` logits; ``W = width / 4`` cells, the last entry is "absent".
    """

    def __init__(self, height: int = 144, width: int = 256, channels: int = 32, hidden: int = 256) -> None:
        super().__init__()
        if height % 16 or width % 16 or height < 64:
            raise ValueError(f"Expected multiples of 16, height at least 64, but got height={height}, width={width}.")
        self.top, self.skipped = crop_top(height), first_anchor(height)
        rows, self.cells = (height - self.top) // STRIDE, width // STRIDE
        self.anchors = rows - self.skipped
        c = channels
        self.fine = nn.Sequential(convolution(3, 24, 2), convolution(24, c, 2), convolution(c, c))
        self.middle = nn.Sequential(convolution(c, 2 * c, 2), convolution(2 * c, 2 * c))
        self.coarse = nn.Sequential(convolution(2 * c, 3 * c, 2), convolution(3 * c, 3 * c), convolution(3 * c, 3 * c))
        self.squeeze = nn.Conv2d(3 * c, 16, 1)
        places = rows // 4 * (width // 16)
        self.view = nn.Sequential(nn.Linear(16 * places, hidden), nn.ReLU(inplace=True))
        self.spread = nn.Linear(hidden, 16 * places)
        self.from_coarse = nn.Conv2d(3 * c + 16, 2 * c, 1)
        self.join_middle = convolution(2 * c, 2 * c)
        self.from_middle = nn.Conv2d(2 * c, c, 1)
        self.join_fine = convolution(c, c)
        self.rate = nn.Conv2d(c, LINES, 1)
        self.absent = nn.Linear(hidden, LINES * self.anchors)

    def features(self, images: Tensor) -> Tensor:
        """The hidden vector that sees the whole picture, (N, hidden)."""
        return self._encode(images)[3]

    def _encode(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        fine = self.fine(images[:, :, self.top :])
        middle = self.middle(fine)
        coarse = self.coarse(middle)
        return fine, middle, coarse, self.view(self.squeeze(coarse).flatten(1))

    def forward(self, images: Tensor) -> Tensor:
        """Logits, (N, 2, R, W + 1)."""
        fine, middle, coarse, view = self._encode(images)
        whole = self.spread(view).unflatten(1, (16, coarse.shape[2], coarse.shape[3]))
        up = functional.interpolate(self.from_coarse(torch.cat([coarse, whole], 1)), scale_factor=2.0, mode="nearest")
        up = functional.interpolate(self.from_middle(self.join_middle(up + middle)), scale_factor=2.0, mode="nearest")
        ratings = self.rate(self.join_fine(up + fine))[:, :, self.skipped :]
        absent = self.absent(view).unflatten(1, (LINES, self.anchors, 1))
        return torch.cat([ratings, absent], 3)


def soft_columns(logits: Tensor, frame_width: int) -> LaneOutput:
    """Soft-argmax around the best cell, in pixel columns of the original frame.

    The mean of the cells no more than three away from the best one, weighted by their probability. All constants
    take the dtype of the logits, so that the graph runs in half and in double precision.

    Args:
        logits: (N, 2, R, W + 1), the last entry for "absent".
        frame_width: Width of the original frame in pixels.
    """
    cells = logits[..., :-1]
    count = cells.shape[-1]
    places = torch.arange(count, device=logits.device).to(logits.dtype)
    best = cells.argmax(-1, keepdim=True).to(logits.dtype)
    near = ((places - best).abs() <= _WINDOW).to(logits.dtype)
    weights = torch.softmax(cells, -1) * near
    mean = (weights * places).sum(-1) / weights.sum(-1)
    absent = torch.softmax(logits, -1)[..., -1]
    return LaneOutput(rescale(mean, count, frame_width), 1 - absent)


class ColumnHead(nn.Module):
    """:func:`soft_columns` as a module of its own, so that it can be kept in fp32 by its name.

    In fp16 columns up to 960 have steps of half a pixel, and so have the cells that they are the mean of.

    Args:
        frame_width: Width of the original frame in pixels.

    Shape:
        ``(N, 2, R, W + 1)`` logits to a :class:`LaneOutput`.
    """

    def __init__(self, frame_width: int) -> None:
        super().__init__()
        self.frame_width = frame_width

    def forward(self, logits: Tensor) -> LaneOutput:
        """Columns and presence."""
        return soft_columns(logits, self.frame_width)


def lane_loss(logits: Tensor, columns: Tensor, frame_width: int, spread: float = 0.7, weight: float = 0.5) -> Tensor:
    r"""Cross entropy with narrow Gaussian targets over the cells, plus smooth L1 on the decoded column in cells.

    Args:
        logits: (N, 2, R, W + 1).
        columns: True columns in pixels of the original frame, (N, 2, R), NaN where there is no line; -1 throughout a
            picture that has no labels, which is left out.
        frame_width: Width of the original frame in pixels.
        spread: Deviation of the target in cells.
        weight: Weight of the second term.
    """
    labelled = (columns != UNLABELLED).flatten(1).any(1)
    if not bool(labelled.all()):
        logits, columns = logits[labelled], columns[labelled]
    if not len(columns):
        return logits.sum()
    count = logits.shape[-1] - 1
    present = ~columns.isnan()
    cells = rescale(columns.nan_to_num(0.0), frame_width, count).to(logits.dtype)
    places = torch.arange(count, device=logits.device).to(logits.dtype)
    target = torch.softmax(-((places - cells[..., None]) ** 2) / (2 * spread**2), -1)
    target = torch.cat([target * present[..., None], (~present)[..., None].to(target)], -1)
    entropy = -(target * torch.log_softmax(logits, -1)).sum(-1).mean()
    decoded = rescale(soft_columns(logits, frame_width).columns, frame_width, count)
    gap = functional.smooth_l1_loss(decoded, cells, reduction="none", beta=0.5) * present
    return entropy + weight * gap.sum() / present.sum().clamp(min=1)
