"""From true boxes to what each cell of the detector should say, and the loss against it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from lightning_robust.demo.traffic.network import STRIDE, TrafficLogits

_CORE = 0.3
"""Height of an object's bump from which a cell learns its box."""


class CellTargets(NamedTuple):
    """What each cell should say.

    Args:
        heat: A bump around the middle of each object, 1 in the cell of its middle, (N, C, h, w).
        sides: Distances in cells to the edges of the object, (N, 4, h, w).
        weight: How much the distances count: the height of the bump, 0 far from the middle, (N, h, w).
    """

    heat: Tensor
    sides: Tensor
    weight: Tensor


def encode_boxes(boxes: Tensor, labels: Tensor, classes: int, size: tuple[int, int]) -> CellTargets:
    """The targets of true boxes, after CenterNet (Zhou et al. 2019) and TTFNet (Liu et al. 2020).

    Args:
        boxes: (left, top, right, bottom) in pixels, (N, M, 4), NaN where there is none.
        labels: Their classes, (N, M), -1 where there is none.
        classes: Number of classes.
        size: Height and width of the picture in pixels.
    """
    rows, columns = size[0] // STRIDE, size[1] // STRIDE
    present = labels >= 0
    edges = boxes.nan_to_num(0.0)[..., None, None] / STRIDE
    left, top, right, bottom = edges.unbind(2)
    y = torch.arange(rows, device=boxes.device)[:, None] + 0.5
    x = torch.arange(columns, device=boxes.device) + 0.5
    # a bump of nine hundredths of the size, at least of a third of a cell, around the middle of a cell
    across = (x - _middle_of_cell((left + right) / 2, columns)) / (0.09 * (right - left)).clamp(min=0.35)
    down = (y - _middle_of_cell((top + bottom) / 2, rows)) / (0.09 * (bottom - top)).clamp(min=0.35)
    bump = torch.exp(-(across * across + down * down) / 2) * present[..., None, None]
    of_class = functional.one_hot(labels.clamp(min=0), classes).to(bump) * present[..., None]
    heat = (bump[:, :, None] * of_class[..., None, None]).amax(1)
    weight, owner = bump.max(1)
    distances = torch.stack([each.expand_as(bump) for each in (x - left, y - top, right - x, bottom - y)], 2)
    sides = distances.gather(1, owner[:, None, None].expand(-1, 1, 4, -1, -1))[:, 0]
    inside = (sides > 0).all(1) & (weight >= _CORE)
    return CellTargets(heat, sides.clamp(min=1e-3), weight * inside)


def _middle_of_cell(place: Tensor, count: int) -> Tensor:
    """The middle of the cell in which a place lies."""
    return place.floor().clamp(0, count - 1) + 0.5


def traffic_loss(logits: TrafficLogits, boxes: Tensor, labels: Tensor, drivable: Tensor) -> Tensor:
    r"""Focal loss of the heat, 1 - GIoU of the boxes, cross entropy of the drivable area; a scalar.

    .. math:: -\frac1n \sum \begin{cases} (1 - p)^2 \log p & h = 1 \\ (1 - h)^4 p^2 \log (1 - p) & \text{else}
       \end{cases} \; + \; 2 \, \overline{1 - \mathrm{GIoU}} \; + \; \overline{\mathrm{BCE}}

    Args:
        logits: Of the network.
        boxes: True boxes in pixels, (N, M, 4), NaN where there is none.
        labels: (N, M), -1 where there is none.
        drivable: 1 where a pixel shows the road, (N, H, W).
    """
    heat, sides, area = (each.float() for each in logits)
    size = (area.shape[2], area.shape[3])
    targets = encode_boxes(boxes.float(), labels, heat.shape[1], size)
    entropy = functional.binary_cross_entropy_with_logits(area[:, 0], drivable.float())
    return heat_loss(heat, targets.heat) + 2 * sides_loss(sides, targets) + entropy


def heat_loss(logits: Tensor, heat: Tensor) -> Tensor:
    """CenterNet's focal loss of logits (N, C, h, w) for each object."""
    probability, middle = logits.sigmoid(), heat >= 1
    near = (1 - probability).square() * functional.logsigmoid(logits)
    far = (1 - heat).square().square() * probability.square() * functional.logsigmoid(-logits)
    return -torch.where(middle, near, far).sum() / middle.sum().clamp(min=1)


def sides_loss(logarithms: Tensor, targets: CellTargets) -> Tensor:
    """1 - GIoU of boxes that share a point, from the logarithms of their distances (N, 4, h, w)."""
    found, true = logarithms.exp(), targets.sides
    common, around = torch.minimum(found, true), torch.maximum(found, true)
    overlap, hull, one, other = (
        (each[:, 0] + each[:, 2]) * (each[:, 1] + each[:, 3]) for each in (common, around, found, true)
    )
    union = one + other - overlap
    giou = overlap / union - (hull - union) / hull
    return ((1 - giou) * targets.weight).sum() / targets.weight.sum().clamp(min=1)
