"""The traffic network: one backbone, a detector without anchors, and a U-Net for the drivable area."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_robust.demo.lanes.network import convolution

STRIDE = 4
"""Pixels of the input for a cell of the detector."""
_SMALL = 16
_RARE = -4.0
"""Logit of an object that a cell begins with: one in fifty."""


class TrafficLogits(NamedTuple):
    """What the loss compares.

    Args:
        heat: Logit of "the middle of an object of this class" in each cell, (N, C, H / 4, W / 4).
        sides: Logarithm of the distances from the cell's middle to left, top, right and bottom of the object, in cells,
            (N, 4, H / 4, W / 4).
        drivable: Logit of "this pixel shows the road", (N, 1, H, W).
    """

    heat: Tensor
    sides: Tensor
    drivable: Tensor


class TrafficOutput(NamedTuple):
    """The detector's output.

    Args:
        detections: For every cell centre x and y, width, height in pixels, then the probability of each class,
            (N, 4 + C, A), as `yolo_boxes` takes them.
        drivable: Logits, (N, 1, H, W), as `segmentation_masks` takes them.
    """

    detections: Tensor
    drivable: Tensor


class TrafficNetwork(nn.Module):
    """Down to a sixteenth of the resolution and up again: a quarter for the detector, a half for the drivable area.

    Args:
        classes: Number of classes of objects.
        channels: Channels at a quarter of the resolution; deeper layers have two and three times as many.

    Shape:
        ``(N, 3, H, W)``, both multiples of 16, to :class:`TrafficLogits`.
    """

    def __init__(self, classes: int, channels: int = 32) -> None:
        super().__init__()
        c = channels
        self.stem = convolution(3, _SMALL, 2)
        self.fine = nn.Sequential(convolution(_SMALL, c, 2), convolution(c, c))
        self.middle = nn.Sequential(convolution(c, 2 * c, 2), convolution(2 * c, 2 * c))
        self.coarse = nn.Sequential(
            convolution(2 * c, 3 * c, 2),
            convolution(3 * c, 3 * c),
            convolution(3 * c, 3 * c),
            convolution(3 * c, 3 * c),
        )
        self.from_coarse, self.join_middle = nn.Conv2d(3 * c, 2 * c, 1), convolution(2 * c, 2 * c)
        self.from_middle, self.join_fine = nn.Conv2d(2 * c, c, 1), convolution(c, c)
        self.from_fine, self.join_stem = nn.Conv2d(c, _SMALL, 1), convolution(_SMALL, _SMALL)
        self.tower = convolution(c, 2 * c)
        self.heat, self.sides = nn.Conv2d(2 * c, classes, 1), nn.Conv2d(2 * c, 4, 1)
        self.area = nn.Conv2d(_SMALL, 1, 1)
        nn.init.constant_(self.heat.bias, _RARE)  # type: ignore[arg-type]
        nn.init.zeros_(self.sides.weight)

    def forward(self, images: Tensor) -> TrafficLogits:
        """Logits of pictures (N, 3, H, W)."""
        stem = self.stem(images)
        fine = self.fine(stem)
        middle = self.middle(fine)
        up = self.join_middle(_twice(self.from_coarse(self.coarse(middle))) + middle)
        up = self.join_fine(_twice(self.from_middle(up)) + fine)
        objects = self.tower(up)
        area = self.area(self.join_stem(_twice(self.from_fine(up)) + stem))
        drivable = functional.interpolate(area, scale_factor=2.0, mode="bilinear", align_corners=False)
        return TrafficLogits(self.heat(objects), self.sides(objects), drivable)


def _twice(values: Tensor) -> Tensor:
    return functional.interpolate(values, scale_factor=2.0, mode="nearest")


class DetectionHead(nn.Module):
    """From a cell's logits to boxes in pixels, a module of its own so that it can be kept in fp32 by its name.

    In fp16 places up to 256 have steps of an eighth of a pixel.

    Shape:
        Heat (N, C, h, w) and sides (N, 4, h, w) to detections (N, 4 + C, h w).
    """

    def forward(self, heat: Tensor, sides: Tensor) -> Tensor:
        """Centre, width, height and probabilities of each cell."""
        left, top, right, bottom = (STRIDE * sides.exp()).unbind(1)
        height, width = heat.shape[2:]
        x = (torch.arange(width, device=heat.device).to(sides.dtype) + 0.5) * STRIDE
        y = ((torch.arange(height, device=heat.device).to(sides.dtype) + 0.5) * STRIDE)[:, None]
        boxes = torch.stack([x + (right - left) / 2, y + (bottom - top) / 2, left + right, top + bottom], 1)
        return torch.cat([boxes, heat.sigmoid()], 1).flatten(2)
