"""How good boxes and masks are over all batches and ranks, as torchmetrics."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_robust.decoding import Boxes, Masks, mean_average_precision
from lightning_robust.decoding.average_precision import COCO_THRESHOLDS


class BoxPrecision(Metric):
    """The mean average precision of all boxes, in [0, 1]; see :func:`mean_average_precision`.

    Args:
        thresholds: Of the overlap: COCO's ten, or 0.5 alone.
        slots: Boxes that are kept of a picture, the first ones.

    Example:
        >>> edges, label = torch.tensor([[[0.0, 0, 8, 8]]]), torch.zeros(1, 1, dtype=torch.long)
        >>> metric = BoxPrecision()
        >>> metric.update(Boxes(edges + 1, torch.ones(1, 1), label), Boxes(edges, torch.ones(1, 1), label))
        >>> round(float(metric.compute()), 2)  # an overlap of 49/79 = 0.62, above three of ten thresholds
        0.3
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    rows: list[Tensor]

    def __init__(self, thresholds: Sequence[float] = COCO_THRESHOLDS, slots: int = 100) -> None:
        super().__init__()
        self.thresholds, self.slots = thresholds, slots
        self.add_state("rows", [], dist_reduce_fx="cat")

    def update(self, boxes: Boxes, truth: Boxes) -> None:
        """Adds a batch.

        Args:
            boxes: What was found, the highest scores first.
            truth: What is there; empty slots have a NaN for a score.
        """
        self.rows.append(torch.stack([_fixed(side, self.slots) for side in (boxes, truth)], 1))

    def compute(self) -> Tensor:
        """Over all pictures; 0 without any true box."""
        rows = self.rows if isinstance(self.rows, Tensor) else torch.cat(self.rows)
        found, truth = (_as_boxes(side) for side in rows.float().unbind(1))
        return torch.tensor(mean_average_precision(found, truth, self.thresholds)["map"]).nan_to_num(0.0)


def _as_boxes(rows: Tensor) -> Boxes:
    return Boxes(rows[..., :4], rows[..., 4], rows[..., 5].nan_to_num(-1).long())


def _fixed(boxes: Boxes, slots: int) -> Tensor:
    """Edges, score and class of the first slots, NaN in the others: (N, slots, 6), in fp32 also in half precision."""
    together = torch.cat([boxes.xyxy.float(), boxes.scores.float()[..., None], boxes.labels.float()[..., None]], -1)
    missing = slots - together.shape[1]
    return torch.nn.functional.pad(together[:, :slots], (0, 0, 0, max(missing, 0)), value=torch.nan)


class AreaOverlap(Metric):
    """Mean intersection over union of the classes of all pixels.

    Args:
        classes: How many there are.

    Example:
        >>> metric = AreaOverlap(2)
        >>> metric.update(Masks(torch.tensor([[[0, 1, 1, 1]]]), 2), Masks(torch.tensor([[[0, 0, 1, 1]]]), 2))
        >>> round(float(metric.compute()), 3)  # 1/2 and 2/3
        0.583
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    pairs: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.add_state("pairs", torch.zeros(classes, classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, masks: Masks, truth: Masks) -> None:
        """Adds a batch of masks of one size."""
        numbers = truth.labels.flatten().long() * self.classes + masks.labels.flatten().long()
        self.pairs = self.pairs + torch.bincount(numbers, minlength=self.classes**2).reshape(self.classes, -1)

    def compute(self) -> Tensor:
        """The mean over the classes that occur on either side."""
        both = self.pairs.diagonal()
        either = self.pairs.sum(0) + self.pairs.sum(1) - both
        return (both / either.clamp(min=1))[either > 0].float().mean().nan_to_num(0.0)
