"""A module in training beside the averages of its weights: updates, validates, exchanges and saves them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, Literal

import lightning.pytorch as pl
from torch import Tensor, nn

from lightning_robust.callbacks.averaging.averages import MAIN, ScheduledAverage
from lightning_robust.callbacks.averaging.parts import beside, pack
from lightning_robust.functional.batchnorm import batchnorm_layers
from lightning_robust.functional.weights import Weights
from lightning_robust.harness.bn_refresh import refresh_statistics
from lightning_robust.harness.checkpoints import RAW_KEY
from lightning_robust.harness.compat import batch_in_epoch, writes_parts
from lightning_robust.harness.evaluate import Evaluator
from lightning_robust.harness.inputs import require_inputs
from lightning_robust.harness.memory import require_reversible, require_weights
from lightning_robust.harness.ranks import Guard
from lightning_robust.harness.replacement import Replacement
from lightning_robust.harness.trainers import NoEffectWarning, is_sharded
from lightning_robust.structures import Key


class AveragedModule:
    """The module holds the raw weights to train on, and the main average to be validated, saved and returned.

    Exchanging them moves no data. While it is open, weights-only checkpoints hold the average too.

    Args:
        trainer: The Trainer, at the start of training.
        pl_module: The module; it holds the raw weights.
        averages: Averages by name.
        guard: Warns where an average cannot be validated or its statistics cannot be recomputed.
        bn_refresh: Recompute the BatchNorm statistics of averages, see
            :class:`~lightning_robust.callbacks.averaging.callback.SWACallback`.
        bn_samples: Number of training samples for that; all if None.
        input_key: Which part of a batch goes into ``forward`` for that.

    Raises:
        ValueError: If the module has nothing to average.
        MisconfigurationException: If a validation of other weights would leave a trace that cannot be undone.
    """

    def __init__(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        averages: Mapping[str, ScheduledAverage],
        guard: Guard,
        bn_refresh: bool | Literal["layerwise"],
        bn_samples: int | None,
        input_key: Key | list[Key] | None,
    ) -> None:
        require_reversible(pl_module)
        require_weights(pl_module, "SWACallback")
        # the Trainer is not held, so that the callback can be copied and pickled
        self._module = pl_module
        self._averages, self._main, self._guard = averages, averages[MAIN], guard
        self._weights = Weights(pl_module)
        self._raw: list[Tensor] | None = None
        self._step = trainer.global_step
        for average in averages.values():
            average.begin_training(trainer, self._weights.tensors())
        self._all_layers = batchnorm_layers(pl_module) if bn_refresh else []
        self._layers = self._trained_layers()
        layerwise = bn_refresh == "layerwise"
        self._settings: dict[str, Any] = {"input_key": input_key, "layerwise": layerwise, "samples": bn_samples}
        if bn_refresh and not self._all_layers:
            guard.warn(
                f"bn_refresh={bn_refresh} has nothing to refresh: {type(pl_module).__name__} has no BatchNorm "
                "layer. Averaging goes on; set bn_refresh to false to say so.",
                NoEffectWarning,
                key="bn_refresh",
            )
        self._saving: list[tuple[object, Replacement]]
        self._saving = [(pl_module, Replacement(pl_module, "on_save_checkpoint", self._with_average(trainer)))]
        if writes_parts(trainer.strategy):
            strategy = trainer.strategy
            self._saving.append((strategy, Replacement(strategy, "save_checkpoint", beside(trainer))))

    @property
    def names(self) -> list[str]:
        """Names of the averaged tensors."""
        return self._weights.names

    def begin_batch(self, trainer: pl.Trainer, batch: Any, batch_idx: int) -> None:
        """Begin the averages whose time has come.

        Raises:
            MisconfigurationException: If BatchNorm is to be refreshed, and the batch has no inputs for ``forward``.
        """
        if batch_idx == 0 and self._layers:
            require_inputs(self._module, batch, self._settings["input_key"], "SWACallback")
        for average in self._averages.values():
            average.begin_batch(trainer, batch_idx)

    def end_batch(self, trainer: pl.Trainer) -> None:
        """Update the averages that are due: where the optimizer has stepped, and where an epoch ends."""
        if batch_in_epoch(trainer) == 0:  # hooks and steps of the module have set the modes by now
            self._layers = self._trained_layers()
        if trainer.global_step == self._step and not trainer.is_last_batch:
            return
        self._step = trainer.global_step
        for average in self._averages.values():
            if average.is_due(trainer):
                average.update(trainer, self._weights.tensors())

    def measure(self, trainer: pl.Trainer, *, raw: bool) -> dict[str, float]:
        """Validation metrics of the further averages, and of the raw weights beside the main average.

        Args:
            trainer: The Trainer.
            raw: Whether to validate the raw weights.

        Returns:
            Metrics by tag, ``swa/<name>/<metric>``.
        """
        metrics = self._validate(trainer, "raw") if raw and self._main.exists else {}
        for name, average in self._averages.items():
            if average is not self._main and average.exists:
                self._refresh(trainer, average)
                with self._weights.exchanged(average.values):
                    metrics |= self._validate(trainer, name)
        return metrics

    def put_average(self, trainer: pl.Trainer, *, refresh: bool = True) -> None:
        """The module holds the main average, if there is a snapshot, until :meth:`put_raw`.

        Args:
            trainer: The Trainer.
            refresh: Whether to recompute BatchNorm statistics.
        """
        if self._main.exists and self._raw is None:
            if refresh:
                self._refresh(trainer, self._main)
            self._raw = self._weights.put(self._main.values)

    def put_raw(self) -> None:
        """The module holds the raw weights again."""
        if self._raw is not None:
            self._weights.restore(self._raw)
            self._raw = None

    def averaged_state(self, trainer: pl.Trainer, present: dict[str, Any]) -> dict[str, Any]:
        """The module's state dict with the main average, ``present`` being its state dict now."""
        if self._raw is not None or not self._main.exists:
            return present
        self._refresh(trainer, self._main)
        return self._weights.state_dict(self._main.values, trainer.strategy.lightning_module_state_dict)

    def raw_state(self, trainer: pl.Trainer, present: dict[str, Any]) -> dict[str, Any]:
        """The module's state dict with the raw weights, ``present`` being its state dict now."""
        if self._raw is None:
            return present
        return self._weights.state_dict(self._raw, trainer.strategy.lightning_module_state_dict)

    def add_to(self, trainer: pl.Trainer, checkpoint: dict[str, Any], saved: Mapping[str, Any]) -> None:
        """Put the average into a checkpoint as ``state_dict``, and the raw weights beside it.

        Args:
            trainer: The Trainer.
            checkpoint: Holds the module as it is now.
            saved: What the callback has put into it.
        """
        if self._main.exists:
            present = checkpoint["state_dict"]
            checkpoint["state_dict"] = self.averaged_state(trainer, present)
            checkpoint[RAW_KEY] = self.raw_state(trainer, present)
        if is_sharded(trainer):
            pack(trainer, self._weights, saved, checkpoint)

    def close(self) -> None:
        """Leave the module without hooks; it holds the weights that it holds."""
        while self._saving:
            thing, replacement = self._saving.pop()
            replacement.restore(thing)

    def _trained_layers(self) -> list[nn.Module]:
        """The BatchNorm layers whose statistics training changes, as hooks may freeze and unfreeze them by epoch."""
        return [layer for layer in self._all_layers if layer.training]

    def _validate(self, trainer: pl.Trainer, name: str) -> dict[str, float]:
        """Metrics of the weights that the module holds."""
        metrics: dict[str, float] = self._guard.attempt(
            trainer,
            lambda: Evaluator(trainer, self._module).metrics(),
            f"swa/{name} could not be measured; training goes on",
            default={},
            once=True,
        )
        return {f"swa/{name}/{key}": value for key, value in metrics.items()}

    def _refresh(self, trainer: pl.Trainer, average: ScheduledAverage) -> None:
        """Recompute the BatchNorm statistics of an average that has changed since the last time."""
        if not self._layers or average.fresh:
            return
        with self._weights.exchanged(average.values):
            self._guard.attempt(
                trainer,
                lambda: refresh_statistics(trainer, self._module, layers=self._layers, **self._settings),
                "BatchNorm statistics could not be refreshed, and their averages are used. Set `input_key` to what "
                "`forward` takes, or bn_refresh to false",
                once=True,
            )
            self._weights.read_buffers(average.values)
        average.fresh = True

    def _with_average(self, trainer: pl.Trainer) -> Callable[[dict[str, Any]], None]:
        """The module's hook for saving; when only weights are saved, Lightning calls it and no callback's."""
        original = self._module.on_save_checkpoint

        def on_save_checkpoint(checkpoint: dict[str, Any]) -> None:
            if "callbacks" not in checkpoint:
                checkpoint["state_dict"] = self.averaged_state(trainer, checkpoint["state_dict"])
            original(checkpoint)

        return on_save_checkpoint


def repeat_as_raw(metrics: MutableMapping[str, Any]) -> None:
    """Before the first snapshot: monitors find the key from the first epoch on; it is logged under its plain name."""
    metrics.update({f"swa/raw/{key}": value for key, value in list(metrics.items()) if not key.startswith("swa/")})
