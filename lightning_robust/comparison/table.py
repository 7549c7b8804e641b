"""Puts finished runs side by side: which are one row, means and intervals, best values, the Pareto front."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from lightning_robust.comparison.columns import Column, default_columns, parse_columns, with_modes
from lightning_robust.comparison.finished_runs import SECONDS, FinishedRun
from lightning_robust.comparison.names import (
    data_of,
    identity,
    model_of,
    name_configurations,
    techniques,
)
from lightning_robust.comparison.remarks import (
    attacks,
    cautions,
    corruptions_under,
    doubts,
    other_settings,
    unknown_directions,
)
from lightning_robust.harness.directions import Mode
from lightning_robust.statistics import mean_interval


@dataclass(frozen=True)
class ComparedRow:
    """Runs that differ in their seed only.

    Args:
        name: The techniques that are switched on, with the settings that differ from other rows.
        runs: The runs of this configuration.
        plain: Whether the others are counted from it: no technique is switched on, or it is the baseline.
        times: Training time as a multiple of the plain row's; None where there is not exactly one plain row.
    """

    name: str
    runs: tuple[FinishedRun, ...]
    plain: bool
    times: float | None = None

    @property
    def model(self) -> str:
        """The class of its model; empty where that is not known."""
        return model_of(self.runs[0])

    @property
    def data(self) -> str:
        """What its numbers were measured on, to compare with others; empty where that is not known."""
        return str(sorted(data_of(self.runs[0]).items()))


@dataclass(frozen=True)
class Comparison:
    """The table.

    Args:
        rows: In order of appearance.
        values: Numbers of the rows x tags: a tuple with the value of each run that logged the tag.
        columns: The metrics to show.
        notes: What the reader should know, a sentence each.
        cautions: What the reader should know before the numbers, a sentence each.
        chosen: Whether the user named the metrics, and misses no others.
    """

    rows: tuple[ComparedRow, ...]
    values: pd.DataFrame
    columns: tuple[Column, ...]
    notes: tuple[str, ...] = ()
    cautions: tuple[str, ...] = ()
    chosen: bool = False

    def cell(self, row: int, tag: str) -> tuple[float, ...]:
        """The value of each run of a row that logged a tag."""
        values: tuple[float, ...] = self.values.at[row, tag]  # type: ignore[assignment]
        return values

    @cached_property
    def means(self) -> pd.DataFrame:
        """Rows x tags: the mean of the values, NaN without any."""
        return self.values.map(_mean_or_nan)

    def has(self, tag: str) -> pd.Series[bool]:
        """Which rows have values of a tag."""
        return self.values[tag].map(bool)

    def best(self, column: Column) -> set[int]:
        """Which rows have the best mean of those on the same data; none where there is nothing to choose from."""
        if column.mode is None:
            return set()
        means = self.means[column.tag]
        finite = means[np.isfinite(means)]
        found: set[int] = set()
        for rows in self.same_data():
            here = finite[finite.index.isin(rows)]
            if self.has(column.tag)[rows].sum() > 1:
                found |= set(here.index[here == (here.max() if column.mode == "max" else here.min())])
        return found

    def same_data(self) -> list[list[int]]:
        """The rows that were measured on the same data, together; the most rows first."""
        groups: dict[str, list[int]] = {}
        for index, row in enumerate(self.rows):
            groups.setdefault(row.data, []).append(index)
        return sorted(groups.values(), key=len, reverse=True)


def _cell_values(cell: Any) -> tuple[float, ...]:
    """A cell of a pivot table, which holds NaN where there was nothing."""
    return cell if isinstance(cell, tuple) else ()


def _mean_or_nan(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else math.nan


def mean_range(values: Sequence[float]) -> tuple[float, float] | None:
    """Of three values or more the 95 % t-interval of their mean, of two both values, of one none.

    Example:
        >>> low, high = mean_range([1.0, 2.0, 3.0])
        >>> round(high - 2, 3)  # 4.303 / sqrt(3)
        2.484
    """
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return None
    if len(values) == 2:
        return min(values), max(values)
    estimate = mean_interval(values)
    return estimate.low, estimate.high


def compare_runs(
    runs: Sequence[FinishedRun],
    metrics: str | None = None,
    baseline: str | Path | None = None,
    mode: str | None = None,
    also: Iterable[str] = (),
) -> Comparison:
    """Put runs side by side.

    Args:
        runs: From :func:`~lightning_robust.comparison.finished_runs.read_run`.
        metrics: ``"tag:max,tag:min,..."``; without a direction the name of the metric decides. By default what the
            library logs, and whatever begins with val, valid, validation or test.
        baseline: Folder of the runs that costs are counted from; by default those without a technique, where they are
            one row.
        mode: ``"tag=max,tag=min,..."``: directions that the names of metrics do not say.
        also: Further metrics, of which those that a run logged are shown.

    Raises:
        ValueError: If there is no run, a metric is written wrongly or in none of the runs, or the baseline is not one
            row.
    """
    if not runs:
        raise ValueError("Expected at least one finished run, but got none. Name folders with a config.yaml.")
    groups: dict[str, list[FinishedRun]] = {}
    for run in runs:
        groups.setdefault(str(sorted(identity(run).items())), []).append(run)
    members = [tuple(group) for group in groups.values()]
    values = _tabulate(members)
    tags = values.columns.tolist()
    columns = _choose_columns(tags, metrics, mode, also)
    values = values.reindex(columns=list(dict.fromkeys([*(column.tag for column in columns), SECONDS]))).map(
        _cell_values
    )
    first = [group[0] for group in members]
    plain = _find_plain(members, baseline)
    parts = zip(name_configurations(first), members, plain, _times_plain(values[SECONDS], plain), strict=True)
    rows = [ComparedRow(*part) for part in parts]
    shown = values[[column.tag for column in columns]]
    notes = [*other_settings(first), *doubts(rows, shown), *attacks(runs, columns), *corruptions_under(runs, columns)]
    notes += unknown_directions(columns)
    return Comparison(tuple(rows), values, tuple(columns), tuple(notes), tuple(cautions(rows)), metrics is not None)


def _choose_columns(tags: Sequence[str], metrics: str | None, mode: str | None, also: Iterable[str]) -> list[Column]:
    """The metrics to show, with their directions."""
    columns = default_columns(tags) if metrics is None else parse_columns(metrics, tags)
    chosen = {column.tag for column in columns}
    columns += [Column.of(tag) for tag in also if tag in tags and tag not in chosen]
    return columns if mode is None else with_modes(columns, mode, tags)


def _tabulate(members: Sequence[Sequence[FinishedRun]]) -> pd.DataFrame:
    """Rows x tags: a tuple of the values of all runs."""
    logged = pd.DataFrame(
        [(row, *scalar) for row, runs in enumerate(members) for run in runs for scalar in run.scalars.items()],
        columns=["row", "tag", "value"],
    )
    return logged.groupby(["row", "tag"])["value"].agg(tuple).unstack().reindex(range(len(members)))


def pareto_front(points: ArrayLike, modes: Sequence[Mode]) -> list[int]:
    """Which points no other point beats in one respect without losing in the other.

    Example:
        >>> pareto_front([(1, 1), (2, 0), (0, 0)], ("max", "max"))
        [0, 1]
    """
    scores = np.asarray(points, dtype=float) * [1 if mode == "max" else -1 for mode in modes]
    beaten = [bool(((scores >= point).all(1) & (scores > point).any(1)).any()) for point in scores]
    return [index for index, is_beaten in enumerate(beaten) if not is_beaten]


def leading(comparison: Comparison, group: str) -> Column | None:
    """The metric that speaks for a group: the first clean one, else the worst over all rows (PGD-20 rather than FGSM).

    None where no metric of the group has a direction.
    """
    columns = [column for column in comparison.columns if column.group == group and column.mode is not None]
    if group == "clean":
        return next(iter(columns), None)
    return min(columns, key=lambda column: _merit(comparison, column), default=None)


def axes(comparison: Comparison) -> tuple[Column, Column] | None:
    """What the picture shows: clean against attacked, else corrupted, preprocessing or fp16; None without both."""
    clean = leading(comparison, "clean")
    for group in ("attacked", "corrupted", "preprocessing", "fp16"):
        robust = leading(comparison, group)
        if clean and robust:
            return clean, robust
    usable = [column for column in comparison.columns if column.mode is not None]
    return (usable[0], usable[1]) if len(usable) > 1 and usable[0].group == "other" else None


def _merit(comparison: Comparison, column: Column) -> float:
    """How good the rows are on the whole; larger is better."""
    means = comparison.means[column.tag][comparison.has(column.tag)]
    return float(means.mean(skipna=False)) * (1 if column.mode == "max" else -1)


def _find_plain(members: Sequence[Sequence[FinishedRun]], baseline: str | Path | None) -> list[bool]:
    """Which rows the others are counted from."""
    if baseline is None:
        return [bool(group[0].config) and not techniques(group[0].config) for group in members]
    folder = Path(baseline).resolve()
    plain = [any(run.folder.resolve().is_relative_to(folder) for run in group) for group in members]
    if sum(plain) != 1:
        raise ValueError(
            f"Expected the baseline to be a folder with runs of one configuration, all of them compared, but {folder} "
            f"holds runs of {sum(plain)}."
        )
    return plain


def _times_plain(seconds: pd.Series[Any], plain: Sequence[bool]) -> list[float | None]:
    means = seconds.map(_mean_or_nan)
    reference = means[list(plain)].dropna()
    if len(reference) != 1 or len(means) < 2:
        return [None] * len(means)
    return [None if math.isnan(mean) else mean / reference.iloc[0] for mean in means]
