"""Writes a comparison down: Markdown, one HTML page, JSON, and the Pareto picture."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from lightning_robust.comparison.columns import GROUPS, Column
from lightning_robust.comparison.figure import draw_pareto
from lightning_robust.comparison.table import Comparison, leading, mean_range
from lightning_robust.json_values import jsonable
from lightning_robust.pages import environment_facts, render, svg
from lightning_robust.tables import inline, markdown, number

_NOTHING, _PICTURE = "-", "pareto.png"
_COST_GROUPS = [*(group.name for group in GROUPS if group.name not in ("time", "memory")), "other"]


def write_comparison(comparison: Comparison, folder: str | Path) -> list[Path]:
    """Write ``comparison.html``, ``.md`` and ``.json``, and the picture for the second, ``pareto.png``.

    Args:
        comparison: From :func:`~lightning_robust.comparison.table.compare_runs`.
        folder: Made if it is not there.

    Returns:
        The files.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    facts = environment_facts()
    figure = draw_pareto(comparison)
    picture = "" if figure is None else f"\n![Robust against clean]({_PICTURE})\n"
    texts = {
        "html": html_page(comparison, facts),
        "md": markdown_page(comparison) + picture,
        "json": json.dumps(jsonable({**as_dict(comparison), "provenance": facts}), indent=2, allow_nan=False),
    }
    paths = []
    for suffix, text in texts.items():
        paths.append(folder / f"comparison.{suffix}")
        paths[-1].write_text(text, encoding="utf-8")
    (folder / _PICTURE).unlink(missing_ok=True)
    if figure is not None:
        paths.append(folder / _PICTURE)
        figure.savefig(paths[-1], dpi=120)
    return paths


def as_dict(comparison: Comparison) -> dict[str, Any]:
    """Everything for programs: columns, rows with each value, mean and interval, and the notes."""
    best = {column.tag: comparison.best(column) for column in comparison.columns}
    rows = []
    for index, row in enumerate(comparison.rows):
        metrics = {
            tag: {
                "values": list(values),
                "mean": fmean(values),
                "interval": mean_range(values),
                "best": index in best.get(tag, ()),
            }
            for tag in comparison.values.columns.tolist()
            if (values := comparison.cell(index, tag))
        }
        runs = [str(run.folder) for run in row.runs]
        rows.append({"name": row.name, "runs": runs, "times_plain": row.times, "metrics": metrics})
    columns = [dataclasses.asdict(column) for column in comparison.columns]
    words = {"cautions": list(comparison.cautions), "notes": list(comparison.notes)}
    return {"columns": columns, "rows": rows, **words}


def markdown_page(comparison: Comparison) -> str:
    """The tables, for a terminal, a README or a pull request."""
    heads = ["#", "run", "seeds", *map(_column_heading, comparison.columns)]
    rows = [[number, name, seeds, *map(_cell_text, cells)] for number, name, seeds, cells in _shown_rows(comparison)]
    parts = [_bullets(comparison.cautions), markdown(heads, rows)]
    if costs := cost_rows(comparison):
        parts.append("What each switch cost:\n\n" + markdown(*costs))
    parts += [_bullets(missing(comparison)), _bullets(comparison.notes)]
    return "\n\n".join(filter(None, parts)) + "\n"


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {inline(line)}" for line in lines)


def html_page(comparison: Comparison, facts: Mapping[str, str]) -> str:
    """One self-contained page.

    Args:
        comparison: The table.
        facts: When, where and with what it was made.
    """
    figure = draw_pareto(comparison)
    return render(
        __package__,
        "comparison.html.j2",
        "Runs compared",
        run_count=sum(len(row.runs) for row in comparison.rows),
        groups=[(group, len(list(members))) for group, members in groupby(comparison.columns, lambda c: c.group)],
        heads=[column.title for column in comparison.columns],
        rows=_shown_rows(comparison),
        figure=figure and svg(figure),
        costs=cost_rows(comparison),
        cautions=comparison.cautions,
        absent=missing(comparison),
        notes=comparison.notes,
        facts=facts,
    )


def cost_rows(comparison: Comparison) -> tuple[list[str], list[list[str]]] | None:
    """Training time and one metric of each group against the plain row; None where not exactly one row is plain.

    Rows on other data than the plain one's are left out.
    """
    plain = [index for index, row in enumerate(comparison.rows) if row.plain]
    if len(plain) != 1:
        return None
    columns = _cost_columns(comparison, plain[0])
    rows = []
    for index, row in enumerate(comparison.rows):
        if index == plain[0] or row.data != comparison.rows[plain[0]].data:
            continue
        times = _NOTHING if row.times is None else f"{row.times:.2f} x"
        rows.append([row.name, times, *(_difference(comparison, index, plain[0], column.tag) for column in columns)])
    if not rows:
        return None
    return ["run", "training time", *map(_column_heading, columns)], rows


def _cost_columns(comparison: Comparison, plain: int) -> list[Column]:
    """One metric of each group that the plain row has."""
    columns = filter(None, (leading(comparison, group) for group in _COST_GROUPS))
    return [column for column in columns if comparison.cell(plain, column.tag)]


def _column_heading(column: Column) -> str:
    return f"{column.group}: {column.title}"


def _difference(comparison: Comparison, row: int, plain: int, tag: str) -> str:
    if not comparison.cell(row, tag):
        return _NOTHING
    return f"{fmean(comparison.cell(row, tag)) - fmean(comparison.cell(plain, tag)):+.3g}"


def missing(comparison: Comparison) -> list[str]:
    """A sentence for each group of metrics that no run, or not every run, has: what would produce it.

    None where the user named the metrics.
    """
    lines: list[str] = []
    if comparison.chosen:
        return lines
    for group in GROUPS:
        tags = [column.tag for column in comparison.columns if column.group == group.name]
        complete = comparison.values[tags].map(bool).all(axis=1)
        numbers = ", ".join(str(index + 1) for index in complete.index[~complete])
        if not tags:
            lines.append(f"{group.name}: no run has such a number. It comes from {group.source}.")
        elif numbers:
            lines.append(f"{group.name}: missing in row {numbers}. It comes from {group.source}.")
    return lines


class _ShownCell(NamedTuple):
    """A mean, its interval, and whether it is the best of its column."""

    mean: str
    interval: str
    best: bool


def _shown_rows(comparison: Comparison) -> list[tuple[int, str, int, list[_ShownCell]]]:
    """Number, name, number of runs and cells of each row."""
    best = [(column.tag, comparison.best(column)) for column in comparison.columns]
    rows = []
    for index, row in enumerate(comparison.rows):
        cells = [_show(comparison.cell(index, tag), best=index in rows_with_best) for tag, rows_with_best in best]
        rows.append((index + 1, row.name, len(row.runs), cells))
    return rows


def _show(values: Sequence[float], *, best: bool) -> _ShownCell:
    if not values:
        return _ShownCell(_NOTHING, "", best)
    interval = mean_range(values)
    text = "" if interval is None else " to ".join(map(number, interval))
    return _ShownCell(number(fmean(values), 4) or "nan", text, best)


def _cell_text(cell: _ShownCell) -> str:
    text = f"{cell.mean} ({cell.interval})" if cell.interval else cell.mean
    return f"**{text}**" if cell.best else text
