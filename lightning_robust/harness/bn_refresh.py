"""BatchNorm statistics of the present weights, taken from the Trainer's training batches."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn

from lightning_robust.functional.batchnorm import Ranks, refresh_batchnorm
from lightning_robust.harness.batches import combined, count_samples, training_loaders, transferred
from lightning_robust.harness.inputs import call_forward
from lightning_robust.harness.quiet import in_stage, isolated_rng
from lightning_robust.harness.ranks import agreed
from lightning_robust.progress import track
from lightning_robust.structures import Key

_ENDLESS = 1000
"""The most batches that are taken from a loader without an end."""


def refresh_statistics(
    trainer: pl.Trainer,
    pl_module: pl.LightningModule,
    *,
    input_key: Key | list[Key] | None = None,
    layers: list[nn.Module] | None = None,
    layerwise: bool = False,
    samples: int | None = None,
) -> int:
    """Exact BatchNorm statistics from the Trainer's training batches, as training sees them (augmented).

    Random numbers are drawn from a fixed seed and put back afterwards: the same weights give the same statistics.

    Args:
        trainer: The Trainer.
        pl_module: The module.
        input_key: Which part of a batch goes into ``forward``; a list gives several arguments, None infers them.
        layers: As in :func:`~lightning_robust.functional.batchnorm.refresh_batchnorm`.
        layerwise: One pass for each layer, exact at any depth; also as there.
        samples: Use only about so many training samples on each rank; all if None. Of a loader without an end, at most
            as many batches as lie between two validations, and 1,000.

    Returns:
        The number of layers refreshed.
    """
    loaders = training_loaders(trainer, pl_module)

    limit = _most_batches(trainer)

    def batches() -> Iterator[Any]:
        torch.manual_seed(0)
        seen = 0
        total = int(limit) if samples is None and math.isfinite(limit) else None
        for index, (batch, _, _) in enumerate(track(combined(loaders), "Refreshing BatchNorm", total)):
            if index >= limit or (samples is not None and seen >= samples):
                return
            seen += count_samples(batch)
            yield transferred(trainer, pl_module, batch, 0)

    def forward(batch: Any) -> Any:
        with trainer.precision_plugin.forward_context():
            return call_forward(pl_module, batch, input_key)

    with isolated_rng(loaders), torch.inference_mode(False), in_stage(trainer, "training"):
        return refresh_batchnorm(
            pl_module,
            batches,
            forward=forward,
            layers=layers,
            layerwise=layerwise,
            ranks=Ranks(
                lambda tensor: trainer.strategy.reduce(tensor, reduce_op="sum"),
                lambda work: agreed(trainer, work, "Reading training batches for BatchNorm"),
            ),
        )


def _most_batches(trainer: pl.Trainer) -> float:
    """How many training batches there are to take; loaders without an end are cut."""
    if 0 < trainer.num_training_batches < math.inf:
        return trainer.num_training_batches
    if trainer.num_training_batches <= 0 or trainer.train_dataloader is None:
        return math.inf  # not known before the first epoch, of loaders that have an end
    return min(_ENDLESS, trainer.val_check_batch or _ENDLESS)
