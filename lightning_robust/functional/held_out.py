"""Scores of candidate weights on held-out data: counted, checked, and stopped where a candidate can no longer win."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator
from typing import Literal

from torch import Tensor

from lightning_robust.functional.averaging import State

RunningScore = Iterator[tuple[float, float]]
"""Pairs (mean so far, share of the data seen) that end at share 1."""
Evaluate = Callable[[State], float | RunningScore]
"""Score of a state on held-out data: a number, or a :data:`RunningScore` that can be stopped early."""


class HeldOutScorer:
    """Scores candidates one after another and keeps count of what that costs.

    Args:
        evaluate: Held-out score of a state.
        mode: Whether larger or smaller is better.
        strict: Whether a candidate must be better than the best one to win; if not, as good is enough.
        best_possible: The best score that any part of the data can have; None stops nothing early.

    Attributes:
        evaluations: Number of evaluations begun.
        evaluated: Passes over the held-out data; a pass that was stopped counts by the share it saw.

    Raises:
        ValueError: For an unknown ``mode``.

    Example:
        >>> import torch
        >>> scorer = HeldOutScorer(lambda state: state["w"].item())
        >>> scorer.score({"w": torch.tensor(2.0)}, "ingredient 0"), scorer.contest({"w": torch.tensor(1.0)}, best=2.0)
        (2.0, (None, 1.0))
        >>> scorer.evaluations
        2
    """

    def __init__(
        self,
        evaluate: Evaluate,
        mode: Literal["max", "min"] = "max",
        *,
        strict: bool = True,
        best_possible: float | None = None,
    ) -> None:
        if mode not in ("max", "min"):
            raise ValueError(f"Expected `mode` to be 'max' or 'min', but got {mode!r}.")
        self.evaluate, self.strict, self.best_possible = evaluate, strict, best_possible
        self.sign = 1.0 if mode == "max" else -1.0
        self.evaluations, self.evaluated = 0, 0.0

    def score(self, state: State, name: str) -> float:
        """The score of a state, which ``name`` stands for in errors.

        Raises:
            ValueError: If the score is not finite or lies beyond ``best_possible``.
        """
        return require_finite(self.measure(state), name)

    def measure(self, state: State) -> float:
        """The score of a state, which may not be finite.

        Raises:
            ValueError: If it lies beyond ``best_possible``.
        """
        return self._follow(state, lambda score, share: False)[0]

    def contest(self, state: State, best: float, *, strict: bool | None = None) -> tuple[float | None, float]:
        """The score of a state if it wins against ``best``, else None; and the share of the data that took.

        One whose score is not finite does not win.

        Args:
            state: The candidate.
            best: The score to beat.
            strict: Overrides that of the scorer.

        Raises:
            ValueError: If the score lies beyond ``best_possible``.
        """
        strict = self.strict if strict is None else strict
        score, share, stopped = self._follow(state, lambda score, share: self._is_lost(score, share, best, strict))
        wins = not stopped and math.isfinite(score) and self._wins(score, best, strict)
        return (score if wins else None), share

    def _follow(self, state: State, is_lost: Callable[[float, float], bool]) -> tuple[float, float, bool]:
        """The mean, the share of the data seen, and whether the candidate was lost before the end."""
        self.evaluations += 1
        result = self.evaluate(state)
        running = iter([(float(result), 1.0)]) if isinstance(result, (int, float, Tensor)) else result
        score, share, stopped = math.nan, 0.0, False
        try:
            for score, share in running:
                self._check_bound(score)
                stopped = is_lost(score, share)
                if stopped:
                    break
        finally:
            # at once, so that it can clean up before the next one begins
            if isinstance(running, Generator):
                running.close()
        self.evaluated += share
        return score, share, stopped

    def _wins(self, score: float, best: float, strict: bool) -> bool:
        gain = self.sign * (score - best)
        return gain > 0 or (gain == 0 and not strict)

    def _is_lost(self, score: float, share: float, best: float, strict: bool) -> bool:
        if self.best_possible is None or share >= 1:
            return False
        # rounding of the mean must not cost a candidate that would just win
        slack = self.sign * 1e-9 * max(abs(best), abs(self.best_possible))
        return not self._wins(share * score + (1 - share) * self.best_possible + slack, best, strict)

    def _check_bound(self, score: float) -> None:
        if self.best_possible is not None and self.sign * (score - self.best_possible) > 1e-6:
            raise ValueError(
                f"Expected no score beyond best_possible={self.best_possible}, but got {score}. Early stopping would "
                "be wrong; set `best_possible` to the best value that the metric can take, or to None."
            )


def require_finite(score: float, name: str) -> float:
    """The score as a float, if it is finite.

    Raises:
        ValueError: If it is not; the message begins with what was scored.

    Example:
        >>> require_finite(0.5, "ingredient 3")
        0.5
    """
    if not math.isfinite(score):
        raise ValueError(
            f"Expected a finite held-out score for {name}, but got {score}. Leave that model out, or choose a metric "
            "that is defined on the held-out data."
        )
    return float(score)
