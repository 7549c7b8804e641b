"""Which layers make the difference: the sweep of ``numerics/sweep.py`` in the unit of the report, on its samples."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import cast

from lightning_robust.deployment.engines import Subject
from lightning_robust.deployment.engines.base import HALF, feed
from lightning_robust.deployment.engines.parser_support import with_refusals
from lightning_robust.deployment.graph.batches import Arrays
from lightning_robust.deployment.numerics.int8_sweep import Int8Sweep
from lightning_robust.deployment.numerics.keep_list import KeepList, check_keep_list, find_keep_list
from lightning_robust.deployment.numerics.precisions import Low
from lightning_robust.deployment.numerics.sensitivity import SOUND, Sensitivity
from lightning_robust.deployment.numerics.sweep import Measure, NodeSweep
from lightning_robust.deployment.parity.readout import PLAIN_UNIT
from lightning_robust.deployment.parity.result import Examination, ParityReport
from lightning_robust.deployment.parity.scale import Decode, Known, Scale, Task
from lightning_robust.deployment.parity.trade_off import try_int8_lists

_SHARE = 0.2  # of what the whole graph costs: what the list aims at where nothing else is asked for
_SEARCH = 4  # times as many samples as for the sweep: the search asks far less often
_MEMORY = 2**28  # bytes of outputs


def localise(
    subject: Subject,
    report: ParityReport,
    *,
    decode: Decode | None = None,
    known: Known | None = None,
    tolerance: float | None = None,
    limits: Mapping[str, float] | None = None,
    samples: int = 4,
    time_limit: float = 60.0,
) -> ParityReport:
    """Add to a report what each node costs in low precision, and the shortest list of nodes to keep in fp32.

    The nodes are swept on the first samples, the list is found on four times as many, at most half of all, and its
    distance is stated on the others. The nodes that the parser of TensorRT-RTX refuses are added too, where it is
    installed. What fails of int8 is a note. An int8 engine of the CPU that was timed is timed under the list for int8.

    Args:
        subject: The model and the samples of the report, or more of them.
        report: A pass of :func:`~.parity.measure_parity`: where a half precision is in its targets, the nodes are
            examined in it, where int8 is, the products are, and without either only refused nodes are added.
        decode: As in that pass.
        known: As in that pass.
        tolerance: Largest distance that is allowed, in ``report.unit``. If None, a fifth of what the whole graph
            costs, but no more than what `limits` allow, or, where they say nothing of the unit, than what a sound model
            costs.
        limits: The user's tolerances, as for :func:`~.verdict.judge_parity`.
        samples: How many samples are used to sweep over the nodes.
        time_limit: Seconds for the sweep, again for the list, and again for its check, which then uses fewer samples;
            what was not reached is marked. As much again where both precisions are examined.

    Raises:
        ExportError: If the module cannot be exported.
        ValueError: If the graph cannot be emulated, nothing in it computes in fp32, or its outputs in fp32 are not
            finite.
    """
    asked = {name.rsplit("-", 1)[1] for name in report.targets}
    report = replace(report, findings=with_refusals(subject.exported, report.findings))
    if not asked & {*HALF, "int8"}:
        return report
    look = partial(
        examine,
        subject,
        unit=report.unit,
        decode=decode,
        known=known,
        tolerance=tolerance,
        limits=limits,
        samples=samples,
        time_limit=time_limit,
    )
    half = next((precision for precision in HALF if precision in asked), None)
    if half is not None:
        layers, keep = look(cast(Low, half))
        report = replace(report, layers=layers, keep=keep)
    if "int8" in asked:
        try:
            report = replace(report, int8=Examination(*look("int8")))
        except ValueError as error:
            report = replace(report, notes=(*report.notes, f"Layers in int8 were not measured: {error}"))
    return try_int8_lists(subject, report, Task(decode, known), time_limit)


def examine(
    subject: Subject,
    precision: Low,
    unit: str,
    *,
    decode: Decode | None = None,
    known: Known | None = None,
    tolerance: float | None = None,
    limits: Mapping[str, float] | None = None,
    samples: int = 4,
    time_limit: float = 60.0,
) -> tuple[Sensitivity, KeepList]:
    """What each node costs in a precision, and the shortest list of nodes to keep; :func:`localise` says how.

    Args:
        subject: The model and the samples.
        precision: What is asked about.
        unit: The metric that distances are counted in.
        decode: As for :func:`localise`, and so are all that follow.
        known: As there.
        tolerance: As there.
        limits: As there.
        samples: As there.
        time_limit: As there.

    Raises:
        ExportError: If the module cannot be exported.
        ValueError: If the graph cannot be emulated, nothing in it computes in fp32, or its outputs in fp32 are not
            finite.
    """
    count = subject.samples
    found = min(_SEARCH * samples, max(count // 2, 1))
    few = min(samples, found)
    scale = Scale(subject.module, subject.rows(slice(few)), decode, known)
    distance = partial(scale.distance, precision=precision)
    sweep = _open_sweep(subject, precision, slice(found), partial(distance, unit), unit)
    first = _fed(subject, slice(few))
    layers = sweep.on(first).sensitivity(time_limit)
    if tolerance is None:
        plain = sweep.on(first, measure=partial(distance, PLAIN_UNIT)).cost_of_keeping(())
        tolerance = _aim(layers, plain, limits or {})
    keep = find_keep_list(sweep, layers, tolerance, time_limit)
    last = min(count, found + _affordable(sweep, time_limit))
    if last > found:
        others = _fed(subject, slice(found, last))
        keep = check_keep_list(keep, sweep.on(others, measure=partial(distance, unit, start=found)))
    return layers, keep


def _open_sweep(subject: Subject, precision: Low, rows: slice, measure: Measure, unit: str) -> NodeSweep:
    """The subject's graph on some of its samples, what its settings keep in fp32 left aside."""
    model, origins, feeds = subject.exported.model, subject.exported.origins, _fed(subject, rows)
    if precision == "int8":
        excluded, ranges = subject.excluded_nodes(), subject.calibrated.ranges
        return Int8Sweep(model, feeds, ranges, measure=measure, unit=unit, origins=origins, kept=excluded)
    return NodeSweep(
        model,
        feeds,
        precision=precision,
        measure=measure,
        unit=unit,
        origins=origins,
        out_of_range=subject.settings.out_of_range,
        kept=subject.fp32_nodes(),
        tf32=subject.settings.tf32,
    )


