"""A dump of the deployed side and engines on golden inputs, held against a budget."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from lightning_robust.deployment.budget_keys import GOLDEN_PARTS
from lightning_robust.deployment.golden import GoldenReport
from lightning_robust.gate.check import Check, Judgement
from lightning_robust.suggest import did_you_mean


def judge_golden(
    dump: GoldenReport | None,
    targets: Mapping[str, GoldenReport | str],
    limits: Mapping[str, float],
    budget: str = "",
) -> Judgement:
    """Say whether a dump, or engines, keep to a budget; of limits only those for what was compared are asked.

    Args:
        dump: From :func:`~.golden.check_golden`; None where no dump was checked.
        targets: From :func:`~.golden.check_targets`: of each target its report, or why there is none.
        limits: ``"<part>/<metric>"`` -> limit, for the parts ``whole``, ``input`` and ``engine`` of a dump's distance,
            and for targets.
        budget: Where the limits are from.

    Example:
        >>> dump = GoldenReport({}, {}, {"rel_l2": 0.2}, {}, {"rel_l2": 0.2}, "rel_l2")
        >>> print(judge_golden(dump, {}, {"whole/rel_l2": 0.1}, "parity.yaml").text())
        verdict: beyond parity.yaml: whole/rel_l2 is 0.2, allowed 0.1
    """
    parts = {} if dump is None else _parts_of_dump(dump)
    engines = {name: _part_of_target(report) for name, report in targets.items()}
    checks = [*_limited(parts, limits, of_dump=True), *_limited(engines, limits, of_dump=False)]
    unit = next((report.unit for report in (dump, *targets.values()) if isinstance(report, GoldenReport)), "rel_l2")
    limited = {check.subject for check in checks}
    found = {name: part for name, part in (parts | engines).items() if name not in limited}
    told = [_golden_check(found, f"{name}/{unit}", None, demanded=name in engines) for name in found]
    return Judgement("golden", (*checks, *told), budget if checks else "")


def _limited(parts: Mapping[str, _Part], limits: Mapping[str, float], *, of_dump: bool) -> list[Check]:
    """The checks of what has limits, where it was compared at all."""
    return [_golden_check(parts, key, limit) for key, limit in limits.items() if parts and _is_of_dump(key) == of_dump]


def _is_of_dump(key: str) -> bool:
    return key.partition("/")[0] in GOLDEN_PARTS


class _Part(NamedTuple):
    """Distances, where the pictures differ, and why there are none."""

    metrics: Mapping[str, float]
    place: str
    absence: str


def _parts_of_dump(dump: GoldenReport) -> dict[str, _Part]:
    """The parts of a dump's distance; what was not dumped has none."""
    causes = [f"{name}: {cause.sentence}" for name, seen in dump.pictures.items() for cause in seen.causes[:1]]
    metrics = {"whole": dump.whole, "input": dump.preprocessing, "engine": dump.engine}
    missing = {
        "whole": "the dump has no outputs",
        "input": "the dump has no inputs",
        "engine": "the dump has no outputs",
    }
    return {
        name: _Part(metrics[name], "" if name == "engine" else "; ".join(causes), missing[name]) for name in metrics
    }


def _part_of_target(report: GoldenReport | str) -> _Part:
    return _Part({}, "", report) if isinstance(report, str) else _Part(report.whole, "", "")


def _golden_check(parts: Mapping[str, _Part], key: str, limit: float | None, demanded: bool = False) -> Check:
    subject, _, metric = key.partition("/")
    part = parts.get(subject)
    if part is None:
        note = f"it was not run: add it to the targets, which were {', '.join(parts)}"
        return Check(subject, metric, math.nan, limit, note=note)
    value = part.metrics.get(metric, math.nan)
    note = part.absence
    if part.metrics and metric not in part.metrics:
        note = f"it has no such metric.{did_you_mean(metric, part.metrics)} There are {', '.join(sorted(part.metrics))}"
    return Check(subject, metric, value, limit, place=part.place, note=note * math.isnan(value), demanded=demanded)
