"""The monitored metric of whatever weights the module holds, and the share of training's gain that it amounts to."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Literal

from lightning_robust.callbacks.conditions import Condition
from lightning_robust.functional.criticality import share_of_gain
from lightning_robust.harness.evaluate import Evaluator
from lightning_robust.statistics import Estimate


@dataclass(frozen=True)
class Criterion:
    """What layers are judged by.

    Args:
        monitor: A validation metric.
        mode: Whether larger is better.
        threshold: The share of training's gain that an ambient layer keeps.
        value_range: Smallest and largest value of the metric on one sample. With it, reading stops as soon as the rest
            of the data cannot change on which side of the threshold the share lies.
    """

    monitor: str
    mode: Literal["max", "min"]
    threshold: float
    value_range: tuple[float, float] | None = None


@dataclass(frozen=True)
class MetricReading:
    """A metric, and what each batch adds to it where that is known."""

    value: float
    parts: tuple[float, ...] = ()
    seen: float = 1.0
    """Share of the data that was read."""
    limits: tuple[float, float] | None = None
    """Bounds of the share of training's gain, where reading stopped early."""


class MetricReader:
    """Reads the metric under one condition.

    Args:
        evaluator: Runs the validation.
        condition: What is done to the batches.
        criterion: What is read, and when reading may stop.
    """

    def __init__(self, evaluator: Evaluator, condition: Condition, criterion: Criterion) -> None:
        self._evaluator, self._condition, self._criterion = evaluator, condition, criterion
        self.trained = self.initial = MetricReading(0.0)
        """Of the network as trained and at initialisation, which shares refer to; set by the caller."""
        self.evaluations = 0
        self._weight = 0.0

    def read(self) -> MetricReading:
        """Evaluate what the module holds now."""
        self.evaluations += 1
        sums, mean, seen = [0.0], 0.0, 0.0
        for mean, weight in self._evaluator.course(self._criterion.monitor, self._condition.transform):
            sums.append(mean * weight)
            seen = weight
            limits = self._limits(mean, weight)
            if limits is not None:
                return MetricReading(mean, (), weight / self._weight, limits)
        if self._weight == 0.0 and len(sums) > 2:
            self._weight = seen
        # the last sum repeats that of all batches
        parts = [(now - before) / (self._weight or 1.0) for before, now in itertools.pairwise(sums[:-1])]
        return MetricReading(mean, tuple(parts))

    def share(self, reading: MetricReading) -> Estimate:
        """The share of training's gain that a reading keeps; NaN if training gained nothing."""
        trained, initial = self.trained, self.initial
        gain = trained.value - initial.value
        if not (gain > 0 if self._criterion.mode == "max" else gain < 0):
            return Estimate(math.nan)
        if reading.limits is not None:
            return Estimate((reading.value - initial.value) / gain, *reading.limits)
        if len(reading.parts) == len(trained.parts) == len(initial.parts) > 1:
            return share_of_gain(reading.parts, trained.parts, initial.parts)
        return share_of_gain([reading.value], [trained.value], [initial.value])

    def _limits(self, mean: float, weight: float) -> tuple[float, float] | None:
        """Bounds of the share, if they lie on one side of the threshold before the data has ended."""
        gain, span = self.trained.value - self.initial.value, self._criterion.value_range
        if span is None or gain == 0 or not 0 < weight < self._weight:
            return None
        seen = weight / self._weight
        ends = [(seen * mean + (1 - seen) * end - self.initial.value) / gain for end in span]
        low, high = min(ends), max(ends)
        return (low, high) if low >= self._criterion.threshold or high < self._criterion.threshold else None
