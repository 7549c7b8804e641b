"""The class of every pixel, and how far the boundaries of classes move."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import interpolate

from lightning_robust.decoding.alignment import Alignment, Decoded
from lightning_robust.functional.picture_motion import move_masks

Counts = Int[Tensor, "batch classes"]


@dataclass(frozen=True)
class Masks(Decoded):
    """The class of every pixel of several pictures.

    Compared with the masks of another runtime there are

    - ``boundary_px``: how far the boundary of each class moved, a point for each picture and class: the pixels that
      the class gained or lost over the length of its boundary, in edges between pixels. An upright edge that moved by
      two pixels counts 2; on a slope it is less than the way along the rows. Two masks of one class alone have none.
    - ``flips``: the share of pixels that changed class;
    - ``iou_loss``: 1 - the mean intersection over union of the classes, of all pictures together.

    Args:
        labels: Classes from 0; other numbers mean that a pixel does not count.
        classes: How many there are.

    Raises:
        ValueError: If the labels are no integers ``(N, H, W)``.

    Example:
        >>> columns = torch.arange(8).expand(1, 4, 8)
        >>> aligned = Masks((columns >= 3).long(), 2).compare(Masks((columns >= 5).long(), 2))
        >>> aligned.parts["boundary_px"][1].tolist(), aligned.metrics()["flips"]
        ([[2.0, 2.0]], 0.25)
    """

    labels: Int[Tensor, "batch height width"]
    classes: int
    unit: ClassVar[str] = "boundary_px"

    def __post_init__(self) -> None:
        """Check type and shape."""
        if self.labels.ndim != 3 or self.labels.is_floating_point():
            raise ValueError(
                f"Expected a class for every pixel, integers (N, H, W), but got {self.labels.dtype} "
                f"{tuple(self.labels.shape)}. segmentation_masks reads logits."
            )

    @property
    def shape(self) -> torch.Size:
        """Pictures and classes."""
        return torch.Size((len(self.labels), self.classes))

    @property
    def empty(self) -> bool:
        """Whether all pixels are of one class, without a boundary."""
        return bool((self.labels == self.labels.flatten()[:1]).all())

    def __getitem__(self, rows: slice | Tensor) -> Self:
        """Some of the pictures."""
        return type(self)(self.labels[rows], self.classes)

    def moved(self, matrix: Tensor) -> Self:
        """The masks in the moved picture; the border is repeated.

        Args:
            matrix: From ``moved(values, matrix)``, in the pixels of the masks.
        """
        return type(self)(move_masks(self.labels, matrix), self.classes)

    def compare(self, other: Self) -> Alignment:
        """Compare another runtime's masks with these.

        Raises:
            ValueError: If they are of another size or number.
        """
        if self.labels.shape != other.labels.shape:
            raise ValueError(
                f"Expected masks of shape {tuple(self.labels.shape)}, as the reference's are, but got "
                f"{tuple(other.labels.shape)}. Give `segmentation_masks` the size."
            )
        counts = confusion(self, other)
        before, after, common = counts.sum(2), counts.sum(1), counts.diagonal(dim1=1, dim2=2)
        changed, length = (before + after - 2 * common).double(), _boundary(self)
        length = torch.where(length > 0, length, _boundary(other)).double()
        gone = ((before + after) == 0) | ((changed > 0) & (length == 0))  # all of another class: nothing to count it in
        moved = changed / torch.where(length > 0, length, 1.0)
        exact = torch.zeros_like(moved).masked_fill(gone, torch.nan)
        return Alignment(
            {"boundary_px": (exact, moved.masked_fill(gone, torch.nan))},
            {"flips": (counts.sum((1, 2)) - common.sum(1), counts.sum((1, 2)))},
            {"iou_loss": lambda: 1 - mean_iou(other, self)},
        )

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """The masks of several batches."""
        return cls(torch.cat([part.labels for part in parts]), parts[0].classes)

    def score(self, truth: Self) -> dict[str, float]:
        """The mean intersection over union of the classes.

        Raises:
            ValueError: If the masks are of another size.
        """
        if self.labels.shape != truth.labels.shape:
            raise ValueError(
                f"Expected true masks of shape {tuple(self.labels.shape)}, as those that were found, but got "
                f"{tuple(truth.labels.shape)}. Give `segmentation_masks` their size."
            )
        return {"miou": mean_iou(self, truth)}

    def carry(self, known: Tensor, other: Self) -> Tensor:
        """The same classes of the same pictures."""
        return known

    def remarks(self, name: str) -> list[str]:
        """That all pixels are of one class."""
        if not self.empty:
            return []
        return [f"All pixels of {name} are of one class on these samples: there is no boundary that could move."]


def segmentation_masks(
    logits: Float[Tensor, "batch classes height width"], size: tuple[int, int] | None = None
) -> Masks:
    """Masks from logits: the class of the largest one, or with one channel whether it is positive.

    Args:
        logits: Of every class.
        size: Height and width to which they are resized first, bilinearly.

    Example:
        >>> segmentation_masks(torch.tensor([[[[1.0, -2.0]]]]))
        Masks(labels=tensor([[[1, 0]]]), classes=2)
    """
    if size is not None:
        logits = interpolate(logits, size, mode="bilinear", align_corners=False)
    if logits.shape[1] == 1:
        return Masks((logits[:, 0] > 0).long(), 2)
    return Masks(logits.argmax(1), logits.shape[1])


def mean_iou(masks: Masks, truth: Masks) -> float:
    """The mean intersection over union of the classes that occur on either side; NaN where none does.

    Args:
        masks: What was found.
        truth: What is there. Pixels whose class is out of range, 255 for instance, do not count.

    Example:
        >>> mean_iou(Masks(torch.tensor([[[0, 0, 1, 1]]]), 2), Masks(torch.tensor([[[0, 1, 1, 255]]]), 2))
        0.5
    """
    counts = confusion(truth, masks).sum(0).double()
    common, union = counts.diagonal(), counts.sum(0) + counts.sum(1) - counts.diagonal()
    return float((common / union)[union > 0].mean())


def confusion(reference: Masks, other: Masks) -> Int[Tensor, "batch classes classes"]:
    """How many pixels of each class of the reference have each class on the other side.

    Example:
        >>> confusion(Masks(torch.tensor([[[0, 1, 1]]]), 2), Masks(torch.tensor([[[0, 0, 1]]]), 2)).tolist()
        [[[1, 0], [1, 1]]]
    """
    classes = reference.classes
    one, two = reference.labels.flatten(1).cpu().long(), other.labels.flatten(1).cpu().long()
    picture = torch.arange(len(one))[:, None].expand_as(one)
    counted = (one >= 0) & (one < classes) & (two >= 0) & (two < classes)
    places = ((picture * classes + one) * classes + two)[counted]
    return torch.bincount(places, minlength=len(one) * classes**2).reshape(-1, classes, classes)


def _boundary(masks: Masks) -> Counts:
    """The length of the boundary of each class, in edges between pixels of it and others."""
    labels, classes = masks.labels.cpu().long(), masks.classes
    total = torch.zeros(len(labels), classes, dtype=torch.long)
    for one, two in ((labels[:, 1:], labels[:, :-1]), (labels[..., 1:], labels[..., :-1])):
        picture = torch.arange(len(labels))[:, None, None].expand_as(one)
        for side in (one, two):
            counted = (one != two) & (side >= 0) & (side < classes)
            places = (picture * classes + side)[counted]
            total += torch.bincount(places, minlength=total.numel()).reshape(total.shape)
    return total
