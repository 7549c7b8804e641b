"""A region of the deployed side's pictures that is covered: a logo, a text, a bar or a mask."""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn.functional import max_pool2d

from lightning_robust.deployment.fingerprint.detectors import Evidence
from lightning_robust.deployment.fingerprint.filters import mean_square
from lightning_robust.deployment.fingerprint.view import View, best_view

_HOT, _TIMES = 25.0, 4.0  # squared levels, and multiples of the median, from which a pixel's residual is large
_SHARE = 0.6  # of the squared residual that lies in the region
_LARGEST = 0.4  # of the picture
_FULL = 0.1  # of the region's pixels that must be covered
_CLEANER = 4.0  # squared residual before over that beside the region after
_COVERED = 2.0  # levels by which a covered pixel differs; rounding leaves half a level
_SOLID = 0.05  # of the opacity; less is none, and more is full


def uncovered_view(trained: Tensor, view: View) -> tuple[Evidence, View] | None:
    """Evidence of a covered region, and the view of the pictures whose region is replaced by what was predicted.

    The residual of a covered region is large there and small elsewhere. Where it is replaced, the rest of the picture
    alone decides on motion and colours.

    Args:
        trained: Training's pictures, ``(N, C, H, W)``.
        view: Of both sides.
    """
    # a large cover pulls the view along; if nothing else differs, the pictures as they are tell more
    boxes = [_find_region(predicted, view) for predicted in (trained, view.predicted)]
    box = boxes[0] or boxes[1]
    if box is None:
        return None
    deployed, before = view.deployed, view.unfiltered_error
    predicted = trained if boxes[0] else view.predicted
    for _ in range(2):
        covered = deployed.clone()
        covered[(..., *box)] = predicted[(..., *box)]
        view, _correlation = best_view(trained, covered)
        predicted = view.predicted
    gain = before / max(view.unfiltered_error, 0.25)
    covering = mean_square((deployed - view.predicted)[(..., *box)])
    if gain < _CLEANER or covering < _TIMES * view.unfiltered_error + _HOT:
        return None  # what explains the rest explains the region too
    (top, bottom), (left, right) = ((side.start, side.stop) for side in box)
    share = (bottom - top) * (right - left) / (deployed.shape[2] * deployed.shape[3])
    sides = {"left": float(left), "right": float(right), "top": float(top), "bottom": float(bottom)}
    return Evidence("overlay", {**sides, "share": share}, gain / _CLEANER), view


def _find_region(predicted: Tensor, view: View) -> tuple[slice, slice] | None:
    """The box around the connected pixels that hold most of the residual."""
    energy = (view.deployed - predicted).square().mean((0, 1))
    if predicted is view.predicted:
        energy = torch.where(view.mask, energy, 0.0)
    hot = energy > _TIMES * energy.median() + _HOT
    reach = max(min(energy.shape) // 16, 1)
    near = max_pool2d(hot[None, None].double(), 2 * reach + 1, 1, reach)[0, 0]
    labels, count = ndimage.label(near.numpy())
    if count == 0:
        return None
    largest = int(np.argmax(ndimage.sum_labels(energy.numpy(), labels, range(1, count + 1))))
    inside = torch.from_numpy(labels == largest + 1) & hot
    rows, columns = (inside.any(axis).nonzero()[:, 0] for axis in (1, 0))
    box = slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
    area = inside[box].numel() / inside.numel()
    concentrated = float(energy[box].sum()) > _SHARE * float(energy.sum())
    return box if concentrated and area < _LARGEST and float(inside[box].double().mean()) > _FULL else None


def fit_cover(predicted: Tensor, deployed: Tensor, box: tuple[slice, slice]) -> Tensor:
    """What covers a region, as a picture with opacity ``(4, h, w)`` in levels of 8 bits.

    A pixel is covered where both sides differ. One opacity for all of them comes from how far what is beneath changes
    the deployed pixels from picture to picture.

    Args:
        predicted: Training's pictures after all else that is known, ``(N, C, H, W)`` in levels.
        deployed: The deployed side's.
        box: Rows and columns.
    """
    beneath, shown = (side[(..., *box)] for side in (predicted, deployed))
    covered = (shown - beneath).square().mean((0, 1)) > _COVERED**2
    here, there = ((side - side.mean(0))[..., covered] for side in (beneath, shown))
    through = float((here * there).sum() / here.square().sum().clamp(min=1.0))
    through = through if _SOLID < through < 1 - _SOLID else 0.0
    colour = ((shown - through * beneath).mean(0) / (1 - through)).clamp(0, 255)
    opacity = covered[None] * (255 * (1 - through))
    return torch.cat([colour.expand(3, *covered.shape), opacity]).round().byte()
