"""One executed target under several keep lists: what each list buys in distance, and what it costs in latency."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from lightning_robust.deployment.engines import Runtime, Subject, runtime
from lightning_robust.deployment.engines.execution import execute
from lightning_robust.deployment.parity.baseline import Baseline
from lightning_robust.deployment.parity.latency import LatencyPoint
from lightning_robust.deployment.parity.result import ParityReport
from lightning_robust.deployment.parity.scale import Task


def measure_trade_off(
    subject: Subject,
    report: ParityReport,
    target: str,
    names: Sequence[str],
    *,
    task: Task = Task(),  # noqa: B008 - without state
    time_limit: float = 60.0,
) -> ParityReport:
    """Add to a report how far a target is and how long it takes, with none, one, two, four and so on, and all kept.

    The samples are the first ones, which every number of the report rests on. A list with which nothing can be built or
    run is left out.

    Args:
        subject: The model and the samples of the report.
        report: A pass of :func:`~.measure.measure_parity`.
        target: An engine that is executed, in half precision or int8.
        names: Nodes or modules, the ones that matter most first; those of a keep list.
        task: As in that pass.
        time_limit: Seconds after which no further list is tried.

    Raises:
        ValueError: If the target is unknown.
    """
    made = runtime(target)
    baseline = Baseline(subject, task)
    start = time.monotonic()
    points = list(report.trade_off)
    for kept in _list_sizes(len(names)):
        if time.monotonic() - start > time_limit:
            break
        point = _measure_list(made, _keeping(subject, made, names[:kept]), baseline, report.unit, kept)
        points += [] if point is None else [point]
    return replace(report, trade_off=tuple(points))


def _list_sizes(count: int) -> Iterator[int]:
    """None, one, two, four and so on, and all."""
    yield 0
    size = 1
    while size < count:
        yield size
        size *= 2
    if count:
        yield count


def _keeping(subject: Subject, made: Runtime, names: Sequence[str]) -> Subject:
    return subject.excluding_only(names) if made.precision == "int8" else subject.keeping_only(names)


def _measure_list(made: Runtime, subject: Subject, baseline: Baseline, unit: str, kept: int) -> LatencyPoint | None:
    """The point of one list; None where the target does not run."""
    execution = execute(made, subject, baseline.first_window, timed=True)
    if execution.status != "measured" or execution.latency is None:
        return None
    deployed = baseline.scale.read(execution.outputs)
    distance = baseline.readout(baseline.first_window).distance(deployed, made.precision)[unit]
    return LatencyPoint(made.name, distance, execution.latency, kept)
