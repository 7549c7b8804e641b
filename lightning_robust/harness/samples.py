"""The first inputs of a loader, gathered batch by batch as arguments of ``forward``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn

from lightning_robust.harness.inputs import positional_arguments
from lightning_robust.structures import Key, flatten, is_batch_object, map_tensors, take_rows, tensors_in

_MOST_BYTES = 2**28


class FirstInputs:
    """Gathers the first samples that a network sees, copied to the CPU: as many as are wanted, or 256 MB of them.

    Args:
        count: How many samples are wanted.
        input_key: Which part of a batch goes into ``forward``: position or name; a list gives several arguments. None
            infers it.
        at_least: How many are gathered whatever they take.

    Example:
        >>> first = FirstInputs(3)
        >>> for batch in [(torch.zeros(2, 5), 0), (torch.ones(2, 5), 1)]:
        ...     first.add(torch.nn.Linear(5, 1), batch)
        >>> first.complete, first.args()[0].shape
        (True, torch.Size([3, 5]))
    """

    def __init__(self, count: int, input_key: Key | list[Key] | None = None, at_least: int = 16) -> None:
        self._count, self._key, self._least = count, input_key, min(count, at_least)
        self._batches: list[tuple[Any, ...]] = []
        self._whole: list[Any] = []
        self._unusable = ""

    @property
    def count(self) -> int:
        """How many there are, at most as many as wanted."""
        return min(self._count, sum(map(_row_count, self._batches)))

    @property
    def complete(self) -> bool:
        """Whether there are as many as wanted, or as fit."""
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors_in(self._batches))
        return self.count >= (self._least if size >= _MOST_BYTES else self._count)

    def add(self, module: nn.Module, batch: Any, *, whole: bool = False) -> None:
        """Keep a batch, unless samples of another shape were kept before or it has no inputs.

        Args:
            module: What takes the inputs.
            batch: As the loader gave it.
            whole: Keep everything in it, for :meth:`batches`.
        """
        if self.complete:
            return
        try:
            _require_rows(batch)
            if whole:
                batch = map_tensors(lambda tensor: tensor.detach().to("cpu", copy=True), batch)
            args = positional_arguments(module, batch, self._key)
            if not whole:
                args = map_tensors(lambda tensor: tensor.detach().to("cpu", copy=True), args)
            if not self._batches or _shapes(args) == _shapes(self._batches[0]):
                self._batches.append(args)
                self._whole.append(batch if whole else None)
        except (KeyError, ValueError, MisconfigurationException) as error:
            self._unusable = str(error.args[0])

    def args(self, count: int | None = None) -> tuple[Any, ...]:
        """The positional arguments of ``forward``, at most as many samples as wanted.

        Args:
            count: Fewer of them.

        Raises:
            ValueError: If no batch was usable; the message says why.
        """
        if not self._batches:
            raise ValueError(self._unusable or "no validation batch was seen")
        most = self._count if count is None else min(count, self._count)
        columns = [list(flatten(args).values()) for args in self._batches]
        joined = [torch.cat(p)[:most] if p[0].ndim else p[0] for p in zip(*columns, strict=True)]
        tensors = iter(joined)
        merged: tuple[Any, ...] = map_tensors(lambda _: next(tensors), self._batches[0])
        return merged

    def batches(self, window: slice) -> Iterator[tuple[slice, Any]]:
        """The batches that hold some samples, cut to these, each with its place among them.

        Args:
            window: The samples, counted from the first.
        """
        start = 0
        for args, batch in zip(self._batches, self._whole, strict=True):
            rows, end = _row_count(args), start + _row_count(args)
            low, high = max(start, window.start or 0), min(end, window.stop)
            if low < high and batch is not None:
                place = slice(low - (window.start or 0), high - (window.start or 0))
                yield place, take_rows(batch, slice(low - start, high - start), rows)
            start = end


def _row_count(args: tuple[Any, ...]) -> int:
    return int(next(iter(flatten(args).values())).shape[0])


def _require_rows(batch: Any) -> None:
    """Refuse graphs, of which no first samples can be taken by rows."""
    sizes = {len(tensor) for tensor in tensors_in(batch) if tensor.ndim} if is_batch_object(batch) else set()
    if len(sizes) > 1:
        raise ValueError(
            f"Expected tensors with one row for each sample, of which the first are taken, but got "
            f"{type(batch).__name__} with tensors of {sorted(sizes)} rows. Give a loader whose batches have rows, or "
            "leave the technique out for this module."
        )


def _shapes(args: tuple[Any, ...]) -> list[torch.Size]:
    return [tensor.shape[1:] for tensor in flatten(args).values()]
