"""How much boxes overlap, which of them suppress others, and which of two sets belong together."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor


class BoxSet(Protocol):
    """Boxes, scores and classes in slots, of which some are empty."""

    @property
    def xyxy(self) -> Float[Tensor, "batch boxes 4"]:
        """Left, top, right, bottom."""

    @property
    def scores(self) -> Float[Tensor, "batch boxes"]:
        """Of each slot."""

    @property
    def labels(self) -> Int[Tensor, "batch boxes"]:
        """The class of each slot."""

    @property
    def present(self) -> Bool[Tensor, "batch boxes"]:
        """Which slots hold a box."""


def box_iou(ours: Float[Tensor, "*batch n 4"], theirs: Float[Tensor, "*batch m 4"]) -> Float[Tensor, "*batch n m"]:
    r"""Intersection over union of each of these boxes with each of those.

    .. math:: \mathrm{IoU}(A, B) = |A \cap B| / |A \cup B|

    Args:
        ours: Boxes ``(left, top, right, bottom)``.
        theirs: Others.

    Returns:
        In [0, 1]; 0 where neither has area.

    Example:
        >>> box_iou(torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[1.0, 0, 3, 2], [4, 4, 5, 5]]))
        tensor([[0.3333, 0.0000]])
    """
    one, other = ours[..., :, None, :], theirs[..., None, :, :]
    sides = torch.minimum(one[..., 2:], other[..., 2:]) - torch.maximum(one[..., :2], other[..., :2])
    common = sides.clamp(min=0).prod(-1)
    union = _area(one) + _area(other) - common
    return common / torch.where(union > 0, union, torch.inf)


def nms(
    xyxy: Float[Tensor, "n 4"], scores: Float[Tensor, " n"], iou: float, labels: Int[Tensor, " n"] | None = None
) -> Int[Tensor, " kept"]:
    """Non-maximum suppression: from the highest score down, a box goes that overlaps one that stays by more than `iou`.

    The same as ``torchvision.ops.nms``, and with classes as ``batched_nms``. All boxes are decided at once, given what
    the last round kept, until nothing changes; the k-th is decided for good in the k-th round at the latest, and few
    rounds do in practice.

    Args:
        xyxy: Boxes.
        scores: Of each box; of two equal ones the first counts as the higher.
        iou: The most that boxes may overlap.
        labels: Classes; boxes of different ones do not suppress each other.

    Returns:
        The boxes that stay, the highest score first.

    Example:
        >>> nms(torch.tensor([[0.0, 0, 9, 9], [0, 0, 10, 10], [20, 20, 30, 30]]), torch.tensor([0.5, 0.9, 0.7]), 0.5)
        tensor([1, 2])
    """
    order = scores.argsort(descending=True, stable=True)
    beats = box_iou(xyxy[order], xyxy[order]) > iou
    if labels is not None:
        beats &= labels[order][:, None] == labels[order]
    beats = beats.triu(1)
    kept, before = torch.ones_like(order, dtype=torch.bool), torch.zeros_like(order, dtype=torch.bool)
    while not torch.equal(kept, before):
        before, kept = kept, ~(beats & kept[:, None]).any(0)
    return order[kept]


def match_boxes(reference: BoxSet, other: BoxSet, min_iou: float = 0.5) -> Int[Tensor, "batch slots"]:
    r"""Which boxes of another side belong to the reference's: the assignment of largest total weight.

    Boxes that overlap by ``min_iou`` may be matched. The weight of a match is :math:`1 - (1 - \mathrm{IoU})^2`: many
    boxes that all moved a little are likelier than one that moved far beside others that stayed. Boxes of one class
    come first (one more), and where boxes lie upon each other the nearer score decides.

    Args:
        reference: N pictures.
        other: The same pictures.
        min_iou: The least overlap, COCO's least by default.

    Returns:
        The slot of the other side, for each slot of the reference and then for each box that is matched to none; -1
        where there is none. On the CPU.
    """
    here, there = reference.present.cpu().numpy(), other.present.cpu().numpy()
    overlap = box_iou(*(side.xyxy.detach().double().nan_to_num(0, 0, 0).cpu() for side in (reference, other))).numpy()
    same = (reference.labels[:, :, None] == other.labels[:, None, :]).cpu().numpy()
    ours, theirs = (side.scores.detach().double().cpu().numpy() for side in (reference, other))
    weights = 1 - (1 - overlap) ** 2 + same + 1e-3 * (1 - abs(ours[:, :, None] - theirs[:, None, :]))
    allowed = (overlap >= min_iou) & here[:, :, None] & there[:, None, :]
    weights = np.where(allowed, weights, 0.0)
    found = np.full((len(here), here.shape[1] + there.shape[1]), -1)
    for picture, each in enumerate(weights):
        rows, columns = _assign(each, here[picture], there[picture])
        found[picture, rows] = columns
        left = np.setdiff1d(np.flatnonzero(there[picture]), columns)
        found[picture, here.shape[1] : here.shape[1] + len(left)] = left
    needed = here.shape[1] + max((found[:, here.shape[1] :] >= 0).sum(1), default=0)
    return torch.from_numpy(found[:, :needed])


def _assign(weights: np.ndarray, here: np.ndarray, there: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The matches of one picture; empty slots are left out, which would take most of the time."""
    ours, theirs = np.flatnonzero(here), np.flatnonzero(there)
    inside = weights[np.ix_(ours, theirs)]
    rows, columns = linear_sum_assignment(inside, maximize=True)
    real = inside[rows, columns] > 0
    return ours[rows[real]], theirs[columns[real]]


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)
