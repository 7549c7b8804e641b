"""Which layers make the difference: the sweep of ``numerics/sensitivity.py`` in the unit of the report."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any, cast

from lightning_robust.deployment.engines import Subject
from lightning_robust.deployment.engines.base import HALF, feed
from lightning_robust.deployment.engines.parser_support import with_refusals
from lightning_robust.deployment.numerics.keep_list import find_keep_list
from lightning_robust.deployment.numerics.rounding import Precision
from lightning_robust.deployment.numerics.sensitivity import NodeSweep, Sensitivity
from lightning_robust.deployment.parity.result import ParityReport
from lightning_robust.deployment.parity.scale import Decode, Known, Scale
from lightning_robust.structures import count_rows, take_rows

_SHARE = 0.2  # of what the whole graph costs: what the list aims at where no tolerance is given


def localise(
    subject: Subject,
    report: ParityReport,
    *,
    decode: Decode | None = None,
    known: Known | None = None,
    tolerance: float | None = None,
    samples: int = 4,
    time_limit: float = 60.0,
) -> ParityReport:
    """Add to a report what each node costs in low precision, and the shortest list of nodes to keep in fp32.

    The nodes that the parser of TensorRT-RTX refuses are added too, where it is installed.

    Args:
        subject: The model and the samples of the report.
        report: A pass of :func:`~.parity.measure_parity` in whose targets there is a half precision; without one
            nothing is added.
        decode: As in that pass.
        known: As there.
        tolerance: Largest distance that is allowed, in ``report.unit``; if None, a fifth of what the whole graph
            costs, or, where that is infinite, twice what the nodes cost together that lose nothing.
        samples: How many of the samples are used.
        time_limit: Seconds for the sweep, and again for the list; what was not reached is marked.

    Raises:
        ExportError: If the module cannot be exported.
        ValueError: If the graph cannot be emulated.
    """
    report = replace(report, findings=with_refusals(subject.exported, report.findings))
    precision = next((p for p in HALF if any(name.endswith(f"-{p}") for name in report.targets)), None)
    if precision is None:
        return report
    exported = subject.exported
    example = _first(subject.example, samples)
    sweep = NodeSweep(
        exported.model,
        feed(example, exported),
        precision=cast(Precision, precision),
        measure=partial(Scale(subject.module, example, decode, known).distance, report.unit),
        unit=report.unit,
        origins=exported.origins,
        out_of_range=subject.out_of_range,
    )
    layers = sweep.sensitivity(time_limit)
    keep = find_keep_list(sweep, layers, _aim(layers) if tolerance is None else tolerance, time_limit)
    return replace(report, layers=layers, keep=keep)


def _aim(layers: Sensitivity) -> float:
    """A share of what the whole graph costs; where that is infinite, twice what those nodes do that lose nothing."""
    if math.isfinite(layers.total):
        return _SHARE * layers.total
    return 2 * math.sqrt(sum(node.isolated**2 for node in layers.nodes if math.isfinite(node.isolated)))


def _first(args: tuple[Any, ...], samples: int) -> tuple[Any, ...]:
    taken: tuple[Any, ...] = take_rows(args, slice(samples), count_rows(args))
    return taken
