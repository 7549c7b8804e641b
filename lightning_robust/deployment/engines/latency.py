"""How long one inference takes. Who measures it, and when, is decided elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_BUDGET = 0.5  # seconds
_MOST = 100


@dataclass(frozen=True)
class Latency:
    """How long one inference takes on a warm engine, as its caller waits for it.

    Args:
        median: Seconds.
        p99: Seconds within which 99 of 100 inferences are done; with fewer than 100 runs that is the longest one.
        runs: How many were timed. A machine that does other work at the same time stretches the longest ones.
        batch: Samples in one inference.
    """

    median: float
    p99: float
    runs: int
    batch: int

    @classmethod
    def of(cls, seconds: Sequence[float], batch: int) -> Latency:
        """The summary of several inferences.

        Args:
            seconds: What each took.
            batch: Samples in each.

        Raises:
            ValueError: If none was timed.

        Example:
            >>> Latency.of([0.004, 0.001, 0.002], batch=1)
            Latency(median=0.002, p99=0.004, runs=3, batch=1)
        """
        if not seconds:
            raise ValueError("Expected the seconds of at least one inference, but got none.")
        ranked = sorted(seconds)
        runs = len(ranked)
        median = (ranked[(runs - 1) // 2] + ranked[runs // 2]) / 2
        return cls(median, ranked[math.ceil(0.99 * runs) - 1], runs, batch)


def time_runs(run: Callable[[], object], budget: float = _BUDGET, most: int = _MOST) -> list[float]:
    """The seconds that each of several runs takes by the clock of this process, after one that warms up.

    Args:
        run: One inference, whose result is there when it returns.
        budget: Seconds after which no further run is started; the first is always made.
        most: Largest number of runs.

    Example:
        >>> len(time_runs(lambda: None, most=10))
        10
    """
    run()
    seconds: list[float] = []
    while len(seconds) < most and (not seconds or sum(seconds) < budget):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return seconds
