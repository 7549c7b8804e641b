"""The learning rate while snapshots are taken: constant, or linear cycles that end with a snapshot."""

from __future__ import annotations

import lightning.pytorch as pl
from torch.optim import Optimizer

from lightning_robust.callbacks.averaging.averages import ScheduledAverage


class CyclicRate:
    """Overrides the learning rate of every optimizer; parameter groups keep the ratios of their initial rates.

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
        self.references: list[list[float]] = []
        """For each optimizer the rates of its groups that they keep the ratios of; they are part of the state."""

    def at(self, step: int, length: float) -> float:
        """The rate of a step of a cycle, which counts from 0 and stays low beyond the end."""
        return self.high + (self.low - self.high) * min(step / max(length - 1, 1), 1.0)

    def apply(self, trainer: pl.Trainer, average: ScheduledAverage) -> None:
        """Set the rate of the next step, in the cycle since the last snapshot of ``average``."""
        rate = self.at(average.steps_since_update(trainer), average.cycle(trainer))
        for place, optimizer in enumerate(trainer.optimizers):
            for group, ratio in zip(optimizer.param_groups, self._ratios(place, optimizer), strict=True):
                group["lr"] = rate * ratio

    def _ratios(self, place: int, optimizer: Optimizer) -> list[float]:
        """Rates over that of the first group, as they were when each group was first seen: a cycle may pass 0."""
        if place == len(self.references):
            self.references.append([])
        known = self.references[place]
        known += [group.get("initial_lr", group["lr"]) for group in optimizer.param_groups[len(known) :]]
        first = known[0] or max(known)
        return [each / first if first else 1.0 for each in known[: len(optimizer.param_groups)]]
