"""Mean average precision as COCO computes it, without its areas and crowds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightning_robust.decoding.overlap import BoxSet, box_iou

COCO_THRESHOLDS = tuple(0.5 + 0.05 * step for step in range(10))
_RECALLS = np.linspace(0.0, 1.0, 101)
_MOST = 100  # boxes of one class in one picture, as COCO counts


def mean_average_precision(
    boxes: BoxSet, truth: BoxSet, thresholds: Sequence[float] = COCO_THRESHOLDS
) -> dict[str, float]:
    r"""The mean of the average precisions over classes and thresholds of overlap.

    In each picture boxes of a class take, from the highest score down, the free true box of the class that they overlap
    most, if by the threshold; others are false. With precision p and recall r over all pictures, scores descending,

    .. math:: \mathrm{AP} = \frac{1}{101} \sum_{k=0}^{100} \max_{r \ge k / 100} p(r)

    The same as pycocotools' first number (all areas, at most 100 boxes of a class a picture), for truth without crowds.
    Boxes without area do not count.

    Args:
        boxes: What was found, usually :class:`~.boxes.Boxes`.
        truth: What is there; its scores do not matter.
        thresholds: Of the intersection over union.

    Returns:
        ``"map"``, over all thresholds, and ``"map_50"`` and ``"map_75"`` where these are among them; NaN where there is
        no truth at all.

    Example:
        >>> import torch
        >>> from lightning_robust.decoding import Boxes
        >>> edges, zero = torch.tensor([[[0.0, 0, 10, 10]]]), torch.zeros(1, 1, dtype=torch.long)
        >>> truth, found = Boxes(edges, torch.ones(1, 1), zero), Boxes(edges + 1, torch.ones(1, 1), zero)
        >>> mean_average_precision(found, truth)  # an overlap of 81/119 = 0.68
        {'map': 0.4, 'map_50': 1.0, 'map_75': 0.0}
    """
    levels = np.asarray(thresholds)
    found, there = _Side.of(boxes), _Side.of(truth)
    classes = np.unique(there.labels[there.present])
    named = {"map": np.ones(len(levels), dtype=bool)} | {f"map_{level}": _is_level(levels, level) for level in (50, 75)}
    if not len(classes):
        return {name: float("nan") for name, chosen in named.items() if chosen.any()}
    overlap = box_iou(boxes.xyxy.detach().double().cpu(), truth.xyxy.detach().double().cpu()).numpy()
    precisions = np.stack([_average_precision(overlap, found, there, label, levels) for label in classes]).mean(0)
    return {name: float(precisions[chosen].mean()) for name, chosen in named.items() if chosen.any()}


@dataclass(frozen=True)
class _Side:
    present: NDArray[np.bool_]
    scores: NDArray[np.float64]
    labels: NDArray[np.int64]

    @classmethod
    def of(cls, boxes: BoxSet) -> _Side:
        scores, labels = boxes.scores.detach().double().cpu().numpy(), boxes.labels.cpu().numpy()
        return cls(boxes.present.cpu().numpy(), scores, labels)

    def slots(self, picture: int, label: int) -> NDArray[np.int64]:
        """Where the boxes of a class in a picture are, the highest score first."""
        places = np.flatnonzero(self.present[picture] & (self.labels[picture] == label))
        return places[np.argsort(-self.scores[picture, places], kind="stable")]


def _average_precision(
    overlap: NDArray[np.float64], boxes: _Side, truth: _Side, label: int, levels: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The average precision of one class at each level."""
    scores, hits, total = [np.zeros(0)], [np.zeros((0, len(levels)), dtype=bool)], 0
    for picture in range(len(overlap)):
        found, there = boxes.slots(picture, label)[:_MOST], truth.slots(picture, label)
        scores.append(boxes.scores[picture, found])
        hits.append(_hits(overlap[picture][np.ix_(found, there)], levels))
        total += len(there)
    order = np.argsort(-np.concatenate(scores), kind="stable")
    true = np.concatenate(hits)[order].cumsum(0)
    precision, recall = true / np.arange(1, len(true) + 1)[:, None], true / total
    best = np.maximum.accumulate(precision[::-1], 0)[::-1]  # the best that is to come
    return np.asarray([_interpolated(recall[:, level], best[:, level]) for level in range(len(levels))])


def _hits(overlap: NDArray[np.float64], levels: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which boxes take a true one, at each level."""
    free = np.ones((len(levels), overlap.shape[1]), dtype=bool)
    hits = np.zeros((len(overlap), len(levels)), dtype=bool)
    rows = np.arange(len(levels))
    for box, row in enumerate(overlap):
        if not len(row):
            break
        open_ = np.where(free & (row >= np.minimum(levels, 1 - 1e-10)[:, None]), row, -1.0)
        best = open_.shape[1] - 1 - open_[:, ::-1].argmax(1)  # of equal ones the last, as COCO has it
        hits[box] = open_[rows, best] > 0
        free[rows[hits[box]], best[hits[box]]] = False
    return hits


def _interpolated(recall: NDArray[np.float64], best: NDArray[np.float64]) -> float:
    places = np.searchsorted(recall, _RECALLS, side="left")
    return float(np.append(best, 0.0)[places].mean())


def _is_level(levels: NDArray[np.float64], percent: int) -> NDArray[np.bool_]:
    return np.isclose(levels, percent / 100)
