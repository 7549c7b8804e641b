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
from lightning_robust.progress import track

_ENGINES = ("openvino-int8", "onnxruntime-int8")


def try_int8_lists(subject: Subject, report: ParityReport, task: Task, time_limit: float = 60.0) -> ParityReport:
    """:func:`measure_trade_off` of the list for int8, on the faster int8 engine of the CPU; nothing without either.

    Args:
        subject: As there.
        report: One in which :func:`~.localise.localise` has examined int8, of a pass that was timed.
        task: As there.
        time_limit: As there.
    """
    timed = {name: target.latency for name, target in report.targets.items() if name in _ENGINES and target.latency}
    names = _kept_from_int8(report)
    if not names or not timed:
        return report
    fastest = min(timed, key=lambda name: timed[name].median)
    return measure_trade_off(subject, report, fastest, names, task=task, time_limit=time_limit)


def _kept_from_int8(report: ParityReport) -> list[str]:
    """The nodes of the list for int8, the ones that matter most first; empty without a list."""
    if report.int8 is None or report.int8.keep is None:
        return []
    return [node.name for node in report.int8.layers.ranked() if node.name in report.int8.keep.nodes]


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
    for kept in track(list(_list_sizes(len(names))), f"Building {target} with nodes kept"):
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
    """With these names beside those that the settings keep."""
    if made.precision == "int8":
        return subject.excluding_only((*subject.excluded_nodes(), *names))
    return subject.keeping(names)


def _measure_list(made: Runtime, subject: Subject, baseline: Baseline, unit: str, kept: int) -> LatencyPoint | None:
    """The point of one list; None where the target does not run."""
    execution = execute(made, subject, baseline.first_window, timed=True)
    if execution.status != "measured" or execution.latency is None:
        return None
    deployed = baseline.scale.read(execution.outputs)
    distance = baseline.readout(baseline.first_window).distance(deployed, made.precision)[unit]
    return LatencyPoint(made.name, distance, execution.latency, kept)