def _fed(subject: Subject, rows: slice) -> Arrays:
    """What the graph takes, of some of the samples."""
    return feed(subject.rows(rows), subject.exported)


def _aim(layers: Sensitivity, plain: float, limits: Mapping[str, float]) -> float:
    """A share of what the whole graph costs, but no more than is allowed, or than a sound model costs.

    Args:
        layers: The sweep.
        plain: The relative L2 that belongs to its ``total``.
        limits: What the user allows.
    """
    sound = SOUND[layers.precision]
    allowed = _user_limit(limits, layers)
    if allowed is None and layers.unit == PLAIN_UNIT:
        allowed = sound
    if allowed is not None:
        return min(_SHARE * layers.total, allowed)
    if math.isfinite(layers.total) and math.isfinite(plain):
        return layers.total * min(_SHARE, sound / max(plain, sound))
    costs = (node.isolated for node in layers.nodes if node.isolated is not None and node.trace.overflow == 0)
    return math.hypot(*filter(math.isfinite, costs))


def _user_limit(limits: Mapping[str, float], layers: Sensitivity) -> float | None:
    """The smallest tolerance for the sweep's precision and in its unit, whichever engine it is for."""
    units = (layers.unit, layers.unit.replace("_known_", "_"))
    ends = tuple(f"-{layers.precision}/{unit}" for unit in units)
    tags = {key if "/" in key else f"{key}/{PLAIN_UNIT}": limit for key, limit in limits.items()}
    return min((limit for tag, limit in tags.items() if tag.endswith(ends)), default=None)


def _affordable(sweep: NodeSweep, time_limit: float) -> int:
    """How many samples can be run three times within the time, and their outputs held in memory."""
    start = time.monotonic()
    sweep.cost(())
    seconds = (time.monotonic() - start) / sweep.samples
    return int(min(time_limit / (3 * seconds), _MEMORY * sweep.samples / sweep.output_bytes))
