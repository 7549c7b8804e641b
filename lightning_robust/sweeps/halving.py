"""Successive halving: how many candidates train for how long in which round, who goes on, and how sure the end is.

Jamieson and Talwalkar 2016 (arXiv:1502.07943). Every round is a whole training, with the schedule of the learning rate
and all that acts late in a training brought down to the round's epochs.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from scipy.special import stdtr

from lightning_robust.statistics import Estimate, mean_interval


@dataclass(frozen=True)
class Round:
    """One round.

    Args:
        candidates: How many train.
        epochs: For how long each.
        seeds: With how many seeds each.
    """

    candidates: int
    epochs: int
    seeds: int = 1

    @property
    def cost(self) -> int:
        """Epochs of all."""
        return self.candidates * self.epochs * self.seeds


def plan_rounds(candidates: int, epochs: int, seeds: int, budget: float, reduction: int = 3) -> list[Round]:
    """As few rounds as the budget allows: the longer the first one, the more it tells.

    In each round but the last one seed is trained, and one of ``reduction`` candidates goes on, to ``reduction`` times
    the epochs; two at least see the last.

    Args:
        candidates: How many there are, two at least.
        epochs: Of a whole training.
        seeds: Of the finalists.
        budget: What all rounds may cost, as a share of training all candidates with all seeds to the end.
        reduction: One of so many goes on.

    Raises:
        ValueError: If no plan fits; the message says what the cheapest costs.

    Example:
        >>> for each in plan_rounds(20, 18, 1, budget=1 / 3):
        ...     print(each)
        Round(candidates=20, epochs=2, seeds=1)
        Round(candidates=6, epochs=6, seeds=1)
        Round(candidates=2, epochs=18, seeds=1)
    """
    whole = Round(candidates, epochs, seeds).cost
    plans = []
    for halvings in range(math.floor(math.log(epochs, reduction) + 1e-9) + 1):
        plan = [Round(candidates, epochs, seeds)] if not halvings else _rounds(candidates, epochs, halvings, reduction)
        plan[-1] = Round(plan[-1].candidates, epochs, seeds)
        plans.append(plan)
        if sum(each.cost for each in plan) <= budget * whole:
            return plan
    least = min(sum(each.cost for each in plan) for plan in plans)
    raise ValueError(
        f"Expected `budget` of at least {least / whole:.3f} for {candidates} candidates, {epochs} epochs and {seeds} "
        f"seeds, but got {budget:.3f}, too little for one round. Give more, fewer candidates or seeds, or a larger "
        "`reduction`."
    )


def _rounds(candidates: int, epochs: int, halvings: int, reduction: int) -> list[Round]:
    lengths = [round(epochs / reduction ** (halvings - number)) for number in range(halvings + 1)]
    counts = [max(2, candidates // reduction**number) for number in range(halvings + 1)]
    plan = [Round(min(count, candidates), max(1, length)) for count, length in zip(counts, lengths, strict=True)]
    # a round that nobody leaves tells nothing
    return [each for each, later in pairwise(plan) if each.candidates > later.candidates] + plan[-1:]


def survivors(scores: Mapping[str, float], count: int) -> list[str]:
    """The names of the highest scores, best first; of equal ones the first.

    Example:
        >>> survivors({"a": 1.0, "b": 3.0, "c": 1.0}, 2)
        ['b', 'a']
    """
    return sorted(scores, key=lambda name: -scores[name])[:count]


@dataclass(frozen=True)
class Lead:
    """How far the winner is before another finalist.

    Args:
        over: The other.
        difference: Of the scores, by the same seeds: the mean and its 95 % interval.
        chance: That the winner is the better one of the two over all seeds, if nothing else is known of them: by
            Student's t of the paired differences; NaN with one seed.
    """

    over: str
    difference: Estimate
    chance: float


def leads(scores: Mapping[str, Sequence[float]], winner: str) -> list[Lead]:
    """How far the winner is before each other finalist.

    Args:
        scores: By name, one for each seed, the seeds in one order.
        winner: The name of the highest mean.

    Example:
        >>> (lead,) = leads({"a": [1.0, 2.0, 3.0], "b": [0.0, 1.5, 1.5]}, "a")
        >>> lead.over, lead.difference.value, round(lead.chance, 3)
        ('b', 1.0, 0.963)
    """
    found = []
    for name, values in scores.items():
        if name != winner:
            differences = [ours - theirs for ours, theirs in zip(scores[winner], values, strict=True)]
            found.append(Lead(name, mean_interval(differences), _chance_above_zero(differences)))
    return found


def _chance_above_zero(differences: Sequence[float]) -> float:
    if len(differences) < 2:
        return math.nan
    mean, deviation = statistics.fmean(differences), statistics.stdev(differences)
    if not deviation:
        return 0.5 if not mean else float(mean > 0)
    return float(stdtr(len(differences) - 1, mean / (deviation / math.sqrt(len(differences)))))
