"""Outputs of detectors as boxes: torchvision's, those of the DETR family, those of the YOLO family.

Outputs in half precision are read in fp32, so that reading them adds nothing to what they lost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_robust.decoding.boxes import Boxes
from lightning_robust.decoding.overlap import nms

_CANDIDATES = 1000  # boxes of a picture that suppression sees


def torchvision_boxes(
    outputs: Sequence[Mapping[str, Tensor]], threshold: float = 0.05, limit: int | None = None
) -> Boxes:
    """Boxes from what torchvision's detectors return, or are trained on: a dict for each picture.

    Their number differs from picture to picture. A module that is to be measured and exported returns tensors that have
    a row for each picture: give ``limit`` and return the :class:`Boxes` from ``forward``.

    Args:
        outputs: For each picture ``"boxes"`` (n, 4) in pixels, ``"scores"`` (n,), ``"labels"`` (n,). Without scores, as
            in targets, each is 1.
        threshold: The score from which a box counts.
        limit: Slots for each picture, of which the highest scores take theirs; None takes as many as are needed.

    Example:
        >>> picture = {"boxes": torch.ones(1, 4), "scores": torch.tensor([0.9]), "labels": torch.tensor([3])}
        >>> torchvision_boxes([picture], limit=2).scores
        tensor([[0.9000,    nan]])
    """
    pictures = []
    for each in outputs:
        boxes, labels = _precise(each["boxes"]), each["labels"].long()
        scores = _precise(each["scores"]) if "scores" in each else torch.ones_like(boxes[:, 0])
        chosen = scores > threshold
        pictures.append((boxes[chosen], scores[chosen], labels[chosen]))
    return Boxes.stack(pictures, limit)


def detr_boxes(outputs: Any, height: float, width: float, threshold: float = 0.5, *, sigmoid: bool = False) -> Boxes:
    """Boxes from what detectors of the DETR family return: a class and a box for each query.

    DETR, YOLOS and Table Transformer have a softmax with a last class for "nothing there"; Deformable DETR, DINO,
    RT-DETR a sigmoid for each class. A query counts with its best class.

    Args:
        outputs: With ``"logits"`` or ``"pred_logits"`` (N, Q, classes) and ``"pred_boxes"`` (N, Q, 4), as centre, width
            and height in [0, 1]: a dict, an output of transformers, or these two as a tuple.
        height: Of the picture, in pixels in which boxes are to be.
        width: The same.
        threshold: The score from which a box counts.
        sigmoid: Whether each class has its own probability.

    Raises:
        KeyError: If the outputs have no such parts.

    Example:
        >>> logits, boxes = torch.tensor([[[0.0, 3.0, 0.0]]]), torch.tensor([[[0.25, 0.5, 0.5, 1.0]]])
        >>> found = detr_boxes((logits, boxes), 10, 20)
        >>> found.labels.item(), found.xyxy.tolist()
        (1, [[[0.0, 0.0, 10.0, 10.0]]])
    """
    logits, boxes = (_precise(each) for each in _logits_and_boxes(outputs))
    probabilities = logits.sigmoid() if sigmoid else logits.softmax(-1)[..., :-1]
    scores, labels = probabilities.max(-1)
    scale = boxes.new_tensor([width, height, width, height])
    return Boxes(_edges_of(boxes) * scale, scores.masked_fill(scores <= threshold, torch.nan), labels)


def yolo_boxes(
    outputs: Float[Tensor, "batch channels anchors"], threshold: float = 0.25, iou: float = 0.7, limit: int = 100
) -> Boxes:
    """Boxes from what detectors of the YOLO family return: one tensor of boxes and class probabilities.

    As from YOLOv8 on. Boxes of one class that overlap are suppressed, see :func:`nms`.

    Args:
        outputs: ``(N, 4 + classes, anchors)``: centre, width and height in pixels, then probabilities.
        threshold: The probability from which a box counts.
        iou: The most that two boxes of one class may overlap.
        limit: Slots for each picture; the highest probabilities come first.

    Raises:
        ValueError: If the outputs have another shape.

    Example:
        >>> outputs = torch.tensor([[[5.0, 5.5], [5, 5], [4, 4], [4, 4], [0.8, 0.9]]])
        >>> yolo_boxes(outputs, limit=1).xyxy.tolist()  # the second one, which the first overlaps by 0.78
        [[[3.5, 3.0, 7.5, 7.0]]]
    """
    if outputs.ndim != 3 or outputs.shape[1] < 5:
        raise ValueError(
            f"Expected outputs (N, 4 + classes, anchors), but got {tuple(outputs.shape)}. Transpose them, or leave out "
            "what comes beside."
        )
    pictures = []
    for each in _precise(outputs).transpose(1, 2):
        scores, labels = each[:, 4:].max(1)
        chosen = (scores > threshold).nonzero()[:, 0]
        chosen = chosen[scores[chosen].argsort(descending=True, stable=True)[:_CANDIDATES]]
        corners = _edges_of(each[chosen, :4])
        kept = nms(corners.detach(), scores[chosen].detach(), iou, labels[chosen])
        pictures.append((corners[kept], scores[chosen][kept], labels[chosen][kept]))
    return Boxes.stack(pictures, limit)


def _logits_and_boxes(outputs: Any) -> tuple[Tensor, Tensor]:
    if not isinstance(outputs, Mapping):
        return outputs[0], outputs[1]
    name = next((name for name in ("logits", "pred_logits") if name in outputs), None)
    if name is None or "pred_boxes" not in outputs:
        raise KeyError(
            f"Expected outputs with 'logits' or 'pred_logits', and 'pred_boxes', but got {sorted(outputs)}. Give these "
            "two as a tuple."
        )
    return outputs[name], outputs["pred_boxes"]


def _edges_of(boxes: Tensor) -> Tensor:
    """From centre, width and height to left, top, right, bottom."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], -1)


def _precise(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()
