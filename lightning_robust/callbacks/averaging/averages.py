"""Averages with their schedules, as SWACallback keeps them; the averaging itself is in ``functional``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_robust.functional.averaging import Kind, RunningAverage
from lightning_robust.functional.weights import Weights
from lightning_robust.harness.schedule import Moment, Period, parse_moment, parse_period

MAIN = "swa"
_SETTINGS = {"kind", "start", "every", "half_life", "window"}


class ScheduledAverage:
    """One average with the moments at which it is updated."""

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
        self.updated = 0
        self.fresh = False

    @property
    def exists(self) -> bool:
        """Whether there has been a snapshot."""
        return self.running.count > 0

    @property
    def values(self) -> list[Tensor]:
        """The averaged tensors, in the order of the module's."""
        return self.running.values()

    def begin_batch(self, trainer: pl.Trainer, batch_idx: int) -> None:
        """Begin, if the time has come."""
        if self.started is None and self.start.is_reached(trainer, batch_idx):
            self.started = self.updated = trainer.global_step

    def end_step(self, trainer: pl.Trainer, weights: Weights) -> None:
        """After an optimizer step."""
        steps = trainer.global_step - self.updated
        due = trainer.is_last_batch if self.every == "epoch" else steps >= self.every
        if self.started is not None and due and steps > 0:
            self.running.update(weights.tensors(), steps)
            self.updated, self.fresh = trainer.global_step, False

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers."""
        return {
            "started": self.started,
            "updated": self.updated,
            "fresh": self.fresh,
            "running": self.running.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state."""
        self.started, self.updated, self.fresh = state["started"], state["updated"], state["fresh"]
        self.running.load_state_dict(state["running"])


def plan_averages(
    main: Mapping[str, Any], also: Mapping[str, Mapping[str, Any]] | None, dtype: torch.dtype
) -> dict[str, ScheduledAverage]:
    """The main average and further ones by name, which begin and update as the main one unless they say otherwise.

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
