"""Boxes of several pictures, of which each has its own number, in any order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from lightning_robust.decoding.alignment import Alignment, Decoded
from lightning_robust.decoding.average_precision import mean_average_precision
from lightning_robust.decoding.overlap import match_boxes
from lightning_robust.functional.picture_motion import move_boxes


@dataclass(frozen=True)
class Boxes(Decoded):
    """Boxes with scores and classes, in slots that may be empty.

    Pixels are counted as COCO, torchvision and DETR do: 0 is the left or upper edge of the picture. A slot is empty
    where its score is NaN. A box without area, or with an edge that is not finite, is none.

    Compared with the boxes of another runtime, each is matched to the one of most overlap, see :func:`match_boxes`; a
    box that finds none is lost, or new. Then there are

    - ``centre_px`` and ``size_px``: deviations of ``(x, y)`` and of ``(width, height)``, each coordinate a point;
      ``score``: that of the score;
    - ``lost`` and ``new``: how many have no match, as shares of the reference's number;
    - ``label_flips``: the share of matched boxes that changed class;
    - ``ap_loss``: 1 - the other boxes' mean average precision, where the reference's are the truth.

    Args:
        xyxy: Left, top, right, bottom.
        scores: NaN where a slot is empty.
        labels: Classes from 0.

    Raises:
        ValueError: If the shapes do not fit.

    Example:
        >>> edges = torch.tensor([[[0.0, 0, 8, 8], [20, 20, 30, 40], [50, 50, 60, 60]]])
        >>> boxes = Boxes(edges, torch.ones(1, 3), torch.tensor([[0, 1, 1]]))
        >>> moved = Boxes(edges[:, [1, 0]] + 1, torch.ones(1, 2), torch.tensor([[1, 0]]))  # and in another order
        >>> aligned = boxes.compare(moved)
        >>> exact, found = aligned.parts["centre_px"]
        >>> (found - exact).tolist(), aligned.metrics()["lost"]
        ([[[1.0, 1.0], [1.0, 1.0], [nan, nan]]], 0.3333333333333333)
    """

    xyxy: Float[Tensor, "batch boxes 4"]
    scores: Float[Tensor, "batch boxes"]
    labels: Int[Tensor, "batch boxes"]
    unit: ClassVar[str] = "centre_px"

    def __post_init__(self) -> None:
        """Check that the shapes fit."""
        expected = (*self.scores.shape, 4)
        if self.scores.ndim != 2 or self.xyxy.shape != expected or self.labels.shape != self.scores.shape:
            raise ValueError(
                "Expected boxes (N, K, 4), scores (N, K) and labels (N, K), but got "
                f"{tuple(self.xyxy.shape)}, {tuple(self.scores.shape)} and {tuple(self.labels.shape)}. "
                "Boxes.stack takes pictures of different numbers of boxes."
            )

    @classmethod
    def stack(cls, pictures: Sequence[tuple[Tensor, Tensor, Tensor]], limit: int | None = None) -> Self:
        """Boxes of pictures that have different numbers of them.

        Args:
            pictures: For each picture boxes ``(n, 4)``, scores ``(n,)`` and labels ``(n,)``; n may be 0.
            limit: Slots for each picture, of which the highest scores take theirs; None takes as many as are needed.

        Raises:
            ValueError: If there is no picture.

        Example:
            >>> none = torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.long)
            >>> Boxes.stack([none, (torch.ones(2, 4), torch.ones(2), torch.zeros(2, dtype=torch.long))]).shape
            torch.Size([2, 2])
        """
        if not pictures:
            raise ValueError("Expected the boxes of at least one picture, but got none.")
        slots = max(len(scores) for _, scores, _ in pictures) if limit is None else limit
        chosen = [_highest(*picture, slots) for picture in pictures]
        xyxy, scores, labels = zip(*chosen, strict=True)
        return cls(
            torch.stack([pad(each, (0, 0, 0, slots - len(each)), value=torch.nan) for each in xyxy]),
            torch.stack([pad(each, (0, slots - len(each)), value=torch.nan) for each in scores]),
            torch.stack([pad(each, (0, slots - len(each))) for each in labels]),
        )

    @property
    def shape(self) -> torch.Size:
        """Pictures and slots."""
        return self.scores.shape

    @property
    def empty(self) -> bool:
        """Whether no slot holds a box."""
        return not bool(self.present.any())

    @property
    def present(self) -> Bool[Tensor, "batch boxes"]:
        """Which slots hold a box."""
        sides = self.xyxy[..., 2:] - self.xyxy[..., :2]
        return ~self.scores.isnan() & self.xyxy.isfinite().all(-1) & (sides > 0).all(-1)

    @property
    def centre_px(self) -> Float[Tensor, "batch boxes 2"]:
        """Centres ``(x, y)``."""
        return (self.xyxy[..., :2] + self.xyxy[..., 2:]) / 2

    @property
    def size_px(self) -> Float[Tensor, "batch boxes 2"]:
        """Widths and heights."""
        return self.xyxy[..., 2:] - self.xyxy[..., :2]

    def __getitem__(self, rows: slice | Tensor) -> Self:
        """Some of the pictures."""
        return type(self)(self.xyxy[rows], self.scores[rows], self.labels[rows])

    def moved(self, matrix: Tensor, size: tuple[float, float] | None = None) -> Self:
        """The boxes in the moved picture: upright ones around the moved ones.

        Args:
            matrix: From ``moved(values, matrix)`` or ``move_targets``, in the pixels of the boxes.
            size: Height and width, if boxes are to end at the picture's border; those that have left it are none.

        Example:
            >>> box = Boxes(torch.tensor([[[0.0, 0, 4, 4]]]), torch.ones(1, 1), torch.zeros(1, 1, dtype=torch.long))
            >>> box.moved(torch.tensor([[1.0, 0, -1], [0, 1, 0], [0, 0, 1]]), (4, 4)).xyxy.tolist()
            [[[0.0, 0.0, 3.0, 4.0]]]
        """
        edges = move_boxes(self.xyxy - 0.5, matrix) + 0.5  # a motion counts from the centre of the first pixel
        if size is not None:
            edges = edges.clamp(min=0).minimum(edges.new_tensor([size[1], size[0], size[1], size[0]]))
        return type(self)(edges, self.scores, self.labels)

    def compare(self, other: Self) -> Alignment:
        """Match another runtime's boxes to these.

        Raises:
            ValueError: If the other has another number of pictures.
        """
        if len(self.scores) != len(other.scores):
            raise ValueError(
                f"Expected boxes of {len(self.scores)} pictures, but got those of {len(other.scores)}. "
                "`decode` has to give the boxes of each picture of a batch."
            )
        order = match_boxes(self, other)
        there, matched = self.present, order[:, : self.shape[1]] >= 0
        ours, theirs = self._padded(order.shape[1]), other._ordered(order)
        changed = (ours.labels != theirs.labels)[:, : self.shape[1]] & matched
        unmatched = theirs.present.sum(1) - matched.sum(1)
        parts = zip(ours._parts().items(), theirs._parts().values(), strict=True)
        return Alignment(
            {name: (exact, found) for (name, exact), found in parts},
            {
                "lost": ((there & ~matched).sum(1), there.sum(1)),
                "new": (unmatched, there.sum(1)),
                "label_flips": (changed.sum(1), matched.sum(1)),
            },
            {"ap_loss": lambda: 1 - mean_average_precision(other, self)["map"]},
        )

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """The boxes of several batches, in as many slots as the widest has."""
        slots = max(part.shape[1] for part in parts)
        wide = [part._padded(slots) for part in parts]
        fields = ([part.xyxy for part in wide], [part.scores for part in wide], [part.labels for part in wide])
        return cls(*(torch.cat(each) for each in fields))

    def score(self, truth: Self) -> dict[str, float]:
        """The mean average precision; NaN where there is no true box."""
        return {"map": mean_average_precision(self, truth)["map"]}

    def carry(self, known: Tensor, other: Self) -> Tensor:
        """Which boxes of another runtime match some of these."""
        carried = torch.zeros(other.shape, dtype=torch.bool)
        order = match_boxes(self, other)[:, : self.shape[1]]
        picture, slot = (known.cpu() & (order >= 0)).nonzero(as_tuple=True)
        carried[picture, order[picture, slot]] = True
        return carried

    def remarks(self, name: str) -> list[str]:
        """Boxes that are none; that there are none at all."""
        filled, present = ~self.scores.isnan(), self.present
        count, gone = int(filled.sum()), int((filled & ~present).sum())
        if count == gone:
            return [f"The reference finds no {name} with an area on these samples: there is nothing to compare."]
        return [f"{gone} of {count} {name} have no area, or no finite edge, and are left out."] if gone else []

    def _parts(self) -> dict[str, Tensor]:
        gone = ~self.present
        return {
            "centre_px": self.centre_px.masked_fill(gone[..., None], torch.nan),
            "size_px": self.size_px.masked_fill(gone[..., None], torch.nan),
            "score": self.scores.masked_fill(gone, torch.nan),
        }

    def _padded(self, slots: int) -> Self:
        more = slots - self.shape[1]
        xyxy, scores = pad(self.xyxy, (0, 0, 0, more), value=torch.nan), pad(self.scores, (0, more), value=torch.nan)
        return type(self)(xyxy, scores, pad(self.labels, (0, more)))

    def _ordered(self, order: Tensor) -> Self:
        """The boxes in these slots; -1 leaves one empty."""
        padded = self._padded(self.shape[1] + 1)  # the last one, -1, is empty
        places = order.to(self.scores.device) % padded.shape[1]
        edges = padded.xyxy.gather(1, places[..., None].expand(*places.shape, 4))
        return type(self)(edges, padded.scores.gather(1, places), padded.labels.gather(1, places))


def _highest(xyxy: Tensor, scores: Tensor, labels: Tensor, limit: int) -> tuple[Tensor, Tensor, Tensor]:
    if len(scores) <= limit:
        return xyxy, scores, labels
    best = scores.nan_to_num(nan=-torch.inf).argsort(descending=True, stable=True)[:limit]
    return xyxy[best], scores[best], labels[best]
