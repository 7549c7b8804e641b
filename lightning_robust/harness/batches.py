"""Batches of the Trainer's loaders outside of its loops, whose own iterators are left alone."""

from __future__ import annotations

import copy
from collections.abc import Generator, Mapping
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DataLoader

from lightning_robust.harness.compat import combined_in_fit, forget_workers, loaders_given_to_fit, mode_of, overrides
from lightning_robust.harness.quiet import in_stage, isolated_rng
from lightning_robust.harness.trainers import data_module
from lightning_robust.structures import tensors_in


def validation_batches(trainer: pl.Trainer, pl_module: pl.LightningModule) -> Generator[Any, None, None]:
    """Batches of the first validation loader after transfer, from its beginning."""
    loaders = CombinedLoader(copied(trainer.val_dataloaders), "sequential")
    loaders.limits = list(trainer.num_val_batches)
    with isolated_rng(trainer.val_dataloaders), in_stage(trainer, "validating"):
        for batch, _, loader in loaders:
            if loader > 0:
                return
            yield transferred(trainer, pl_module, batch, loader)


def first_training_batch(trainer: pl.Trainer, pl_module: pl.LightningModule) -> Any:
    """The first batch that training would get, before transfer; also before the loop has begun."""
    with isolated_rng():
        loaders = training_loaders(trainer, pl_module)
    with isolated_rng(loaders), in_stage(trainer, "training"):
        batch, *_ = next(iter(combined(loaders)))
        return batch


def training_loaders(trainer: pl.Trainer, pl_module: pl.LightningModule) -> Any:
    """The training loaders, from where Lightning takes them: ``fit``, the data module, the module.

    Raises:
        ValueError: If there are none.
    """
    begun = combined_in_fit(trainer)
    if begun is not None:
        return begun
    loaders = loaders_given_to_fit(trainer)
    if loaders is not None:
        return loaders
    data = data_module(trainer)
    if data is not None and overrides(data, "train_dataloader"):
        if trainer.state.fn != "fit":  # else Lightning has called it, and what it draws would be drawn anew
            data.setup("fit")
        return data.train_dataloader()
    if overrides(pl_module, "train_dataloader"):
        return pl_module.train_dataloader()
    raise ValueError(
        "Expected a training loader, but neither the data module nor the module has one, and none was given to `fit`. "
        "Give one, or set bn_refresh=False where BatchNorm statistics are refreshed."
    )


def transferred(trainer: pl.Trainer, module: pl.LightningModule, batch: Any, loader: int) -> Any:
    """The batch after the transfer hooks of the data module or the module."""
    batch = trainer.precision_plugin.convert_input(batch)
    data = data_module(trainer)
    owner = data if data is not None and overrides(data, "on_before_batch_transfer") else module
    batch = owner.on_before_batch_transfer(batch, loader)
    return trainer.strategy.batch_to_device(batch, dataloader_idx=loader)


def count_samples(batch: Any) -> int:
    """The number of samples in a batch: what a batch object says, else the first size of its first tensor, else 1.

    Example:
        >>> import torch
        >>> count_samples({"image": torch.zeros(5, 3), "name": "road"}), count_samples("text")
        (5, 1)
    """
    for name in ("num_graphs", "batch_size"):
        count = getattr(batch, name, None)
        if isinstance(count, int):
            return count
    sized = [tensor for tensor in tensors_in(batch) if tensor.ndim > 0]
    return len(sized[0]) if sized else 1


def combined(loaders: Any) -> CombinedLoader:
    """Copies of training loaders, combined as they are, or as Lightning combines them: short ones begin again."""
    if isinstance(loaders, CombinedLoader):
        return CombinedLoader(copied(loaders.iterables), mode_of(loaders))
    return CombinedLoader(copied(loaders), "max_size_cycle")


def copied(loaders: Any) -> Any:
    """Copies of a structure of loaders over the same data, with iterators and workers of their own.

    Raises:
        ValueError: For an iterator in place of a loader.
    """
    if isinstance(loaders, Mapping):
        return {key: copied(loader) for key, loader in loaders.items()}
    if isinstance(loaders, list | tuple):
        return [copied(loader) for loader in loaders]
    if hasattr(loaders, "__next__"):
        raise ValueError(
            f"Expected a loader that can begin anew, but got a {type(loaders).__name__}, of which every batch taken is "
            "lost to training. Give a DataLoader or another object whose `__iter__` begins from the start; or set "
            "bn_refresh=False where BatchNorm statistics are refreshed."
        )
    twin = copy.copy(loaders)
    if isinstance(twin, DataLoader):
        forget_workers(twin)
    return twin
