"""A comparison held against a budget: how much worse than the baseline a run may be."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from statistics import fmean

from lightning_robust.comparison.columns import Column
from lightning_robust.comparison.table import Comparison
from lightning_robust.gate.check import Check, Judgement
from lightning_robust.statistics import welch_half_width

SPREAD = "the spread over seeds"
"""The budget where nobody set one."""


def judge_comparison(
    comparison: Comparison, limits: Mapping[str, float], budget: str = "", asked: Collection[str] = ()
) -> Judgement:
    """Say whether a configuration is worse than the baseline by more than is allowed.

    Args:
        comparison: From :func:`~.table.compare_runs`; the baseline is its one plain row.
        limits: Metric -> how much worse the mean over seeds may be.
        budget: Where the limits are from.
        asked: The metrics that were asked for. Of those without a limit the spread is one: a difference of two means
            counts from half of its 95 % interval (Welch's, from two runs on each side), and with one run nothing does.
    """
    plain = [index for index, row in enumerate(comparison.rows) if row.plain]
    tags = dict.fromkeys([*limits, *asked])
    if not tags:
        checks = _means_alone(comparison, [column.tag for column in comparison.columns])
    elif len(plain) != 1 or len(comparison.rows) == 1:
        alone = "there is nothing beside the baseline"
        note = alone if len(plain) == 1 else "there is no baseline, or several: name one with --baseline"
        checks = [Check("", tag, math.nan, limit, note=note) for tag, limit in limits.items()]
        checks += _means_alone(comparison, asked)
    else:
        checks = _against(comparison, plain[0], tags, limits)
    return Judgement("compare", tuple(checks), _limits_from(checks, limits, budget))


def _limits_from(checks: Iterable[Check], limits: Mapping[str, float], budget: str) -> str:
    """Where the limits of checks are from, in words."""
    by_spread = any(check.limit is not None and check.key not in limits for check in checks)
    return " and ".join([budget] * bool(limits) + [SPREAD] * by_spread)


def _means_alone(comparison: Comparison, tags: Iterable[str]) -> list[Check]:
    """The mean of every row, without a limit."""
    rows = list(enumerate(comparison.rows))
    return [Check("", tag, _mean(comparison, row, tag), case=of.name) for tag in tags for row, of in rows]


def _mean(comparison: Comparison, row: int, tag: str) -> float:
    values = comparison.cell(row, tag)
    return fmean(values) if values else math.nan


def _against(comparison: Comparison, plain: int, tags: Iterable[str], limits: Mapping[str, float]) -> list[Check]:
    """How much worse than the baseline every other row is."""
    columns = {column.tag: column for column in comparison.columns}
    others = [row for row in range(len(comparison.rows)) if row != plain]
    return [
        _row_check(comparison, row, plain, columns.get(tag), tag, limits.get(tag)) for tag in tags for row in others
    ]


def _row_check(
    comparison: Comparison, row: int, plain: int, column: Column | None, tag: str, limit: float | None
) -> Check:
    """How much worse one row is than the baseline."""
    name = comparison.rows[row].name
    note = _why_not_comparable(comparison, row, plain, column, tag)
    if note or column is None:
        return Check("", tag, math.nan, limit, note=note, case=name, demanded=True)
    ours, theirs = (_mean(comparison, index, tag) for index in (row, plain))
    worse = _worse(column, ours, theirs)
    spread = welch_half_width(*(comparison.cell(index, tag) for index in (row, plain)))
    low, high = (max(worse + side, 0.0) if math.isfinite(spread) else math.nan for side in (-spread, spread))
    limit = _limit_by_spread(spread, worse) if limit is None else limit
    allowed = "" if limit is None else f", allowed {limit:.3g}"
    told = f"{tag} is {ours:.4g}, {_tell_difference(worse)} the baseline's {theirs:.4g}{allowed}"
    return Check("", tag, max(worse, 0.0), limit, low, high, case=name, sentence=told, demanded=math.isnan(worse))


def _tell_difference(worse: float) -> str:
    if math.isnan(worse):
        return "which does not compare with"
    return "as good as" if worse == 0 else f"{abs(worse):.3g} {'worse' if worse > 0 else 'better'} than"


def _limit_by_spread(spread: float, worse: float) -> float | None:
    """The spread, where there is one; what has diverged is beyond any."""
    if math.isfinite(spread):
        return spread
    return 0.0 if worse == math.inf else None


def _worse(column: Column, ours: float, theirs: float) -> float:
    """By how much a mean is worse than the baseline's; below 0 where it is better."""
    return ours - theirs if column.mode == "min" else theirs - ours


def _why_not_comparable(comparison: Comparison, row: int, plain: int, column: Column | None, tag: str) -> str:
    if column is None or not comparison.cell(plain, tag):
        return "the baseline did not log it"
    if not comparison.cell(row, tag):
        return "it was not logged"
    if column.mode is None:
        return f"whether more or less is better is not known: write {tag}:max or {tag}:min"
    if comparison.rows[row].data != comparison.rows[plain].data:
        return "it was measured on other data than the baseline's"
    return ""
