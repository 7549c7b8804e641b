"""The file of a choice: candidates, criteria, budget."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lightning_robust.sweeps.file import RunSettings

_SET_BY_THE_RACE = {"seed_everything", "trainer.max_epochs"}


@dataclass(frozen=True)
class Choice(RunSettings):
    """The settings of a choice.

    Args:
        configs: Configuration files of ``lightning-robust fit``, later ones over earlier ones; relative to the file.
            They measure what the criteria ask for, as with ``robust_validation: true``.
        candidates: Name -> what the candidate adds: keys of the command line with their values.
        criteria: Metric -> its weight in the score, above 0 where more is better and below where less is. The score is
            the sum of weights times metrics, so that weights say what a unit of one is worth in units of another.
        budget: What the race may cost, as a share of training all candidates with all seeds to the end.
        seeds: With how many seeds the finalists are trained, 0, 1, ...
        reduction: One of so many candidates goes on from a round.
        scaled: Keys that hold lengths in epochs, such as ``lr_scheduler.T_max`` or ``swa.start``, which are brought
            down with ``trainer.max_epochs`` where a round is shorter than the whole training.
    """

    candidates: dict[str, dict[str, Any]] = field(default_factory=dict)
    criteria: dict[str, float] = field(default_factory=dict)
    budget: float = 1 / 3
    seeds: int = 3
    reduction: int = 3
    scaled: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Refuse a choice between nothing, or by nothing."""
        if not self.configs or len(self.candidates) < 2:
            raise ValueError(
                f"Expected a file in `configs` and two `candidates` to choose from, but got {len(self.configs)} and "
                f"{len(self.candidates)}. What changes nothing is written as `plain: {{}}`."
            )
        if not self.criteria or not all(weight and math.isfinite(weight) for weight in self.criteria.values()):
            raise ValueError(
                "Expected `criteria` as metrics with their weights, as {val/acc: 1, parity/emulated-fp16/rel_l2: -2}, "
                f"but got {self.criteria}. A weight is above 0 where more is better, below where less is."
            )
        self._check_numbers()
        for name, values in self.candidates.items():
            if taken := _SET_BY_THE_RACE & values.keys():
                raise ValueError(f"Expected no `{min(taken)}` in candidate {name!r}: the race sets it. Take it out.")

    def _check_numbers(self) -> None:
        if not 0 < self.budget <= 1 or self.seeds < 1 or self.reduction < 2 or self.retries < 0:
            raise ValueError(
                "Expected `budget` above 0 and up to 1, `seeds` of at least 1, `reduction` of at least 2 and `retries` "
                f"of at least 0, but got {self.budget}, {self.seeds}, {self.reduction} and {self.retries}."
            )

    @property
    def shown(self) -> list[str]:
        """The name of the candidate, and the seed."""
        return ["candidate", "seed"]

    @property
    def told(self) -> str:
        """The first criterion."""
        return next(iter(self.criteria))

    def score(self, metrics: Mapping[str, float]) -> float:
        """The weighted sum of a run's metrics; NaN where one is missing or no number."""
        return sum(weight * metrics.get(name, math.nan) for name, weight in self.criteria.items())

    def missing(self, metrics: Mapping[str, float]) -> list[str]:
        """The criteria that a run has no number for."""
        return [name for name in self.criteria if not math.isfinite(metrics.get(name, math.nan))]
