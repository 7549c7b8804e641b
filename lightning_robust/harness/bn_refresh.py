"""BatchNorm statistics of the present weights, taken from the Trainer's training batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.data import extract_batch_size
from torch import nn

from lightning_robust.functional.batchnorm import refresh_batchnorm
from lightning_robust.harness.batches import combined, training_loaders, transferred
from lightning_robust.harness.quiet import in_stage, isolated_rng
from lightning_robust.structures import Key, get_args


def refresh_statistics(
    trainer: pl.Trainer,
    pl_module: pl.LightningModule,
    *,
    input_key: Key | list[Key] = 0,
    layers: list[nn.Module] | None = None,
    layerwise: bool = False,
    samples: int | None = None,
) -> int:
    """Exact BatchNorm statistics from the Trainer's training batches, as training sees them (augmented).

    Random numbers are drawn from a fixed seed and put back afterwards: the same weights give the same statistics.

    Args:
        trainer: The Trainer.
        pl_module: The module.
        input_key: Which part of a batch goes into ``forward``; a list gives several arguments.
        layers: As in :func:`~lightning_robust.functional.batchnorm.refresh_batchnorm`.
        layerwise: One pass for each layer, exact at any depth; also as there.
        samples: Use only about so many training samples on each rank; all if None.

    Returns:
        The number of layers refreshed.
    """
    loaders = training_loaders(trainer, pl_module)

    def batches() -> Iterator[Any]:
        torch.manual_seed(0)
        seen = 0
        for index, (batch, _, _) in enumerate(combined(loaders)):
            if index >= trainer.num_training_batches > 0 or (samples is not None and seen >= samples):
                return
            seen += extract_batch_size(batch)
            yield transferred(trainer, pl_module, batch, 0)

    def forward(batch: Any) -> Any:
        with trainer.precision_plugin.forward_context():
            return pl_module(*get_args(batch, input_key))

    with isolated_rng(loaders), torch.inference_mode(False), in_stage(trainer, "training"):
        return refresh_batchnorm(
            pl_module,
            batches,
            forward=forward,
            layers=layers,
            layerwise=layerwise,
            reduce=lambda tensor: trainer.strategy.reduce(tensor, reduce_op="sum"),
        )
