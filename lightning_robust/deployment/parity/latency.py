"""Accuracy against latency: a point for each target that was timed, and for one target under several keep lists."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lightning_robust.deployment.engines.latency import Latency

if TYPE_CHECKING:
    from lightning_robust.deployment.parity.result import ParityReport


@dataclass(frozen=True)
class LatencyPoint:
    """How far a target is away, and how long it takes.

    Args:
        target: Its name.
        distance: To the reference, in the report's unit.
        latency: Of one inference.
        kept: How many nodes were kept in a higher precision; None for the target as it was measured in the pass.
    """

    target: str
    distance: float
    latency: Latency
    kept: int | None = None


def latency_points(report: ParityReport) -> tuple[LatencyPoint, ...]:
    """The targets of a report that were timed, or what it holds of one under keep lists; finite distances alone.

    Args:
        report: A parity pass.
    """
    unit = report.unit
    listed = {point.target for point in report.trade_off}
    timed = [(name, target.metrics.get(unit, math.nan), target.latency) for name, target in report.targets.items()]
    points = [
        LatencyPoint(name, distance, latency) for name, distance, latency in timed if latency and name not in listed
    ]
    return tuple(point for point in (*points, *report.trade_off) if math.isfinite(point.distance))


def pareto(points: Sequence[LatencyPoint]) -> list[LatencyPoint]:
    """The points that no other is better than in both, the fastest first: as near and faster, or as fast and nearer.

    Example:
        >>> once = lambda seconds: Latency(seconds, seconds, 1, 1)
        >>> names = {"a": (0.3, 1.0), "b": (0.1, 2.0), "c": (0.2, 3.0)}
        >>> points = [LatencyPoint(name, distance, once(seconds)) for name, (distance, seconds) in names.items()]
        >>> [point.target for point in pareto(points)]
        ['a', 'b']
    """
    front: list[LatencyPoint] = []
    for point in sorted(points, key=lambda point: (point.latency.median, point.distance)):
        if not front or point.distance < front[-1].distance:
            front.append(point)
    return front
