"""When something begins and how long it lasts, written as users write it: 0.75, 3, "500 steps", "2 epochs"."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_robust.harness.trainers import progress


@dataclass(frozen=True)
class Moment:
    """A moment of the run."""

    value: float
    unit: Literal["fraction", "epochs", "steps"]

    def is_reached(self, trainer: pl.Trainer, batch_idx: int) -> bool:
        """Whether it has come at the beginning of a batch; all ranks get the same answer."""
        if self.unit == "epochs":
            return trainer.current_epoch >= self.value
        if self.unit == "steps":
            return trainer.global_step >= self.value
        return trainer.strategy.reduce_boolean_decision(progress(trainer, batch_idx) >= self.value, all=False)


@dataclass(frozen=True)
class Period:
    """A length of time."""

    length: float
    epochs: bool = False

    def steps(self, trainer: pl.Trainer) -> float:
        """In optimizer steps.

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
    """Below 1 a fraction of the run, from 1 whole epochs, or text as ``"500 steps"``.

    Raises:
        ValueError: For anything else.

    Example:
        >>> parse_moment(0.75), parse_moment(3)
        (Moment(value=0.75, unit='fraction'), Moment(value=3, unit='epochs'))
        >>> parse_moment("500 steps")
        Moment(value=500.0, unit='steps')
    """
    if isinstance(value, str):
        number, unit = _split(value)
        return Moment(number, "epochs" if unit == "epoch" else "steps")
    if not (0 <= value < 1 or (value >= 1 and value == int(value))):
        raise ValueError(
            f"Expected a start below 1 (a fraction of the run), a whole number of epochs, or '500 steps', got {value}."
        )
    return Moment(value, "fraction" if value < 1 else "epochs")


def parse_period(value: float | str) -> Period:
    """A positive number of optimizer steps, or text as ``"2 epochs"``.

    Raises:
        ValueError: For anything else.

    Example:
        >>> parse_period("0.5 epochs")
        Period(length=0.5, epochs=True)
    """
    number, unit = _split(value) if isinstance(value, str) else (float(value), "step")
    if number <= 0:
        raise ValueError(f"Expected a positive length, but got {value!r}.")
    return Period(number, epochs=unit == "epoch")


def parse_fraction(value: float | str, name: str = "eps") -> float:
    """A number, or a quotient as users write it: ``"8/255"``.

    Raises:
        ValueError: If it is no number, negative or not finite.

    Example:
        >>> round(parse_fraction("8/255"), 4)
        0.0314
    """
    try:
        top, _, bottom = str(value).partition("/")
        number = float(top) / float(bottom or 1)
    except (ValueError, ZeroDivisionError):
        number = math.nan
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(f"Expected `{name}` as a number from 0 or a quotient such as '8/255', but got {value!r}.")
    return number


def _split(text: str) -> tuple[float, str]:
    found = re.fullmatch(r"\s*([\d.eE+]+)\s*(step|epoch)s?\s*", text)
    if not found:
        raise ValueError(f"Expected a number with its unit, as '500 steps' or '2 epochs', but got {text!r}.")
    return float(found[1]), found[2]
