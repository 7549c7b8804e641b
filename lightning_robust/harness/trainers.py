"""Questions that techniques ask a Trainer, and what they refuse or warn of."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy


class NoEffectWarning(UserWarning):
    """A technique that was switched on changed or measured nothing."""


def is_sharded(trainer: pl.Trainer) -> bool:
    """Whether no rank holds whole weights."""
    return isinstance(trainer.strategy, FSDPStrategy | DeepSpeedStrategy | ModelParallelStrategy)


def refuse_sharded(trainer: pl.Trainer, technique: str, *, by_dtensors: bool = False) -> None:
    """Refuse strategies in which no rank holds whole weights.

    Args:
        trainer: The Trainer.
        technique: Its name, for the message.
        by_dtensors: Whether the technique works where parameters are DTensors, as under FSDP2, which torch's
            ``fully_shard`` makes in the module's ``configure_model`` under ModelParallelStrategy.

    Raises:
        MisconfigurationException: Under FSDP, DeepSpeed and model parallelism.
    """
    if by_dtensors and isinstance(trainer.strategy, ModelParallelStrategy):
        return
    if by_dtensors and is_sharded(trainer):
        raise MisconfigurationException(
            f"Expected a strategy that shards weights as DTensors, or none that shards, but got "
            f"{type(trainer.strategy).__name__}, which {technique} cannot work with. Use ModelParallelStrategy and "
            f"`fully_shard` in `configure_model` (FSDP2), strategy='ddp', or take {technique} out."
        )
    if is_sharded(trainer):
        raise MisconfigurationException(
            f"Expected a strategy in which each rank holds the whole model, but got "
            f"{type(trainer.strategy).__name__}, which {technique} cannot work with. Use strategy='ddp', or take "
            f"{technique} out of the callbacks."
        )


def find_callbacks(trainer: pl.Trainer, kind: Any) -> list[Any]:
    """The Trainer's callbacks of a class (or union of classes), in order."""
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in callbacks if isinstance(callback, kind)]


def monitored_metrics(trainer: pl.Trainer) -> set[str]:
    """The names of the metrics that callbacks (checkpoints, early stopping, soups) and schedulers monitor.

    Example:
        >>> from lightning.pytorch.callbacks import EarlyStopping
        >>> settings = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False}
        >>> monitored_metrics(pl.Trainer(callbacks=[EarlyStopping("parity/status")], **settings))
        {'parity/status'}
    """
    watchers = [*find_callbacks(trainer, pl.Callback), *trainer.lr_scheduler_configs]
    names = (getattr(watcher, "monitor", None) for watcher in watchers)
    return {name for name in names if isinstance(name, str)}


def is_fast_dev_run(trainer: pl.Trainer) -> bool:
    """Whether the Trainer only tries one batch of everything; the attribute is set outside its class's sight."""
    return bool(getattr(trainer, "fast_dev_run", False))


def shows_progress(trainer: pl.Trainer) -> bool:
    """Whether the Trainer has a progress bar that is switched on."""
    return not getattr(trainer.progress_bar_callback, "is_disabled", trainer.progress_bar_callback is None)


def data_module(trainer: pl.Trainer) -> pl.LightningDataModule | None:
    """The data module of the run, if it has one; the Trainer sets the attribute outside its class's sight."""
    return getattr(trainer, "datamodule", None)
