"""A parity report held against a budget: a check for each limit, and one for each target that has none."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Literal

from lightning_robust.deployment.parity.links import Basis
from lightning_robust.deployment.parity.result import ParityReport
from lightning_robust.gate.check import Check, Judgement
from lightning_robust.suggest import did_you_mean

_NO_BASIS = Basis(0, math.nan, math.nan)


def judge_report(
    report: ParityReport,
    limits: Mapping[str, float],
    budget: str = "",
    asked: Literal["auto"] | Collection[str] = "auto",
) -> Judgement:
    """Say whether a pass keeps to a budget.

    Args:
        report: A parity pass; where its layers were examined, the worst of them is the place.
        limits: ``"<target>/<metric>"`` -> largest allowed value; a target that is missing could not be measured.
        budget: Where the limits are from.
        asked: The targets that were asked for by name, which count even without a limit; ``"auto"`` asks for none.

    Example:
        >>> from lightning_robust.deployment.parity.result import TargetResult
        >>> targets = {"emulated-fp16": TargetResult("measured", {"rel_l2": 0.2})}
        >>> report = ParityReport(targets, {}, (), "rel_l2", "torch-fp64", 16, 0.1)
        >>> print(judge_report(report, {"emulated-fp16/rel_l2": 0.1}, "parity.yaml").text())
        verdict: beyond parity.yaml: emulated-fp16/rel_l2 is 0.2, allowed 0.1
    """
    checks = [_check_of(report, key, limit) for key, limit in limits.items()]
    limited = {check.subject for check in checks}
    others = [name for name in report.targets if name not in limited]
    checks += [
        _check_of(report, f"{name}/{report.unit}", None, demanded=asked != "auto" and name in asked) for name in others
    ]
    return Judgement("parity", tuple(checks), budget)


def _check_of(report: ParityReport, key: str, limit: float | None, demanded: bool = False) -> Check:
    target, _, metric = key.partition("/")
    value = report.scalars().get(f"parity/{key}", math.nan)
    _, low, high = report.basis.get(f"parity/{key}", _NO_BASIS)
    if math.isnan(value):
        return Check(target, metric, value, limit, note=_why_absent(report, target, metric), demanded=demanded)
    return Check(target, metric, value, limit, low, high, _worst_place(report, target), demanded=demanded)


def _why_absent(report: ParityReport, target: str, metric: str) -> str:
    """Why a target has no such number."""
    result = report.targets.get(target)
    if result is None:
        return f"it was not run: add it to the targets, which were {', '.join(report.targets) or 'none'}"
    if result.status != "measured":
        return f"{result.status}: {result.note}" if result.note else result.status
    if metric in result.metrics:
        return "there is no value to compare on these samples"
    known = [tag.split("/", 2)[2] for tag in result.scalars(target)]
    return f"it has no such metric.{did_you_mean(metric, known)} There are {', '.join(sorted(known))}"


def _worst_place(report: ParityReport, target: str) -> str:
    """The layer that costs most in a target's precision, where that was examined."""
    for examined in report.examined:
        if target.endswith(f"-{examined.layers.precision}") and examined.layers.nodes:
            worst = examined.layers.ranked()[0]
            return worst.place if worst.isolated else ""
    return ""
