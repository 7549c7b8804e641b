"""SWACallback: averages of the weights, kept beside the module, measured, saved and returned instead of the raw ones.

Hooks, state and logging only; averaging is done in ``functional``.
"""

from __future__ import annotations

from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from lightning_robust.callbacks.averaging.averages import MAIN, ScheduledAverage, plan_averages
from lightning_robust.callbacks.averaging.swalp.low_precision import LowPrecision
from lightning_robust.functional.averaging import Kind
from lightning_robust.functional.batchnorm import batchnorm_layers
from lightning_robust.functional.weights import Weights
from lightning_robust.harness.batches import refresh_statistics
from lightning_robust.harness.checkpoints import RAW_KEY
from lightning_robust.harness.evaluate import Evaluator
from lightning_robust.harness.schedule import Period
from lightning_robust.harness.trainers import NoEffectWarning, Replaced, find_callbacks, refuse_sharded


class SWACallback(pl.Callback):
    r"""Average the weights over training: SWA, exponential (EMA), or the last few snapshots (LAWA).

    With the weights :math:`w_i` at the end of each cycle from ``start`` on, the last one included,

    .. math:: w_\text{SWA} = \frac1n \sum_{i=1}^n w_i

    (`Izmailov et al. 2018 <https://arxiv.org/abs/1803.05407>`_). **What is validated is what is saved, tested and
    returned**: from the first snapshot on, validation runs on the average, every checkpoint (``save_weights_only``
    ones too) holds it as ``state_dict``, and at the end, also an early one or an error, the module holds it. Full
    checkpoints keep the raw weights under ``"raw_state_dict"``, from which training goes on bit for bit;
    :func:`~lightning_robust.load_averaged` reads either without a Trainer. Resuming without this callback would train
    on from the average; Lightning then warns that the callback is missing.

    BatchNorm statistics of an average are recomputed from the training data before it is validated, saved or returned,
    exactly (see :func:`~lightning_robust.functional.batchnorm.refresh_batchnorm`), and only when it has changed.
    Frozen layers are left alone, integer buffers copied.

    Logged: the plain validation metrics are those of the average once there is one; ``swa/raw/<metric>`` of the raw
    weights, ``swa/<name>/<metric>`` of further averages, ``swa/snapshots``. Any of them can be monitored.

    Cost: one fp32 copy of the weights for each average, one pass over them for an update, nothing for exchanging them;
    at a validation, one pass of the training data for BatchNorm (if there is any) and one validation pass for each of
    the raw weights and further averages.

    Args:
        kind: ``"uniform"`` (SWA), ``"ema"`` or ``"lawa"``.
        start: When to begin: below 1 a fraction of the run, from 1 whole epochs, or ``"500 steps"``.
        every: When to update: at the end of each ``"epoch"``, or every so many optimizer steps.
        lr: Learning rate from ``start`` on, overriding the user's schedule: a number, or ``[high, low]`` for linear
            cycles of the length of ``every``, which a snapshot ends. None leaves the schedule alone. Parameter groups
            keep their ratios.
        half_life: For ``"ema"``: in optimizer steps, or ``"2 epochs"``. Weights count half after it, however often the
            average is updated. A decay ``d`` a step is a half-life of ``ln 0.5 / ln d``: 0.999 is 693 steps.
        window: For ``"lawa"``: how many snapshots; each is a copy in memory.
        bn_refresh: Recompute BatchNorm statistics: in one pass, ``"layerwise"`` (exact at any depth, a pass a layer),
            or not at all, which leaves their averages.
        bn_samples: Use about so many training samples on each rank for it; all if None.
        input_key: Which part of a batch goes into ``forward`` for it: position or name; a list for several arguments.
        compare_raw: Validate the raw weights too.
        also: Further averages by name, each with its own ``kind``, ``start``, ``every``, ``half_life``, ``window``;
            ``start`` and ``every`` are those above unless given.
        dtype: Of the averages.
        word_length: Train in block floating point of so many bits (SWALP, 8 in the paper) from the first step; the
            average stays in ``dtype`` and is validated with full-precision activations.

    Raises:
        ValueError: For arguments out of range.
        MisconfigurationException: Under strategies in which no rank has the whole model, beside another averaging
            callback, or for a fraction of a run without an end.

    Example:
        >>> swa = SWACallback(start=0.75, lr=0.01)
        >>> ema = SWACallback(
        ...     "ema", start=0, every=1, half_life="0.5 epochs", also={"last3": {"kind": "lawa", "window": 3}}
        ... )
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
        input_key: int | str | list[int | str] = 0,
        compare_raw: bool = True,
        also: dict[str, dict[str, Any]] | None = None,
        dtype: Literal["float32", "float64", "bfloat16"] = "float32",
        word_length: int | None = None,
    ) -> None:
        super().__init__()
        rates = lr if isinstance(lr, list) else [] if lr is None else [lr, lr]
        if len(rates) not in (0, 2) or any(rate < 0 for rate in rates):
            raise ValueError(f"Expected `lr` to be a number from 0, [high, low], or None, but got {lr}.")
        self.kind, self.start, self.every = kind, start, every
        self.lr, self.half_life, self.window = lr, half_life, window
        self.bn_refresh, self.bn_samples = bn_refresh, bn_samples
        self.input_key, self.compare_raw = input_key, compare_raw
        self.also, self.dtype, self.word_length = also, dtype, word_length
        self._rates = rates
        self._averages = self._planned()
        self._low = None if word_length is None else LowPrecision(word_length, torch.initial_seed() % 2**31)
        self._weights: Weights | None = None
        self._layers: list[nn.Module] = []
        self._raw: list[Tensor] | None = None
        self._saving: Replaced | None = None
        self._step = 0
        self._resumed = False
        self._metrics: dict[str, float] = {}
        self._warned: set[str] = set()

    @property
    def main(self) -> ScheduledAverage:
        """The average that is validated, saved and returned."""
        return self._averages[MAIN]

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Begin anew, and see to it that weights-only files hold the average."""
        if stage != "fit":
            return
        refuse_sharded(trainer, "SWACallback")
        others = find_callbacks(trainer, SWACallback | WeightAveraging | StochasticWeightAveraging)
        if len(others) > 1:
            raise MisconfigurationException(
                f"Expected one callback that exchanges the weights, but got {[type(c).__name__ for c in others]}. "
                "Several averages at once are SWACallback(also={'name': {'kind': ...}})."
            )
        self._averages = self._planned()
        self._weights, self._raw, self._resumed = None, None, False
        self._wrap_saving(trainer, pl_module)

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Resolve what depends on the length of an epoch, and begin low-precision training."""
        self._weights = Weights(pl_module)
        self._step = trainer.global_step
        for average in self._averages.values():
            average.running.to(self._weights.tensors())
            if average.half_life is not None:
                average.running.half_life = average.half_life.steps(trainer)
        self._layers = [layer for layer in batchnorm_layers(pl_module) if layer.training]
        if self.bn_refresh and not self._layers:
            self._warn(
                f"bn_refresh={self.bn_refresh} has nothing to refresh: {type(pl_module).__name__} has no BatchNorm "
                "layer that is being trained. Averaging goes on; set bn_refresh to false to say so.",
                NoEffectWarning,
            )
        if self._low is not None:
            self._low.attach(pl_module, trainer.optimizers, trainer.global_rank, resumed=self._resumed)

    @override
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begin averages whose time has come, and set the learning rate."""
        for average in self._averages.values():
            average.begin_batch(trainer, batch_idx)
        if self._low is not None:
            self._low.begin_step(trainer.fit_loop.total_batch_idx + 1)
        if self._rates and self.main.started is not None:
            self._set_learning_rate(trainer)

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
        """Update, if the optimizer has stepped."""
        if trainer.global_step > self._step and self._weights is not None:
            self._step = trainer.global_step
            for average in self._averages.values():
                average.end_step(trainer, self._weights)

    @override
    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Validate the raw weights and further averages, then put the average in."""
        self._metrics = {}
        if trainer.state.fn != "fit" or trainer.sanity_checking or self._weights is None:
            return
        if self.compare_raw and self.main.exists:
            self._measure(trainer, pl_module, "raw")
        for name, average in self._averages.items():
            if name != MAIN and average.exists:
                self._refresh(trainer, pl_module, average)
                with self._weights.exchanged(average.values):
                    self._measure(trainer, pl_module, name)
        if self.main.exists:
            self._refresh(trainer, pl_module, self.main)
            self._raw = self._weights.put(self.main.values)

    @override
    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log what was measured besides the average."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        if self.main.exists:
            pl_module.log_dict(
                {**self._metrics, "swa/snapshots": float(self.main.running.count)},
                sync_dist=True,
                add_dataloader_idx=False,
            )
        elif self.compare_raw:
            # monitors find the key from the first epoch on; it is not logged twice
            plain = {k: v for k, v in trainer.callback_metrics.items() if not k.startswith("swa/")}
            trainer.callback_metrics.update({f"swa/raw/{key}": value for key, value in plain.items()})

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the raw weights back to train on."""
        if trainer.state.fn == "fit":
            self._take_out()

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The module keeps the average."""
        if not self.main.exists:
            self._warn(
                f"No snapshot was taken: start={self.start!r} with every={self.every!r} was not reached by step "
                f"{trainer.global_step}. The weights are left as trained; begin earlier to average.",
                NoEffectWarning,
            )
        else:
            self._refresh(trainer, pl_module, self.main)
            rank_zero_info(f"The module holds the average of {self.main.running.count} snapshots.")
        self._finish(pl_module)

    @override
    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """The module keeps the average as it is."""
        if trainer.state.fn == "fit":
            self._take_out()
            self._finish(pl_module)
            self._unwrap_saving(pl_module)

    @override
    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave the module without hooks."""
        if stage == "fit":
            self._unwrap_saving(pl_module)

    @override
    def state_dict(self) -> dict[str, Any]:
        """All averages and when they began."""
        return {
            "names": [] if self._weights is None else list(self._weights.names),
            "averages": {name: average.state_dict() for name, average in self._averages.items()},
            "seed": None if self._low is None else self._low.seed,
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on; averages that the file does not know begin anew."""
        for name, state in state_dict["averages"].items():
            if name in self._averages:
                self._averages[name].load_state_dict(state)
        if self._low is not None and state_dict["seed"] is not None:
            self._low.seed = state_dict["seed"]
        self._resumed = True

    @override
    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """A full checkpoint holds the average as ``state_dict`` and the raw weights beside it."""
        if self.main.exists and self._weights is not None:
            averaged, raw = self._both(trainer, pl_module, checkpoint["state_dict"])
            checkpoint["state_dict"], checkpoint[RAW_KEY] = averaged, raw

    @override
    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Resume from the raw weights; tests and predictions keep the average."""
        if trainer.state.fn == "fit" and RAW_KEY in checkpoint:
            pl_module.load_state_dict(checkpoint[RAW_KEY], strict=pl_module.strict_loading)

    def _planned(self) -> dict[str, ScheduledAverage]:
        main = {name: getattr(self, name) for name in ("kind", "start", "every", "half_life", "window")}
        return plan_averages(main, self.also, getattr(torch, self.dtype))

    def _measure(self, trainer: pl.Trainer, pl_module: pl.LightningModule, name: str) -> None:
        try:
            metrics = Evaluator(trainer, pl_module).metrics()
        except Exception as error:
            self._warn(f"swa/{name} could not be measured ({type(error).__name__}: {error}). Training goes on.")
            return
        self._metrics |= {f"swa/{name}/{key}": value for key, value in metrics.items()}

    def _refresh(self, trainer: pl.Trainer, pl_module: pl.LightningModule, average: ScheduledAverage) -> None:
        """BatchNorm statistics for an average that has changed since."""
        if not self.bn_refresh or not self._layers or average.fresh or self._weights is None:
            return
        with self._weights.exchanged(average.values):
            try:
                refresh_statistics(
                    trainer,
                    pl_module,
                    input_key=self.input_key,
                    layers=self._layers,
                    layerwise=self.bn_refresh == "layerwise",
                    samples=self.bn_samples,
                )
            except Exception as error:
                self._warn(
                    f"BatchNorm statistics could not be refreshed ({type(error).__name__}: {error}). Their averages "
                    "are used. Set `input_key` to what `forward` takes, or bn_refresh to false."
                )
            self._weights.read_buffers(average.values)
        average.fresh = True

    def _set_learning_rate(self, trainer: pl.Trainer) -> None:
        high, low = self._rates
        length = Period(1.0, epochs=True).steps(trainer) if self.every == "epoch" else self.every
        position = (trainer.global_step - self.main.updated) / max(length - 1, 1)
        rate = high + (low - high) * min(position, 1.0)
        for optimizer in trainer.optimizers:
            first = optimizer.param_groups[0]["lr"]
            for group in optimizer.param_groups:
                group["lr"] = rate * (group["lr"] / first if first else 1.0)

    def _both(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, present: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """State dicts of the average and of the raw weights, whichever of them the module holds."""
        if self._weights is None:
            raise RuntimeError("Expected training to have begun before weights are saved.")
        if self._raw is None:
            self._refresh(trainer, pl_module, self.main)
            return self._weights.state_dict(self.main.values), present
        return present, self._weights.state_dict(self._raw)

    def _take_out(self) -> None:
        if self._raw is not None and self._weights is not None:
            self._weights.restore(self._raw)
            self._raw = None

    def _finish(self, pl_module: pl.LightningModule) -> None:
        if self._low is not None:
            self._low.detach()
        if self.main.exists and self._weights is not None and self._raw is None:
            self._raw = self._weights.put(self.main.values)

    def _wrap_saving(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Callbacks are not asked when only weights are saved; the module is."""
        original = pl_module.on_save_checkpoint

        def on_save_checkpoint(checkpoint: dict[str, Any]) -> None:
            if "callbacks" not in checkpoint and self.main.exists and self._raw is None:
                checkpoint["state_dict"] = self._both(trainer, pl_module, checkpoint["state_dict"])[0]
            original(checkpoint)

        self._saving = Replaced(pl_module, "on_save_checkpoint", on_save_checkpoint)

    def _unwrap_saving(self, pl_module: pl.LightningModule) -> None:
        if self._saving is not None:
            self._saving.restore(pl_module)
            self._saving = None

    def _warn(self, message: str, category: type[Warning] = UserWarning) -> None:
        """Once for each beginning of a message."""
        if message[:40] not in self._warned:
            self._warned.add(message[:40])
            rank_zero_warn(f"SWACallback: {message}", category=category)
