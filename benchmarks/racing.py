"""Several ways to do the same thing, timed in interleaved rounds of one run, and their table."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

Contestants = dict[str, Callable[[], object]]
"""Name -> one round. One that returns a ``float`` tells its own milliseconds (it runs in another process)."""


def race(contestants: Contestants, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of processor time of each round, all threads; what else the machine does hardly counts."""
    for run in contestants.values():
        run()
        run()
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            start = time.process_time()
            told = run()
            spent = 1e3 * (time.process_time() - start)
            times[name].append(told if isinstance(told, float) else spent)
    return times


def table(title: str, times: Mapping[str, list[float]], limits: Mapping[str, list[float]] | None = None) -> None:
    """Minimum in milliseconds; ratio to the limit: of minima, and the median over rounds.

    Args:
        title: Above the table.
        times: Of :func:`race`; the first row is the limit.
        limits: That of rows which have one of their own, each at least as long as there are rounds.
    """
    first = next(iter(times.values()))
    print(f"\n{title}\n\n| | ms | x limit | median of rounds (10 % to 90 %) |\n| --- | --- | --- | --- |")
    for name, values in times.items():
        limit = (limits or {}).get(name, first)[-len(values) :]
        ratios = sorted(value / base for value, base in zip(values, limit, strict=True))
        low, high = ratios[len(ratios) // 10], ratios[-1 - len(ratios) // 10]
        ratio = min(values) / min(limit)
        print(
            f"| {name} | {min(values):.3g} | {ratio:.3g} | {statistics.median(ratios):.3g} ({low:.3g} to {high:.3g}) |"
        )
