"""The first inputs of a loader, gathered batch by batch as arguments of ``forward``."""

from __future__ import annotations

from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn

from lightning_robust.harness.inputs import positional_arguments
from lightning_robust.structures import Key, flatten, is_batch_object, map_tensors, tensors_in


class FirstInputs:
    """Gathers the first samples that a network sees, copied to the CPU.

    Args:
        count: How many samples are wanted.
        input_key: Which part of a batch goes into ``forward``: position or name; a list gives several arguments. None
            infers it.

    Example:
        >>> first = FirstInputs(3)
        >>> for batch in [(torch.zeros(2, 5), 0), (torch.ones(2, 5), 1)]:
        ...     first.add(torch.nn.Linear(5, 1), batch)
        >>> first.complete, first.args()[0].shape
        (True, torch.Size([3, 5]))
    """

    def __init__(self, count: int, input_key: Key | list[Key] | None = None) -> None:
        self._count, self._key = count, input_key
        self._batches: list[tuple[Any, ...]] = []
        self._unusable = ""

    @property
    def complete(self) -> bool:
        """Whether there are as many as wanted."""
        seen = sum(next(iter(flatten(args).values())).shape[0] for args in self._batches)
        return seen >= self._count

    def add(self, module: nn.Module, batch: Any) -> None:
        """Keep a batch, unless samples of another shape were kept before or it has no inputs."""
        if self.complete:
            return
        try:
            _require_rows(batch)
            args = positional_arguments(module, batch, self._key)
            args = map_tensors(lambda tensor: tensor.detach().to("cpu", copy=True), args)
            if not self._batches or _shapes(args) == _shapes(self._batches[0]):
                self._batches.append(args)
        except (KeyError, ValueError, MisconfigurationException) as error:
            self._unusable = str(error.args[0])

    def args(self) -> tuple[Any, ...]:
        """The positional arguments of ``forward``, at most as many samples as wanted.

        Raises:
            ValueError: If no batch was usable; the message says why.
        """
        if not self._batches:
            raise ValueError(self._unusable or "no validation batch was seen")
        columns = [list(flatten(args).values()) for args in self._batches]
        joined = [torch.cat(p)[: self._count] if p[0].ndim else p[0] for p in zip(*columns, strict=True)]
        tensors = iter(joined)
        merged: tuple[Any, ...] = map_tensors(lambda _: next(tensors), self._batches[0])
        return merged


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
