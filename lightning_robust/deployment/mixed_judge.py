"""A model in mixed precision, held against its budget."""

from __future__ import annotations

import math

from lightning_robust.deployment.mixed_precision import MixedModel
from lightning_robust.deployment.parity.baseline import Measured
from lightning_robust.gate.check import Check, Judgement


def judge_mixed(found: MixedModel, metric: str = "", source: str = "--budget") -> Judgement:
    """Say whether the file that was written meets the budget, executed too where it was.

    Args:
        found: From :func:`~.mixed_precision.convert_mixed`.
        metric: What the budget is a limit of; empty for the unit in which the file was measured.
        source: Where the budget is from.
    """
    precision, unit = str(found.layers.precision), found.keep.unit
    place = next((node.place for node in found.layers.ranked()[:1] if node.isolated), "")
    parts = {"": (found.measured, found.distance)}
    if found.executed is not None and found.executed_distance is not None:
        parts["executed in integers"] = (found.executed, found.executed_distance)
    if metric not in ("", unit):
        note = f"the budget is one of {metric}, and the file was measured in {unit}"
        return Judgement("precision", (Check(precision, metric, math.nan, found.keep.tolerance, note=note),), source)
    checks = [
        Check(precision, unit, distance, found.keep.tolerance, *_ends(measured, unit), place, case=case)
        for case, (measured, distance) in parts.items()
    ]
    return Judgement("precision", tuple(checks), source, origin=found.path.name)


def _ends(measured: Measured, unit: str) -> tuple[float, float]:
    """The interval of a distance; NaN where it is not known."""
    interval = measured.intervals.get(unit)
    return (math.nan, math.nan) if interval is None else (interval.low, interval.high)
