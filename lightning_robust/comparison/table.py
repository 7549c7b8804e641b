"""Finished runs side by side: which are one row, what a row is called, intervals, best values, the Pareto front.

Runs are read in ``finished_runs.py``, told apart by their configurations in ``configurations.py``; words and pictures
are made in ``comparison_page.py``.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lightning_robust.comparison.names import arguments, same, seeds, techniques, told_apart
from lightning_robust.comparison.runs import SECONDS, WORST, FinishedRun
from lightning_robust.statistics import mean_interval

Mode = Literal["max", "min"]
_HIGHER = r"acc|f1|iou|auc|auroc|found|precision|recall|psnr|ssim|success|dice|r2|(^|[/_])m?ap([/_@]|$)"
_LOWER = r"loss|err|px|rel_l2|abs|p99|bend|swing|second|time|ece|mae|mse|nll|wer|perplexity|flip|lost|nonfinite"
_LOWER += r"|^sensitivity/|^attribution/|memory|bytes"
GROUPS: dict[str, str] = {
    "attacked": r"^adversarial/val_|^(val|valid|validation|test)[/_].*(robust|attack|fgsm|pgd|(^|[/_])adv)",
    "corrupted": r"corrupt|^wise_ft/shifted$|^(val|valid|validation|test)[/_].*shift",
    "preprocessing": rf"^{WORST}$|^attribution/preprocessing$",
    "fp16": r"^parity/[^/]*-fp16/.*",
    "tf32": r"^parity/[^/]*-tf32/.*",
    "recording": r"^replay/(torch-fp32|[^/]*-fp16)/(swing|bend)$|recording",
    "time": rf"^{SECONDS}$|^train(ing)?[/_](time|seconds)$",
    "memory": r"memory|allocated_bytes\.all\.peak",
    "clean": r"^(val|valid|validation|test)[/_]",
}
"""What a tag tells, by the first pattern that it fits."""
ORDER = ("clean", "attacked", "corrupted", "preprocessing", "fp16", "tf32", "recording", "time", "memory")


@dataclass(frozen=True)
class Column:
    """A metric of the table.

    Args:
        tag: As logged.
        mode: Which direction is better; None where that is not known, and nothing is marked.
        group: One of :data:`ORDER`, or ``"other"``.
    """

    tag: str
    mode: Mode | None
    group: str


@dataclass(frozen=True)
class Cell:
    """A metric over the runs of a row.

    Args:
        values: One for each run that has it.
    """

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The mean of the runs."""
        return statistics.fmean(self.values)

    @property
    def interval(self) -> tuple[float, float] | None:
        """Of three runs or more the 95 % t-interval of the mean, of two both values, of one none.

        Example:
            >>> low, high = Cell((1.0, 2.0, 3.0)).interval
            >>> round(high - 2, 3)  # 4.303 / sqrt(3)
            2.484
        """
        count = len(self.values)
        if count < 2 or not all(map(math.isfinite, self.values)):
            return None
        if count == 2:
            return min(self.values), max(self.values)
        estimate = mean_interval(self.values)
        return estimate.low, estimate.high


@dataclass(frozen=True)
class Row:
    """Runs that differ in their seed only.

    Args:
        name: The techniques that are switched on, with what differs from other rows.
        runs: Of this configuration.
        plain: Whether the others are counted from it: no technique is switched on, or it was named as the baseline.
        cells: Tag -> numbers; a tag that none of the runs has is missing.
        times: Training time as a multiple of the plain row's; None where there is not exactly one plain row.
    """

    name: str
    runs: tuple[FinishedRun, ...]
    plain: bool
    cells: Mapping[str, Cell]
    times: float | None = None


@dataclass(frozen=True)
class Comparison:
    """The table.

    Args:
        rows: In order of appearance.
        columns: Which metrics.
        notes: What the reader should know, a sentence each.
    """

    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    notes: tuple[str, ...] = ()

    def best(self, column: Column) -> set[int]:
        """Which rows have the best mean; none where there is nothing to choose from."""
        means = {i: r.cells[column.tag].mean for i, r in enumerate(self.rows) if column.tag in r.cells}
        finite = {i: mean for i, mean in means.items() if math.isfinite(mean)}
        if column.mode is None or len(means) < 2 or not finite:
            return set()
        top = (max if column.mode == "max" else min)(finite.values())
        return {i for i, mean in finite.items() if mean == top}


