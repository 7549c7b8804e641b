"""SWACallback: averages of the weights beside the module, validated, saved and returned instead of the raw ones."""

from __future__ import annotations

from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from torch.optim import Optimizer
from typing_extensions import override

from lightning_robust.callbacks.averaging.averaged_module import AveragedModule, repeat_as_raw
from lightning_robust.callbacks.averaging.averages import MAIN, ScheduledAverage, edit_averages, plan_averages
from lightning_robust.callbacks.averaging.complete_run import HoldsAverageOfCompleteRun
from lightning_robust.callbacks.averaging.learning_rate import CyclicRate
from lightning_robust.callbacks.averaging.swalp.low_precision import LowPrecision
from lightning_robust.functional.averaging import Kind
from lightning_robust.harness.closing import note_weights
from lightning_robust.harness.compat import batches_before
from lightning_robust.harness.load_hook import EditWeights
from lightning_robust.harness.ranks import Guard
from lightning_robust.harness.trainers import NoEffectWarning, find_callbacks, is_sharded, refuse_sharded


class SWACallback(HoldsAverageOfCompleteRun):
    r"""Average the weights over training: SWA, exponential (EMA), or the last few snapshots (LAWA).

    With the weights :math:`w_i` at the end of each cycle from ``start`` on, the last one included,

    .. math:: w_\text{SWA} = \frac1n \sum_{i=1}^n w_i

    (`Izmailov et al. 2018 <https://arxiv.org/abs/1803.05407>`_). **The weights that are validated are the weights that
    are saved, tested and returned**: from the first snapshot on, validation runs on the average, every checkpoint
    (``save_weights_only`` ones too) holds it as ``state_dict``, and the module holds it at the end, also after an early
    stop or an error. Full checkpoints keep the raw weights under ``"raw_state_dict"``, from which training resumes bit
    for bit; :func:`~lightning_robust.load_averaged` reads either without a Trainer. Resuming without this callback
    would train on from the average; Lightning then warns that the callback is missing.

    BatchNorm statistics of an average are recomputed from the training data before it is validated, saved or returned,
    exactly (see :func:`~lightning_robust.functional.batchnorm.refresh_batchnorm`), and only when it has changed. Frozen
    layers are left alone, integer buffers copied.

    Logged: the plain validation metrics are those of the average once there is one. Beside them, and to be monitored
    alike, ``swa/raw/<metric>`` of the raw weights, ``swa/<name>/<metric>`` of further averages, ``swa/snapshots``, and
    at the end a figure of each watched metric over the epochs.

    Cost: one fp32 copy of the weights for each average, one pass over them for an update. Each validation takes a pass
    over the training data for BatchNorm (if there is any), and one validation pass for each further set of weights.

    Args:
        kind: ``"uniform"`` (SWA), ``"ema"`` or ``"lawa"``.
        start: When to begin: below 1 a fraction of the run, from 1 whole epochs, or ``"500 steps"``.
        every: When to update: at the end of each ``"epoch"``, or every so many optimizer steps.
        lr: Learning rate from ``start`` on, overriding the user's schedule: a number, or ``[high, low]`` for linear
            cycles from one snapshot to the next. None leaves the schedule alone. Groups keep the ratios of their rates.
        half_life: For ``"ema"``: in optimizer steps, or ``"2 epochs"``. Weights count half after it, however often the
            average is updated. A decay ``d`` a step is a half-life of ``ln 0.5 / ln d``: 0.999 is 693 steps.
        window: For ``"lawa"``: how many snapshots; each is a copy in memory.
        bn_refresh: Recompute BatchNorm statistics: in one pass, ``"layerwise"`` (exact at any depth, one pass for each
            layer), or not at all, which leaves their averages.
        bn_samples: Training samples on each rank to recompute them from, rounded up to whole batches; all if None.
        input_key: Which part of a batch goes into ``forward`` for that: position or name; a list for several
            arguments. None infers it from the signature of ``forward``.
        compare_raw: Validate the raw weights too.
        also: Further averages by name, each with its own ``kind``, ``start``, ``every``, ``half_life``, ``window``;
            ``start`` and ``every`` default to those above.
        dtype: Type of the averages.
        word_length: Train in block floating point of so many bits (SWALP, 8 in the paper) from the first step; the
            average stays in ``dtype`` and is validated with full-precision activations.

    Raises:
        ValueError: For arguments out of range.
        MisconfigurationException: Where no rank has the whole model, beside another averaging callback, or for a
            fraction of a run without an end.

    Example:
        >>> swa = SWACallback(start=0.75, lr=0.01)
        >>> last3 = {"kind": "lawa", "window": 3}
        >>> ema = SWACallback("ema", start=0, every=1, half_life="0.5 epochs", also={"last3": last3})
        >>> trainer = pl.Trainer(callbacks=[ema], logger=False, enable_checkpointing=False)
    """

    def __init__(
        self,
        kind: Kind = "uniform",
        *,
        start: float | str = 0.75,
        every: int | Literal["epoch"] = "epoch",
        lr: float | list[float] | None = None,
        half_life: float | str | None = None,
        window: int | None = None,
        bn_refresh: bool | Literal["layerwise"] = True,
        bn_samples: int | None = None,
        input_key: int | str | list[int | str] | None = None,
        compare_raw: bool = True,
        also: dict[str, dict[str, Any]] | None = None,
        dtype: Literal["float32", "float64", "bfloat16"] = "float32",
        word_length: int | None = None,
    ) -> None:
        super().__init__()
        self.kind, self.start, self.every, self.lr, self.half_life = kind, start, every, lr, half_life
        self.window, self.bn_refresh, self.bn_samples, self.input_key = window, bn_refresh, bn_samples, input_key
        self.compare_raw, self.also, self.dtype, self.word_length = compare_raw, also, dtype, word_length
        self._rate = None if lr is None else CyclicRate(lr)
        self._averages = _planned(self)
        self._low = None if word_length is None else LowPrecision(word_length)
        self._averaged: AveragedModule | None = None
        self._resumed = False
        self._metrics: dict[str, float] = {}
        self._guard = Guard("SWACallback")

    @property
    def main(self) -> ScheduledAverage:
        """The average that is validated, saved and returned."""
        return self._averages[MAIN]

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Begin with new averages, and make weights-only files hold the average too."""
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        refuse_sharded(trainer, "SWACallback", by_dtensors=True)
        if is_sharded(trainer) and self.bn_refresh == "layerwise":
            raise MisconfigurationException(
                "Expected bn_refresh=true or false under a strategy that shards weights, but got 'layerwise', whose "
                "forward passes end at a layer, while FSDP2 waits for their end. Use true: one pass for all layers."
            )
        _refuse_others(trainer)
        self._averages, self._averaged, self._resumed = _planned(self), None, False
        self._rate = None if self.lr is None else CyclicRate(self.lr)

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Prepare the averages for the module, and begin low-precision training."""
        super().on_train_start(trainer, pl_module)
        self._averaged = AveragedModule(
            trainer, pl_module, self._averages, self._guard, self.bn_refresh, self.bn_samples, self.input_key
        )
        if self._low is not None:
            self._low.attach(pl_module, trainer, resumed=self._resumed)

    @override
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begin averages whose time has come, and set the learning rate."""
        if self._averaged is not None:
            self._averaged.begin_batch(trainer, batch, batch_idx)
        if self._low is not None:
            self._low.begin_step(batches_before(trainer) + 1)
        if self._rate is not None and self.main.started is not None:
            self._rate.apply(trainer, self.main)

    @override
    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Round gradients, if training is in low precision."""
        if self._low is not None:
            self._low.round_gradients(optimizer)

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the averages that are due, if the optimizer has stepped."""
        if self._averaged is not None:
            self._averaged.end_batch(trainer)

    @override
    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Validate the raw weights and further averages, then exchange the weights for the average."""
        self._metrics = {}
        if _validates_in_fit(trainer) and self._averaged is not None:
            self._metrics = self._averaged.measure(trainer, raw=self.compare_raw)
            self._averaged.put_average(trainer)

    @override
    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the metrics of the raw weights and further averages."""
        if not _validates_in_fit(trainer):
            return
        if self.main.exists:
            metrics = {**self._metrics, "swa/snapshots": float(self.main.running.count)}
            pl_module.log_dict(metrics, sync_dist=True, add_dataloader_idx=False)
        elif self.compare_raw:
            repeat_as_raw(trainer.callback_metrics)

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restore the raw weights to train on."""
        if _validates_in_fit(trainer):
            self.keep_validation(trainer, self._metrics, averaged=self.main.exists)
        if trainer.state.fn == "fit" and self._averaged is not None:
            self._averaged.put_raw()

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the average in the module, and draw."""
        if self._low is not None:
            self._low.detach()
        if self.main.exists and self._averaged is not None:
            self._averaged.put_average(trainer)
            note_weights(trainer, f"the average of {(n := self.main.running.count)} snapshot{'s' * (n > 1)}", "swa")
        else:
            reason = f"start={self.start!r} with every={self.every!r} was not reached by step {trainer.global_step}"
            advice = "The weights are left as trained; begin earlier to average."
            self._guard.warn(f"No snapshot was taken: {reason}. {advice}", NoEffectWarning, key="start")
        super().on_train_end(trainer, pl_module)

    @override
    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave the average in the module as it is."""
        if trainer.state.fn != "fit":
            return
        if self._low is not None:
            self._low.detach()
        if self._averaged is not None:
            self._averaged.put_average(trainer, refresh=False)
            self._averaged.close()

    @override
    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave the module without hooks."""
        super().teardown(trainer, pl_module, stage)
        if stage == "fit" and self._averaged is not None:
            self._averaged.close()

    @override
    def state_dict(self) -> dict[str, Any]:
        """All averages with their schedules, and the curves."""
        return {
            **super().state_dict(),
            "names": [] if self._averaged is None else list(self._averaged.names),
            "averages": {name: average.state_dict() for name, average in self._averages.items()},
            "seed": None if self._low is None else self._low.seed,
            "exempt": None if self._low is None else self._low.exempt(),
            "rates": None if self._rate is None else [list(rates) for rates in self._rate.references],
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the averages; those that the file lacks begin anew."""
        super().load_state_dict(state_dict)
        for name, state in state_dict["averages"].items():
            if name in self._averages:
                self._averages[name].load_state_dict(state)
        if self._rate is not None:
            self._rate.references = [list(rates) for rates in state_dict.get("rates") or []]
        if self._low is not None and state_dict["seed"] is not None:
            self._low.go_on(state_dict["seed"], state_dict.get("exempt"))
        self._resumed = True

    @override
    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save the average as ``state_dict`` and the raw weights beside it."""
        if self._averaged is not None:
            self._averaged.add_to(trainer, checkpoint, checkpoint["callbacks"][self.state_key])

    @override
    def edit_weights(self, pl_module: pl.LightningModule, checkpoint: dict[str, Any], edit: EditWeights) -> None:
        """The module's hook for loading reaches the raw weights and the averages too."""
        edit_averages(pl_module, checkpoint, checkpoint.get("callbacks", {}).get(self.state_key, {}), edit)


def _planned(callback: SWACallback) -> dict[str, ScheduledAverage]:
    main = {name: getattr(callback, name) for name in ("kind", "start", "every", "half_life", "window")}
    return plan_averages(main, callback.also, getattr(torch, callback.dtype))


def _refuse_others(trainer: pl.Trainer) -> None:
    """Refuse another callback that exchanges the weights."""
    others = find_callbacks(trainer, SWACallback | WeightAveraging | StochasticWeightAveraging)
    if len(others) > 1:
        raise MisconfigurationException(
            f"Expected one callback that exchanges the weights, but got {[type(c).__name__ for c in others]}. "
            "Several averages at once are SWACallback(also={'name': {'kind': ...}})."
        )


def _validates_in_fit(trainer: pl.Trainer) -> bool:
    return trainer.state.fn == "fit" and not trainer.sanity_checking
