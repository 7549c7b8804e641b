"""Batches in memory, for many passes over the same data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from lightning_robust.harness.compat import version
from lightning_robust.structures import map_tensors, tensors_in

Batch = tuple[int, Any, int, int]
"""The number of samples, the batch after transfer, its index, and that of its loader."""


class HeldBatches:
    """Batches in memory.

    Args:
        batches: The batches.
        size: Their bytes.
    """

    def __init__(self, batches: list[Batch], size: int) -> None:
        self._batches, self.size = batches, size
        self._versions = self._read_versions()

    @classmethod
    def gather(cls, batches: Iterable[Batch], limit: int) -> HeldBatches | None:
        """Hold all batches, or give None as soon as they take more than ``limit`` bytes."""
        held, size = [], 0
        for each in batches:
            size += sum(tensor.nbytes for tensor in tensors_in(each[1]))
            if size > limit:
                return None
            held.append(each)
        return cls(held, size)

    def __iter__(self) -> Iterator[Batch]:
        """Copies of the structures around the same tensors."""
        for size, batch, index, loader in self._batches:
            yield size, map_tensors(lambda tensor: tensor, batch), index, loader

    @property
    def intact(self) -> bool:
        """Whether no tensor was changed in place."""
        return self._read_versions() == self._versions

    def _read_versions(self) -> list[list[int]]:
        return [[version(tensor) for tensor in tensors_in(batch)] for _, batch, _, _ in self._batches]
