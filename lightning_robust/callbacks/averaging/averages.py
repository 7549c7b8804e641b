"""Averages with the moments at which they begin and are updated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_robust.functional.averaging import Kind, RunningAverage, State
from lightning_robust.functional.weights import Weights
from lightning_robust.harness.checkpoints import RAW_KEY
from lightning_robust.harness.compat import batches_before
from lightning_robust.harness.load_hook import EditWeights
from lightning_robust.harness.schedule import Moment, Period, parse_moment, parse_period

MAIN = "swa"
"""Name of the average that stands for the module."""
_SETTINGS = {"kind", "start", "every", "half_life", "window"}


class ScheduledAverage:
    """One average and its schedule.

    Args:
        kind: ``"uniform"``, ``"ema"`` or ``"lawa"``.
        start: When to begin: below 1 a fraction of the run, from 1 whole epochs, or ``"500 steps"``.
        every: When to update: at the end of each ``"epoch"``, or after every so many optimizer steps.
        half_life: For ``"ema"``: in optimizer steps, or ``"2 epochs"``.
        window: For ``"lawa"``: number of snapshots.
        dtype: Type of the average.

    Raises:
        ValueError: For arguments out of range.
    """

    def __init__(
        self,
        *,
        kind: Kind,
        start: float | str,
        every: int | Literal["epoch"],
        half_life: float | str | None,
        window: int | None,
        dtype: torch.dtype,
    ) -> None:
        if every != "epoch" and not (isinstance(every, int) and every >= 1):
            raise ValueError(f"Expected `every` to be 'epoch' or a number of steps from 1, but got {every!r}.")
        self.every = every
        self.start: Moment = parse_moment(start)
        self.half_life: Period | None = None if half_life is None else parse_period(half_life)
        length = None if self.half_life is None else self.half_life.length
        self.running = RunningAverage(kind, half_life=length, window=window, dtype=dtype)
        self.started: int | None = None
        """Step at which the average began; None before."""
        self.updated = 0
        """Step of the last update."""
        self._updated_at_batch = 0
        self._by_batch = False
        """Whether epochs are measured in batches: under manual optimisation several optimizers may step in one, or one
        in every second."""
        self.fresh = False
        """Whether BatchNorm statistics belong to the last update."""

    @property
    def exists(self) -> bool:
        """Whether there is a snapshot."""
        return self.running.count > 0

    @property
    def values(self) -> list[Tensor]:
        """The averaged tensors, in the order of the module's."""
        return self.running.values()

    def begin_training(self, trainer: pl.Trainer, tensors: Sequence[Tensor]) -> None:
        """Move to where the weights are, and turn a half-life in epochs into steps.

        Under manual optimisation that is the steps of an epoch in which each optimizer steps at every batch.
        """
        self.running.to(tensors)
        self._by_batch = not trainer.lightning_module.automatic_optimization
        if self.half_life is not None:
            self.running.half_life = self.half_life.steps(trainer) * self._steps_in_batch(trainer)

    def begin_batch(self, trainer: pl.Trainer, batch_idx: int) -> None:
        """Begin, if the time has come."""
        if self.started is None and self.start.is_reached(trainer, batch_idx):
            self.started = self.updated = trainer.global_step
            self._updated_at_batch = self._batches(trainer)

    def is_due(self, trainer: pl.Trainer) -> bool:
        """Whether to update after this batch: the weights have changed, and an epoch or so many steps have ended."""
        if self.started is None or trainer.global_step == self.updated:
            return False
        return trainer.is_last_batch if self.every == "epoch" else trainer.global_step - self.updated >= self.every

    def update(self, trainer: pl.Trainer, tensors: Sequence[Tensor]) -> None:
        """Take a snapshot of the weights."""
        batches = self._batches(trainer) + 1
        steps = trainer.global_step - self.updated
        if self._by_batch and self.half_life is not None and self.half_life.epochs:
            steps = (batches - self._updated_at_batch) * self._steps_in_batch(trainer)
        self.running.update(tensors, steps)
        self.updated, self._updated_at_batch, self.fresh = trainer.global_step, batches, False

    def cycle(self, trainer: pl.Trainer) -> float:
        """The length from one update to the next, in the unit of :meth:`steps_since_update`."""
        return Period(1.0, epochs=True).steps(trainer) if self.every == "epoch" else self.every

    def steps_since_update(self, trainer: pl.Trainer) -> int:
        """Optimizer steps since the last update; batches under manual optimisation if updates come once an epoch."""
        if self.every == "epoch" and self._by_batch:
            return self._batches(trainer) - self._updated_at_batch
        return trainer.global_step - self.updated

    def _steps_in_batch(self, trainer: pl.Trainer) -> int:
        in_epochs = self.half_life is not None and self.half_life.epochs
        return max(1, len(trainer.optimizers)) if self._by_batch and in_epochs else 1

    def _batches(self, trainer: pl.Trainer) -> int:
        """Batches before the present one, where they are counted."""
        return batches_before(trainer) if self._by_batch else 0

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers."""
        return {
            "started": self.started,
            "updated": self.updated,
            "updated_at_batch": self._updated_at_batch,
            "fresh": self.fresh,
            "running": self.running.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state."""
        self.started, self.updated, self.fresh = state["started"], state["updated"], state["fresh"]
        # files of earlier versions count steps alone, which are batches where one optimizer steps at every batch
        self._updated_at_batch = state.get("updated_at_batch", self.updated)
        self.running.load_state_dict(state["running"])


def plan_averages(
    main: Mapping[str, Any], also: Mapping[str, Mapping[str, Any]] | None, dtype: torch.dtype
) -> dict[str, ScheduledAverage]:
    """The main average and further ones by name, which begin and update with the main one unless they say otherwise.

    Raises:
        ValueError: For unknown settings or a name that is taken.
    """
    averages = {MAIN: ScheduledAverage(dtype=dtype, **main)}
    common = {"kind": "uniform", "start": main["start"], "every": main["every"], "half_life": None, "window": None}
    for name, settings in (also or {}).items():
        unknown = set(settings) - _SETTINGS
        if unknown or name in (MAIN, "raw"):
            raise ValueError(
                f"Expected `also` to map a new name to some of {sorted(_SETTINGS)}, but got {name!r} with "
                f"{sorted(unknown) or 'a name that is taken'}."
            )
        averages[name] = ScheduledAverage(dtype=dtype, **(common | dict(settings)))
    return averages


def edit_averages(
    pl_module: pl.LightningModule,
    checkpoint: dict[str, Any],
    saved: Mapping[str, Any],
    edit: EditWeights,
) -> None:
    """Edit the raw weights of a checkpoint and the averages that were saved with them.

    Args:
        pl_module: The module that they are for.
        checkpoint: The checkpoint, which is changed.
        saved: Its state of SWACallback, which is changed too.
        edit: Gives the edited form of a set of weights.
    """
    weights = Weights(pl_module)
    present = dict(zip(weights.names, weights.tensors(), strict=True))
    raw: State = checkpoint.get(RAW_KEY, {})
    for average in saved.get("averages", {}).values():
        for tensors in (average["running"]["tensors"], *average["running"]["snapshots"]):
            if tensors:
                edited = edit({**raw, **dict(zip(saved["names"], tensors, strict=True))})
                # what the file lacks altogether (a module loaded loosely) is as the module has it
                tensors[:] = [edited.get(name, tensor.detach().clone()) for name, tensor in present.items()]
    if saved.get("names"):
        saved["names"][:] = weights.names
    if raw:
        checkpoint[RAW_KEY] = edit(raw)
