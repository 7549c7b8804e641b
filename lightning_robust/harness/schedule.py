"""How far a run has come: when something begins, how long it lasts, how much is done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Timer

from lightning_robust.harness.arguments import parse_duration
from lightning_robust.harness.trainers import find_callbacks


@dataclass(frozen=True)
class Moment:
    """A moment of the run."""

    value: float
    unit: Literal["fraction", "epochs", "steps"]

    def is_reached(self, trainer: pl.Trainer, batch_idx: int) -> bool:
        """Whether a batch begins at this moment or later; all ranks get the same answer."""
        if self.unit == "epochs":
            return trainer.current_epoch >= self.value
        if self.unit == "steps":
            return trainer.global_step >= self.value
        reached = share_of_run(trainer, batch_idx) >= self.value
        # clocks may differ; steps and epochs are the same on every rank
        return trainer.strategy.reduce_boolean_decision(reached, all=False) if is_timed(trainer) else reached


@dataclass(frozen=True)
class Period:
    """A length of time."""

    length: float
    epochs: bool = False

    def steps(self, trainer: pl.Trainer) -> float:
        """The length in optimizer steps.

        Raises:
            MisconfigurationException: For epochs of unknown length.
        """
        if not self.epochs:
            return self.length
        if trainer.num_training_batches == float("inf"):
            raise MisconfigurationException(
                "Expected epochs of known length, but the training loader has none. Give the length in steps, or set "
                "`limit_train_batches` to a number."
            )
        return self.length * max(1, -(-int(trainer.num_training_batches) // trainer.accumulate_grad_batches))


def parse_moment(value: float | str) -> Moment:
    """Read a moment: below 1 a fraction of the run, from 1 whole epochs, or text as ``"500 steps"``.

    Raises:
        ValueError: For anything else.

    Example:
        >>> parse_moment(0.75), parse_moment(3)
        (Moment(value=0.75, unit='fraction'), Moment(value=3, unit='epochs'))
        >>> parse_moment("500 steps")
        Moment(value=500.0, unit='steps')
    """
    if isinstance(value, str):
        return Moment(*parse_duration(value))
    if not isinstance(value, int | float) or not (0 <= value < 1 or (value >= 1 and float(value).is_integer())):
        raise ValueError(
            f"Expected a start below 1 (a fraction of the run), a whole number of epochs, or '500 steps', got {value}."
        )
    return Moment(value, "fraction" if value < 1 else "epochs")


def parse_period(value: float | str) -> Period:
    """Read a length of time: a positive number of optimizer steps, or text as ``"2 epochs"``.

    Raises:
        ValueError: For anything else.

    Example:
        >>> parse_period("0.5 epochs")
        Period(length=0.5, epochs=True)
    """
    length, unit = parse_duration(value) if isinstance(value, str) else (float(value), "steps")
    if length <= 0:
        raise ValueError(f"Expected a positive length, but got {value!r}.")
    return Period(length, epochs=unit == "epochs")


def is_timed(trainer: pl.Trainer) -> bool:
    """Whether a run may end by the clock."""
    return any(timer.time_remaining() is not None for timer in find_callbacks(trainer, Timer))


def share_of_run(trainer: pl.Trainer, batch_idx: int) -> float:
    """The share of the run that is done at the beginning of a batch, from 0 to 1: of its epochs, steps or time.

    Raises:
        MisconfigurationException: If the run has no known end.
    """
    shares = []
    if trainer.max_steps > 0:
        shares.append(trainer.global_step / trainer.max_steps)
    if trainer.max_epochs is not None and trainer.max_epochs > 0:
        shares.append((trainer.current_epoch + batch_idx / trainer.num_training_batches) / trainer.max_epochs)
    for timer in find_callbacks(trainer, Timer):
        elapsed, remaining = timer.time_elapsed(), timer.time_remaining()
        if remaining is not None:
            shares.append(elapsed / max(elapsed + remaining, 1e-9))
    if not shares:
        raise MisconfigurationException(
            "Expected a run with an end for a start given as a fraction of it, but got none of `max_epochs`, "
            "`max_steps`, `max_time`. Set one of them, or give the start in epochs (3) or steps ('500 steps')."
        )
    return max(shares)