def compare_runs(
    runs: Sequence[FinishedRun], metrics: str | None = None, baseline: str | Path | None = None
) -> Comparison:
    """Put runs side by side.

    Args:
        runs: As :func:`~.finished_runs.read_run` gives them.
        metrics: ``"tag:max,tag:min,..."``; without a direction it is told from the name. By default what the library
            logs, and whatever begins with val, valid, validation or test.
        baseline: Folder of the runs that costs are counted from; by default those without a technique, where they are
            one row.

    Raises:
        ValueError: If there is no run, a metric is written wrongly or in none of the runs, or the baseline is not one
            row.
    """
    if not runs:
        raise ValueError("Expected at least one finished run, but got none. Name folders with a config.yaml.")
    tags = sorted({tag for run in runs for tag in run.scalars})
    columns = _chosen(metrics, tags) if metrics else default_columns(tags)
    groups: dict[str, list[FinishedRun]] = {}
    for run in runs:
        groups.setdefault(same(run), []).append(run)
    members = [tuple(group) for group in groups.values()]
    names, remarks = told_apart([group[0] for group in members])
    wanted = {column.tag for column in columns} | {SECONDS}
    cells = [{tag: c for tag in wanted if (c := _cell(group, tag))} for group in members]
    plain = _plain(members, baseline)
    rows = [Row(*parts) for parts in zip(names, members, plain, cells, strict=True)]
    notes = [*remarks, *_doubts(rows), *_attacks(runs, columns)]
    return Comparison(tuple(_timed(rows)), tuple(columns), tuple(notes))


def default_columns(tags: Sequence[str]) -> list[Column]:
    """Those metrics of many that a reader wants first, in the order of :data:`ORDER`."""
    grouped: dict[str, list[str]] = {group: [] for group in ORDER}
    for tag in tags:
        group = group_of(tag)
        if group in grouped:
            grouped[group].append(tag)
    for group in ("fp16", "tf32"):
        grouped[group] = _in_units(grouped[group])
    grouped["clean"] = _without(grouped["clean"], "loss")
    grouped["attacked"] = _without(grouped["attacked"], "loss")
    return [Column(tag, direction(tag), group) for group in ORDER for tag in grouped[group]]


def group_of(tag: str) -> str:
    """What a tag tells.

    Example:
        >>> group_of("val/acc"), group_of("adversarial/val_acc@0.1"), group_of("parity/emulated-fp16/rel_l2")
        ('clean', 'attacked', 'fp16')
    """
    return next((group for group, pattern in GROUPS.items() if re.search(pattern, tag)), "other")


def direction(tag: str) -> Mode | None:
    """Whether larger or smaller is better, as far as a name tells.

    Example:
        >>> direction("val/acc"), direction("val/lateral_px"), direction("val/depth")
        ('max', 'min', None)
    """
    if group_of(tag) in ("fp16", "tf32", "preprocessing", "recording", "time", "memory"):
        return "min"
    if re.search(_LOWER, tag):
        return "min"
    return "max" if re.search(_HIGHER, tag) else None


def pareto_front(points: Sequence[tuple[float, float]], modes: tuple[Mode, Mode]) -> list[int]:
    """Which points no other point beats in one respect without losing in the other.

    Example:
        >>> pareto_front([(1, 1), (2, 0), (0, 0)], ("max", "max"))
        [0, 1]
    """
    signs = [1 if mode == "max" else -1 for mode in modes]
    scored = [(x * signs[0], y * signs[1]) for x, y in points]
    return [i for i, (x, y) in enumerate(scored) if not any(u >= x and v >= y and (u, v) != (x, y) for u, v in scored)]


def leading(comparison: Comparison, group: str) -> Column | None:
    """The metric that speaks for a group: the first clean one, else the worst over all rows (PGD-20 rather than FGSM).

    None where no metric of the group has a direction.
    """
    columns = [column for column in comparison.columns if column.group == group and column.mode is not None]
    if not columns or group == "clean":
        return columns[0] if columns else None
    return min(columns, key=lambda column: _height(comparison, column))


