"""Batches of the Trainer outside of its loops, and the BatchNorm statistics that training batches give.

What is measured on them stands elsewhere.
"""

from __future__ import annotations

import copy
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.data import extract_batch_size
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn
from torch.utils.data import DataLoader

from lightning_robust.functional.batchnorm import refresh_batchnorm
from lightning_robust.functional.pixels import PixelSpace
from lightning_robust.structures import Key, get_args, map_tensors, tensors_in

Batch = tuple[int, Any, int, int]
"""Number of samples, the batch after transfer, its position, and that of its loader."""


@contextmanager
def isolated_rng(loaders: Any = None) -> Iterator[None]:
    """Random numbers drawn inside the block do not count, also after an error in it.

    Args:
        loaders: Structure of loaders whose own generators come back as well.
    """
    generators = [(generator, generator.get_state()) for generator in _generators(loaders)]
    isolation = isolate_rng()
    isolation.__enter__()
    try:
        yield
    finally:
        # Lightning's own does not come to its end when an error passes through it
        isolation.__exit__(None, None, None)
        for generator, state in generators:
            generator.set_state(state)


@contextmanager
def stage(trainer: pl.Trainer, stage: str) -> Iterator[None]:
    """The Trainer says that it is training (or validating), which data modules augment by."""
    before = trainer.state.stage
    setattr(trainer, stage, True)
    try:
        yield
    finally:
        trainer.state.stage = before


def _generators(loaders: Any) -> Iterator[torch.Generator]:
    """Those that loaders and their samplers draw from, other than torch's global one."""
    if isinstance(loaders, Mapping):
        loaders = list(loaders.values())
    if isinstance(loaders, list | tuple):
        for loader in loaders:
            yield from _generators(loader)
        return
    for owner in (loaders, getattr(loaders, "sampler", None)):
        generator = getattr(owner, "generator", None)
        if isinstance(generator, torch.Generator):
            yield generator


def twins(loaders: Any) -> Any:
    """Copies of loaders, so that the iterators and counters of the ones in use are left alone."""
    if isinstance(loaders, Mapping):
        return {key: twins(loader) for key, loader in loaders.items()}
    if isinstance(loaders, list | tuple):
        return [twins(loader) for loader in loaders]
    if type(loaders) is DataLoader and loaders.persistent_workers:
        return DataLoader(
            loaders.dataset,
            batch_sampler=loaders.batch_sampler,
            num_workers=loaders.num_workers,
            collate_fn=loaders.collate_fn,
            worker_init_fn=loaders.worker_init_fn,
            multiprocessing_context=loaders.multiprocessing_context,
        )
    return copy.copy(loaders)


def _training_loaders(trainer: pl.Trainer, pl_module: pl.LightningModule) -> Any:
    if trainer.train_dataloader is not None:
        return trainer.train_dataloader
    # loaders given to `fit` are not public before its loop begins
    given = trainer.fit_loop._data_source.instance
    if given is not None and not isinstance(given, (pl.LightningModule, pl.LightningDataModule)):
        return given
    data = _data_module(trainer)
    if data is not None and is_overridden("train_dataloader", data):
        data.setup("fit")
        return data.train_dataloader()
    if is_overridden("train_dataloader", pl_module):
        return pl_module.train_dataloader()
    raise ValueError(
        "Expected a training loader, but there is none: neither in the data module, nor in the module, nor given to "
        "`fit`. Without one, BatchNorm statistics are not to be had (bn_refresh=False)."
    )


def _combined(loaders: Any) -> CombinedLoader:
    """Twins of the training loaders as Lightning combines them."""
    return (
        copy.copy(loaders) if isinstance(loaders, CombinedLoader) else CombinedLoader(twins(loaders), "max_size_cycle")
    )


def first_training_batch(trainer: pl.Trainer, pl_module: pl.LightningModule) -> Any:
    """The first batch that training would get, before transfer; also before the loop has begun."""
    loaders = _training_loaders(trainer, pl_module)
    with isolated_rng(loaders), stage(trainer, "training"):
        batch, *_ = next(iter(_combined(loaders)))
        return batch


def transferred(trainer: pl.Trainer, module: pl.LightningModule, batch: Any, loader: int) -> Any:
    """The batch after the transfer hooks of the data module or the module."""
    batch = trainer.precision_plugin.convert_input(batch)
    data = _data_module(trainer)
    owner = data if data is not None and is_overridden("on_before_batch_transfer", data) else module
    batch = owner.on_before_batch_transfer(batch, loader)
    return trainer.strategy.batch_to_device(batch, dataloader_idx=loader)


class HeldBatches:
    """Batches in memory, to be gone through again and again.

    Args:
        batches: Them.
        size: Their bytes.
    """

    def __init__(self, batches: list[Batch], size: int) -> None:
        self._batches, self.size = batches, size
        self._versions = [[tensor._version for tensor in tensors_in(batch)] for _, batch, _, _ in batches]

    @classmethod
    def gather(cls, batches: Iterable[Batch], limit: int) -> HeldBatches | None:
        """All of them, or None if they take more than so many bytes; then only so many are ever held."""
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
        now = [[tensor._version for tensor in tensors_in(batch)] for _, batch, _, _ in self._batches]
        return now == self._versions


def validation_batches(trainer: pl.Trainer, pl_module: pl.LightningModule) -> Generator[Any, None, None]:
    """Batches of the first validation loader after transfer, from its beginning."""
    loaders = CombinedLoader(twins(trainer.val_dataloaders), "sequential")
    loaders.limits = list(trainer.num_val_batches)
    with isolated_rng(trainer.val_dataloaders), stage(trainer, "validating"):
        for batch, _, loader in loaders:
            if loader > 0:
                return
            yield transferred(trainer, pl_module, batch, loader)


def pixel_space(
    trainer: pl.Trainer | None,
    mean: float | list[float] | None,
    std: float | list[float] | None,
    low: float = 0.0,
    high: float = 1.0,
) -> PixelSpace:
    """How inputs were normalised: as given, or as the data module says by ``mean`` and ``std``, or not at all."""
    data = None if trainer is None else _data_module(trainer)
    mean = mean if mean is not None else getattr(data, "mean", 0.0)
    std = std if std is not None else getattr(data, "std", 1.0)
    return PixelSpace(mean, std, low, high)


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
        layerwise: Likewise.
        samples: Use only about so many training samples on each rank; all if None.

    Returns:
        The number of layers refreshed.
    """
    loaders = _training_loaders(trainer, pl_module)

    def batches() -> Iterator[Any]:
        torch.manual_seed(0)
        seen = 0
        for index, (batch, _, _) in enumerate(_combined(loaders)):
            if index >= trainer.num_training_batches > 0 or (samples is not None and seen >= samples):
                return
            seen += extract_batch_size(batch)
            yield transferred(trainer, pl_module, batch, 0)

    def forward(batch: Any) -> Any:
        with trainer.precision_plugin.forward_context():
            return pl_module(*get_args(batch, input_key))

    with isolated_rng(loaders), torch.inference_mode(False), stage(trainer, "training"):
        return refresh_batchnorm(
            pl_module,
            batches,
            forward=forward,
            layers=layers,
            layerwise=layerwise,
            reduce=lambda tensor: trainer.strategy.reduce(tensor, reduce_op="sum"),
        )


def _data_module(trainer: pl.Trainer) -> pl.LightningDataModule | None:
    """The Trainer sets the attribute outside its class's sight."""
    return getattr(trainer, "datamodule", None)
