"""Weights in a checkpoint beside ``state_dict``, edited as the module's ``on_load_checkpoint`` edits those."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import lightning.pytorch as pl
from torch import Tensor

from lightning_robust.functional.averaging import State
from lightning_robust.harness.compat import version_of
from lightning_robust.harness.trainers import find_callbacks

_NAME = "on_load_checkpoint"


@runtime_checkable
class KeepsWeights(Protocol):
    """A callback with weights of its own in a checkpoint."""

    def edit_weights(
        self, pl_module: pl.LightningModule, checkpoint: dict[str, Any], edit: Callable[[State], State]
    ) -> None:
        """Replace them by what ``edit`` makes of them."""


def follow_load_hook(trainer: pl.Trainer, module: pl.LightningModule) -> None:
    """Until :func:`unfollow_load_hook`, do to the weights of all callbacks what the module's hook does to its own.

    A hook may migrate checkpoints of earlier versions: rename, drop or replace tensors of ``state_dict``. Where it
    does, it is called once more for each further set of weights, on a checkpoint that holds these as ``state_dict``.

    Args:
        trainer: The Trainer.
        module: The module.
    """
    if not isinstance(vars(module).get(_NAME), _LoadHook):
        # past the bookkeeping that nn.Module does for parameters and submodules
        object.__setattr__(module, _NAME, _LoadHook(trainer, module))


def unfollow_load_hook(module: pl.LightningModule) -> None:
    """Leave the module with its own hook."""
    if isinstance(vars(module).get(_NAME), _LoadHook):
        object.__delattr__(module, _NAME)


class _LoadHook:
    """Stands for the module's hook."""

    def __init__(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._trainer, self._module, self._hook = trainer, module, module.on_load_checkpoint

    def __call__(self, checkpoint: dict[str, Any]) -> None:
        before = _shallow_copy(checkpoint)
        state: State = before["state_dict"]
        marks = _marks(state)
        # edits in place must not reach what the other sets of weights are completed from
        originals = {name: tensor.clone() for name, tensor in state.items() if isinstance(tensor, Tensor)}
        self._hook(checkpoint)
        if _marks(checkpoint["state_dict"]) == marks:
            return

        def edit(weights: State) -> State:
            complete = {**originals, **{name: tensor.clone() for name, tensor in weights.items()}}
            twin = {**_shallow_copy(before), "state_dict": complete}
            self._hook(twin)
            return dict(twin["state_dict"])

        for callback in find_callbacks(self._trainer, KeepsWeights):
            callback.edit_weights(self._module, checkpoint, edit)


def _shallow_copy(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """A copy in which entries can be added, replaced and removed, also those of its dictionaries."""
    return {key: dict(value) if isinstance(value, dict) else value for key, value in checkpoint.items()}


def _marks(state: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """What tells whether a tensor was replaced or changed in place."""
    return {name: (id(value), version_of(value)) for name, value in state.items()}