def axes(comparison: Comparison) -> tuple[Column, Column] | None:
    """What the picture shows: clean against attacked, else corrupted, preprocessing or fp16; None without both."""
    clean = leading(comparison, "clean")
    for group in ("attacked", "corrupted", "preprocessing", "fp16"):
        robust = leading(comparison, group)
        if clean and robust:
            return clean, robust
    usable = [column for column in comparison.columns if column.mode is not None]
    return (usable[0], usable[1]) if len(usable) > 1 and usable[0].group == "other" else None


def _height(comparison: Comparison, column: Column) -> float:
    """How good the rows are on the whole; larger is better."""
    means = [row.cells[column.tag].mean for row in comparison.rows if column.tag in row.cells]
    return statistics.fmean(means) * (1 if column.mode == "max" else -1)


def _chosen(metrics: str, tags: Sequence[str]) -> list[Column]:
    columns = []
    for part in filter(None, map(str.strip, metrics.split(","))):
        tag, _, mode = part.rpartition(":") if part.endswith((":max", ":min")) else (part, "", "")
        if tag not in tags:
            raise ValueError(
                f"Expected metrics that the runs logged, as tag:max or tag:min, but got {part!r}. There are: "
                f"{', '.join(tags) or 'none'}."
            )
        known: Mode | None = "max" if mode == "max" else "min" if mode == "min" else direction(tag)
        columns.append(Column(tag, known, group_of(tag)))
    if not columns:
        raise ValueError(f"Expected metrics as tag:max or tag:min, but got {metrics!r}.")
    return columns


def _in_units(tags: Sequence[str]) -> list[str]:
    """Distances in the task's own units; the relative ones where the module has no units."""
    own = [tag for tag in tags if tag.endswith("_p99")]
    return own or [tag for tag in tags if tag.endswith("/rel_l2")]


def _without(tags: Sequence[str], word: str) -> list[str]:
    return [tag for tag in tags if word not in tag] or list(tags)


def _plain(groups: Sequence[Sequence[FinishedRun]], baseline: str | Path | None) -> list[bool]:
    if baseline is None:
        return [bool(group[0].config) and not techniques(group[0].config) for group in groups]
    folder = Path(baseline).resolve()
    found = [any(run.folder.resolve().is_relative_to(folder) for run in group) for group in groups]
    if sum(found) != 1:
        raise ValueError(
            f"Expected the baseline to be a folder with runs of one configuration, all of them compared, but {folder} "
            f"holds runs of {sum(found)}."
        )
    return found


def _cell(runs: Sequence[FinishedRun], tag: str) -> Cell | None:
    values = tuple(run.scalars[tag] for run in runs if tag in run.scalars)
    return Cell(values) if values else None


def _timed(rows: Sequence[Row]) -> list[Row]:
    plain = [row.cells[SECONDS].mean for row in rows if row.plain and SECONDS in row.cells]
    if len(plain) != 1 or len(rows) < 2:
        return list(rows)
    return [
        Row(
            row.name,
            row.runs,
            row.plain,
            row.cells,
            row.cells[SECONDS].mean / plain[0] if SECONDS in row.cells else None,
        )
        for row in rows
    ]


def _doubts(rows: Sequence[Row]) -> list[str]:
    notes = [f"{run.folder.name} ({row.name}): {note}" for row in rows for run in row.runs for note in run.notes]
    for row in rows:
        drawn = [seeds(run.config) for run in row.runs]
        if len(set(drawn)) < len(drawn):
            notes.append(f"{row.name}: several runs have the same seed, so that the interval is not one over seeds.")
        partial = [tag for tag, cell in row.cells.items() if len(cell.values) < len(row.runs)]
        notes += [f"{row.name}: only some of its {len(row.runs)} runs have {tag}." for tag in sorted(partial)]
    return notes


def _attacks(runs: Sequence[FinishedRun], columns: Sequence[Column]) -> list[str]:
    """Which attack stands behind the attacked columns, from the configurations."""
    if not any(column.tag.startswith("adversarial/") for column in columns):
        return []
    used = [arguments(run.config.get("adversarial")) for run in runs]
    steps = sorted({each["val_steps"] for each in used if isinstance(each.get("val_steps"), int)})
    names = ["FGSM" if count == 0 else f"PGD-{count}" for count in steps]
    told = f"Attacked at validation by {' or '.join(names)}; behind @ stands the radius."
    doubt = " Runs were attacked differently: do not compare those numbers." if len(names) > 1 else ""
    return [told + doubt] if names else []
