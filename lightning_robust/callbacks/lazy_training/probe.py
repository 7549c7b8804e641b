"""The samples that laziness and vulnerability are measured on, the same ones for a whole run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lightning_robust.harness.batches import count_samples
from lightning_robust.rows import take_rows
from lightning_robust.structures import map_tensors, rebuild, tensors_in


class Probe:
    """The first samples that a run sees, on the CPU; a resumed run goes on with those of the interrupted one.

    Args:
        num_samples: The most samples to keep.

    Example:
        >>> import torch
        >>> probe = Probe(2)
        >>> probe.keep((torch.arange(3.0), torch.ones(3)))
        >>> probe.batch
        (tensor([0., 1.]), tensor([1., 1.]))
    """

    def __init__(self, num_samples: int) -> None:
        self._num_samples = num_samples
        self._loaded: list[Tensor] = []
        self.batch: Any = None
        """None until a batch has come."""

    def keep(self, batch: Any) -> None:
        """Copy the first samples of the first batch; later batches change nothing."""
        if self.batch is not None:
            return
        rows = take_rows(batch, slice(self._num_samples), count_samples(batch))
        copy = map_tensors(lambda tensor: tensor.detach().to("cpu", copy=True), rows)
        if len(self._loaded) == len(tensors_in(copy)):
            copy = rebuild(copy, iter(self._loaded))
        self.batch = copy

    def tensors(self) -> list[Tensor]:
        """The tensors of the probe, for a checkpoint."""
        return list(self._loaded) if self.batch is None else tensors_in(self.batch)

    def load(self, tensors: Sequence[Tensor]) -> None:
        """Take the tensors of an interrupted run in place of those of the first batch."""
        self._loaded = list(tensors)
