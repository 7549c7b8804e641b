"""What techniques ask of a Trainer before they start: strategies they refuse, warnings they share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy


class NoEffectWarning(UserWarning):
    """A technique that was switched on changed or measured nothing."""


class Replaced:
    """A method or attribute of one instance that something else stands in for, until :meth:`restore`.

    Args:
        thing: The instance; its class is left alone.
        name: Of the attribute.
        value: What stands in for it.
    """

    def __init__(self, thing: Any, name: str, value: Any) -> None:
        self._name, self._own = name, vars(thing).get(name)
        # past the bookkeeping that nn.Module does for parameters and submodules
        object.__setattr__(thing, name, value)

    def restore(self, thing: Any) -> None:
        """Leave the instance as it was."""
        if self._own is None:
            object.__delattr__(thing, self._name)
        else:
            object.__setattr__(thing, self._name, self._own)


@contextmanager
def replaced(thing: Any, name: str, value: Any) -> Iterator[None]:
    """An attribute of the instance, inside the block."""
    stand_in = Replaced(thing, name, value)
    try:
        yield
    finally:
        stand_in.restore(thing)


def refuse_sharded(trainer: pl.Trainer, technique: str) -> None:
    """Refuse strategies in which no rank holds whole weights.

    Raises:
        MisconfigurationException: Under FSDP, DeepSpeed and model parallelism.
    """
    if isinstance(trainer.strategy, FSDPStrategy | DeepSpeedStrategy | ModelParallelStrategy):
        raise MisconfigurationException(
            f"Expected a strategy in which each rank holds the whole model, but got "
            f"{type(trainer.strategy).__name__}, which {technique} cannot work with. Use strategy='ddp', or take "
            f"{technique} out of the callbacks."
        )


def find_callbacks(trainer: pl.Trainer, kind: Any) -> list[Any]:
    """The Trainer's callbacks of a class (or union of classes), in order."""
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in callbacks if isinstance(callback, kind)]


def is_fast_dev_run(trainer: pl.Trainer) -> bool:
    """Whether the Trainer only tries one batch of everything; the attribute is set outside its class's sight."""
    return bool(getattr(trainer, "fast_dev_run", False))
