"""Weights in a checkpoint beside ``state_dict``, edited as the module's ``on_load_checkpoint`` edits those."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
from torch import Tensor
from typing_extensions import override

from lightning_robust.functional.averaging import State
from lightning_robust.functional.weights import awaits_first_pass
from lightning_robust.harness.closing import join_summary
from lightning_robust.harness.compat import version_of
from lightning_robust.harness.trainers import find_callbacks

EditWeights = Callable[[State], State]
"""Gives the edited form of a set of weights."""
_NAME = "on_load_checkpoint"


class WeightKeeper(pl.Callback):
    """A callback that has weights of its own in a checkpoint; it does to them what the module's hook does to its own.

    A module may migrate checkpoints of earlier versions in ``on_load_checkpoint``: rename, drop or replace tensors of
    ``state_dict``. Where it does, its hook is called once more for each further set of weights, on a checkpoint that
    holds these as ``state_dict``.
    """

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Wait for a checkpoint."""
        join_summary(trainer)
        if stage == "fit" and not _is_followed(pl_module, by=trainer):
            # past the bookkeeping that nn.Module does for parameters and submodules
            object.__setattr__(pl_module, _NAME, _LoadHook(trainer, pl_module))

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """There is no checkpoint: leave the module with its own hook."""
        if _is_followed(pl_module, by=trainer):
            object.__delattr__(pl_module, _NAME)

    def edit_weights(self, pl_module: pl.LightningModule, checkpoint: dict[str, Any], edit: EditWeights) -> None:
        """Replace the weights in the checkpoint by what ``edit`` makes of them."""
        raise NotImplementedError


class StartKeeper(WeightKeeper):
    """A callback that begins with the weights that training begins from."""

    _begun = False

    def begin(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep them, and refuse what cannot work with them."""
        raise NotImplementedError

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin, if all weights are there."""
        super().on_fit_start(trainer, pl_module)
        self._begun = False
        if not awaits_first_pass(pl_module):
            self._begin(trainer, pl_module)

    @override
    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """The same for a module whose weights come into being in its first forward pass."""
        if not self._begun:
            self._begin(trainer, pl_module)

    def _begin(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begun = True
        self.begin(trainer, pl_module)


def _is_followed(module: pl.LightningModule, *, by: pl.Trainer) -> bool:
    """Whether a checkpoint is waited for; a fit that failed before may have left a hook of its own Trainer's."""
    hook = vars(module).get(_NAME)
    return isinstance(hook, _LoadHook) and hook.trainer is by


class _LoadHook:
    """Stands for the module's hook."""

    def __init__(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.trainer, self._module = trainer, module
        previous = module.on_load_checkpoint
        self._hook: Callable[[dict[str, Any]], None] = previous._hook if isinstance(previous, _LoadHook) else previous

    def __call__(self, checkpoint: dict[str, Any]) -> None:
        object.__delattr__(self._module, _NAME)
        if "state_dict" not in checkpoint:  # sharded training has loaded the weights itself
            self._hook(checkpoint)
            return
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

        for callback in find_callbacks(self.trainer, WeightKeeper):
            callback.edit_weights(self._module, checkpoint, edit)


def _shallow_copy(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """A copy in which entries can be added, replaced and removed, also those of its dictionaries."""
    return {key: dict(value) if isinstance(value, dict) else value for key, value in checkpoint.items()}


def _marks(state: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """What tells whether a tensor was replaced or changed in place."""
    return {name: (id(value), version_of(value)) for name, value in state.items()}
