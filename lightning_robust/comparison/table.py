"""Puts finished runs side by side: which are one row, means and intervals, best values, the Pareto front."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from lightning_robust.comparison.columns import Column, Mode, default_columns, parse_columns
from lightning_robust.comparison.finished_runs import SECONDS, FinishedRun
from lightning_robust.comparison.names import (
    class_arguments,
    identity,
    name_configurations,
    other_differences,
    seeds,
    techniques,
)
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


@dataclass(frozen=True)
class Comparison:
    """The table.

    Args:
        rows: In order of appearance.
        values: Numbers of the rows x tags: a tuple with the value of each run that logged the tag.
        columns: The metrics to show.
        notes: What the reader should know, a sentence each.
    """

    rows: tuple[ComparedRow, ...]
    values: pd.DataFrame
    columns: tuple[Column, ...]
    notes: tuple[str, ...] = ()

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
        """Which rows have the best mean; none where there is nothing to choose from."""
        means = self.means[column.tag]
        finite = means[np.isfinite(means)]
        if column.mode is None or self.has(column.tag).sum() < 2:
            return set()
        return set(finite.index[finite == (finite.max() if column.mode == "max" else finite.min())])


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
    runs: Sequence[FinishedRun], metrics: str | None = None, baseline: str | Path | None = None
) -> Comparison:
    """Put runs side by side.

    Args:
        runs: From :func:`~lightning_robust.comparison.finished_runs.read_run`.
        metrics: ``"tag:max,tag:min,..."``; without a direction the name of the metric decides. By default what the
            library logs, and whatever begins with val, valid, validation or test.
        baseline: Folder of the runs that costs are counted from; by default those without a technique, where they are
            one row.

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
    columns = parse_columns(metrics, tags) if metrics else default_columns(tags)
    values = values.reindex(columns=list(dict.fromkeys([*(column.tag for column in columns), SECONDS]))).map(
        _cell_values
    )
    first = [group[0] for group in members]
    plain = _find_plain(members, baseline)
    parts = zip(name_configurations(first), members, plain, _times_plain(values[SECONDS], plain), strict=True)
    rows = [ComparedRow(*part) for part in parts]
    differences = other_differences(first)
    remarks = [f"The configurations differ in more than techniques: {', '.join(differences)}."] if differences else []
    notes = [*remarks, *_doubts(rows, values), *_attacks(runs, columns)]
    return Comparison(tuple(rows), values, tuple(columns), tuple(notes))


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


def _doubts(rows: Sequence[ComparedRow], values: pd.DataFrame) -> list[str]:
    """What speaks against the numbers of a run or of a row."""
    notes = [f"{run.folder.name} ({row.name}): {note}" for row in rows for run in row.runs for note in run.notes]
    for index, row in enumerate(rows):
        if len({str(seeds(run.config)) for run in row.runs}) < len(row.runs):
            notes.append(f"{row.name}: several runs have the same seed, so that the interval is not one over seeds.")
        counts = values.loc[index].map(len).to_dict()
        partial = sorted(str(tag) for tag, count in counts.items() if 0 < count < len(row.runs))
        notes += [f"{row.name}: only some of its {len(row.runs)} runs have {tag}." for tag in partial]
    return notes


def _attacks(runs: Sequence[FinishedRun], columns: Sequence[Column]) -> list[str]:
    """Which attack stands behind the attacked columns, from the configurations."""
    if not any(column.tag.startswith("adversarial/") for column in columns):
        return []
    steps = {count for run in runs if (count := _validation_steps(run.config)) is not None}
    names = ["FGSM" if count == 0 else f"PGD-{count}" for count in sorted(steps)]
    if not names:
        return []
    doubt = " Runs were attacked differently: do not compare those numbers." if len(names) > 1 else ""
    return [f"Attacked at validation by {' or '.join(names)}; behind @ stands the radius.{doubt}"]


def _validation_steps(config: Mapping[str, Any]) -> int | None:
    """Steps of the attack at validation; beside ``adversarial``, ``robust_validation`` is the one that attacks."""
    training = class_arguments(config.get("adversarial")).get("val_steps")
    return class_arguments(config.get("robust_validation")).get("steps", training)
