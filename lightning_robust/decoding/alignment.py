"""What two decoded values of a kind have in common and where they differ, once it is known what belongs to what."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Self

import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Alignment:
    """Two decoded values, point by point.

    Args:
        parts: Name -> points of the reference and of the other side, ``(N, points, ...)``, floating, NaN where there is
            none. The reference's own points come first, in its order.
        ratios: Name -> two sums for each picture; the first over the second, of all pictures, is a metric.
        others: Name -> what computes a metric that is neither.
    """

    parts: Mapping[str, Pair]
    ratios: Mapping[str, Pair] = field(default_factory=dict)
    others: Mapping[str, Callable[[], float]] = field(default_factory=dict)

    def metrics(self) -> dict[str, float]:
        """The metrics that are of no single point; NaN for a ratio of nothing.

        Example:
            >>> Alignment({}, {"lost": (torch.tensor([1, 0]), torch.tensor([3, 1]))}).metrics()
            {'lost': 0.25}
        """
        sums = {name: (float(part.sum()), float(whole.sum())) for name, (part, whole) in self.ratios.items()}
        shares = {name: part / whole if whole else float("nan") for name, (part, whole) in sums.items()}
        return shares | {name: compute() for name, compute in self.others.items()}


class Decoded(ABC):
    """A decoded value that is no plain tensor: it knows itself how it is compared with another of its kind."""

    unit: ClassVar[str]
    """The part of a comparison that stands for the value."""

    @property
    @abstractmethod
    def shape(self) -> torch.Size:
        """Pictures and points: what ``known`` tells apart."""

    @property
    @abstractmethod
    def empty(self) -> bool:
        """Whether there is no point that could move."""

    @abstractmethod
    def __getitem__(self, rows: slice | Tensor) -> Self:
        """Some of the pictures."""

    @abstractmethod
    def compare(self, other: Self) -> Alignment:
        """Compare with the same value of another runtime, or of perturbed pictures; this one is the reference.

        Raises:
            ValueError: If the other is of other pictures.
        """

    @classmethod
    @abstractmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """The values of several batches as one."""

    @abstractmethod
    def score(self, truth: Self) -> dict[str, float]:
        """The task's own metrics of this value, where another one is the truth; more is better.

        Raises:
            ValueError: If the truth is of other pictures.
        """

    @abstractmethod
    def carry(self, known: Tensor, other: Self) -> Tensor:
        """Which points of the other side are some of this one's: bools of this shape in, of the other's out."""

    @abstractmethod
    def moved(self, matrix: Tensor) -> Self:
        """The same value in the moved picture, for ``moved(values, matrix)`` of a module."""

    @abstractmethod
    def remarks(self, name: str) -> list[str]:
        """What a reader of the numbers should know of this value of the reference, in sentences."""
