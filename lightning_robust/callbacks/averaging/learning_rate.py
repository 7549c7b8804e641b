"""The learning rate while snapshots are taken: constant, or linear cycles that end with a snapshot."""

from __future__ import annotations

import lightning.pytorch as pl

from lightning_robust.callbacks.averaging.averages import ScheduledAverage
from lightning_robust.harness.schedule import Period


class CyclicRate:
    """Overrides the learning rate of every optimizer; parameter groups keep their ratios.

    Args:
        lr: A constant rate, or ``[high, low]`` for cycles that fall linearly from one snapshot to the next.

    Raises:
        ValueError: For a negative rate or another number of them.

    Example:
        >>> rate = CyclicRate([0.08, 0.02])
        >>> [round(rate.at(step, length=4), 3) for step in range(5)]
        [0.08, 0.06, 0.04, 0.02, 0.02]
    """

    def __init__(self, lr: float | list[float]) -> None:
        rates = lr if isinstance(lr, list) else [lr, lr]
        if len(rates) != 2 or min(rates) < 0:
            raise ValueError(f"Expected `lr` to be a number from 0, [high, low], or None, but got {lr}.")
        self.high, self.low = rates

    def at(self, step: int, length: float) -> float:
        """The rate of a step of a cycle, which counts from 0 and stays low beyond the end."""
        return self.high + (self.low - self.high) * min(step / max(length - 1, 1), 1.0)

    def apply(self, trainer: pl.Trainer, average: ScheduledAverage) -> None:
        """Set the rate of the next step, in the cycle since the last snapshot of ``average``."""
        length = Period(1.0, epochs=True).steps(trainer) if average.every == "epoch" else average.every
        rate = self.at(trainer.global_step - average.updated, length)
        for optimizer in trainer.optimizers:
            first = optimizer.param_groups[0]["lr"]
            for group in optimizer.param_groups:
                group["lr"] = rate * (group["lr"] / first if first else 1.0)
