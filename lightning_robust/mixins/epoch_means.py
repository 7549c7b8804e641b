"""Means over an epoch and all ranks, also of what some ranks never met."""

from __future__ import annotations

from collections.abc import Mapping

import lightning.pytorch as pl
import torch
from torch import Tensor


class EpochMeans:
    """Sums by name, until :meth:`log` shares them.

    Lightning reduces what ``log(sync_dist=True)`` was given in the order in which each rank first gave it: ranks that
    met other terms, or met them in another order, would wait for each other or exchange their values.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def add(self, values: Mapping[str, Tensor], samples: int) -> None:
        """Take in scalars that are means over so many samples."""
        for name, value in values.items():
            wide = value.detach().float()
            pair = torch.stack([wide * samples, torch.full_like(wide, samples)])
            self._sums[name] = self._sums[name] + pair if name in self._sums else pair

    def log(self, module: pl.LightningModule) -> None:
        """Log the means of all ranks, by name, and begin anew; call it on every rank."""
        trainer, names = module.trainer, [sorted(self._sums)]
        if trainer.world_size > 1:
            names = [[] for _ in range(trainer.world_size)]
            torch.distributed.all_gather_object(names, sorted(self._sums))
        nothing = torch.zeros(2, device=module.device)
        for name in sorted({name for each in names for name in each}):
            mine = self._sums.get(name, nothing).clone()  # which is reduced in place
            total: Tensor = trainer.strategy.reduce(mine, reduce_op="sum")
            module.log(name, total[0] / total[1], on_step=False, on_epoch=True)
        self._sums.clear()
