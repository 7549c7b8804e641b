"""A comparison in words and pictures: Markdown, one HTML page, JSON, the Pareto picture. What is compared is given."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from lightning_robust.comparison.table import (
    ORDER,
    Cell,
    Column,
    Comparison,
    Row,
    axes,
    leading,
    pareto_front,
)
from lightning_robust.pages import environment_facts, render, svg
from lightning_robust.structures import jsonable
from lightning_robust.tables import markdown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NOTHING, _PICTURE = "-", "pareto.png"
_FRONT, _BEHIND = "#f58518", "#4c78a8"
# where numbers stand beside their points, in turns: neighbours are often close
_ASIDE = ((9, 7), (-9, 7), (9, -7), (-9, -7))
_PARITY = "`deployment_parity: true` in a run, or `lightning-robust parity --ckpt ... --output RUN/parity` after it"
SOURCES: dict[str, str] = {
    "clean": "a metric that `validation_step` logs under a name that begins with val, such as `val/acc`",
    "attacked": "`adversarial: {ratio: 0}` in a run, which attacks at validation and leaves training alone",
    "corrupted": "a metric named `val/..._shifted` or `val/..._corrupted`, of a loader with corrupted inputs",
    "preprocessing": _PARITY,
    "fp16": _PARITY,
    "tf32": _PARITY,
    "recording": "`lightning-robust replay --ckpt ... --frames ... --output RUN/replay`",
    "time": "TensorBoard's event files",
    "memory": "Lightning's `DeviceStatsMonitor` on a GPU, or any scalar with memory in its name",
}
"""Group of metrics -> which switch or command would produce them."""


def write_comparison(comparison: Comparison, folder: str | Path) -> list[Path]:
    """Write ``comparison.html``, ``.md`` and ``.json``, and the picture for the second, ``pareto.png``.

    Args:
        comparison: What :func:`~.comparison.compare_runs` made.
        folder: Made if it is not there.

    Returns:
        The files.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    facts = environment_facts()
    figure = draw_pareto(comparison)
    picture = "" if figure is None else f"\n![Robust against clean]({_PICTURE})\n"
    contents = {
        "html": html_page(comparison, facts),
        "md": markdown_page(comparison) + picture,
        "json": json.dumps(jsonable({**content(comparison), "provenance": facts}), indent=2, allow_nan=False),
    }
    paths = []
    for suffix, told in contents.items():
        paths.append(folder / f"comparison.{suffix}")
        paths[-1].write_text(told, encoding="utf-8")
    if figure is not None:
        paths.append(folder / _PICTURE)
        figure.savefig(paths[-1], dpi=120)
    return paths


def content(comparison: Comparison) -> dict[str, Any]:
    """Everything for programs: columns, rows with each value, mean and interval, and the notes."""
    rows = []
    for index, row in enumerate(comparison.rows):
        metrics = {
            tag: {
                "values": list(cell.values),
                "mean": cell.mean,
                "interval": cell.interval,
                "best": any(column.tag == tag and index in comparison.best(column) for column in comparison.columns),
            }
            for tag, cell in row.cells.items()
        }
        runs = [str(run.folder) for run in row.runs]
        rows.append({"name": row.name, "runs": runs, "times_plain": row.times, "metrics": metrics})
    columns = [dataclasses.asdict(column) for column in comparison.columns]
    return {"columns": columns, "rows": rows, "notes": list(comparison.notes)}


def markdown_page(comparison: Comparison) -> str:
    """The tables, for a terminal, a README or a pull request."""
    heads = [f"{column.group}: {column.tag}{_arrow(column)}" for column in comparison.columns]
    best = [comparison.best(column) for column in comparison.columns]
    rows = []
    for index, row in enumerate(comparison.rows):
        cells = [_told(row.cells.get(column.tag)) for column in comparison.columns]
        marked = [f"**{cell}**" if index in those else cell for cell, those in zip(cells, best, strict=True)]
        rows.append([index + 1, row.name, len(row.runs), *marked])
    parts = [markdown(["#", "run", "seeds", *heads], rows)]
    if costs := cost_rows(comparison):
        parts.append("What each switch cost:\n\n" + markdown(*costs))
    parts += ["\n".join(f"- {line}" for line in lines) for lines in (missing(comparison), comparison.notes) if lines]
    return "\n\n".join(parts) + "\n"


def html_page(comparison: Comparison, facts: Mapping[str, str]) -> str:
    """One self-contained page.

    Args:
        comparison: The table.
        facts: When, where and with what it was made.
    """
    runs = sum(len(row.runs) for row in comparison.rows)
    explained = (
        f"{runs} runs in {len(comparison.rows)} configurations. Means over runs that differ in their seed only, with "
        "the 95 % interval of the mean from three runs on, and both values of two. The best mean of a column is marked."
        " Time is all that a run did between its first event and its last, validation and parity included."
    )
    figure = draw_pareto(comparison)
    return render(
        __package__,
        "comparison.html.j2",
        "Runs compared",
        explained=explained,
        groups=[(group, len(list(members))) for group, members in groupby(comparison.columns, lambda c: c.group)],
        heads=["run", "#", "seeds", *(_head(column) for column in comparison.columns)],
        rows=_rows(comparison),
        figure=figure and svg(figure),
        costs=cost_rows(comparison),
        absent=missing(comparison),
        notes=comparison.notes,
        facts=facts,
    )


def cost_rows(comparison: Comparison) -> tuple[list[str], list[list[str]]] | None:
    """Training time and one metric of each group against the plain row; None where not exactly one row is plain."""
    plain = [row for row in comparison.rows if row.plain]
    others = [row for row in comparison.rows if not row.plain]
    if len(plain) != 1 or not others:
        return None
    groups = [group for group in (*ORDER, "other") if group not in ("time", "memory")]
    leads = [lead for group in groups if (lead := leading(comparison, group))]
    columns = [lead for lead in leads if lead.tag in plain[0].cells]
    heads = ["run", "training time", *(f"{column.group}: {column.tag}{_arrow(column)}" for column in columns)]
    rows = []
    for row in others:
        times = _NOTHING if row.times is None else f"{row.times:.2f} x"
        rows.append([row.name, times, *(_difference(row, plain[0], column) for column in columns)])
    return heads, rows


def missing(comparison: Comparison) -> list[str]:
    """A sentence for each group of metrics that no run, or not every run, has: what would produce it."""
    lines = []
    for group in ORDER:
        columns = [column for column in comparison.columns if column.group == group]
        rows = enumerate(comparison.rows, 1)
        without = [str(i) for i, row in rows if any(column.tag not in row.cells for column in columns)]
        if not columns:
            lines.append(f"{group}: no run has such a number. It comes from {SOURCES[group]}.")
        elif without:
            lines.append(f"{group}: missing in row {', '.join(without)}. It comes from {SOURCES[group]}.")
    return lines


def draw_pareto(comparison: Comparison) -> Figure | None:
    """Robust against clean, better is up and to the right; the numbers are those of the table. None without both."""
    chosen = axes(comparison)
    points = [] if chosen is None else _points(comparison, *chosen)
    if chosen is None or len(points) < 2:
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5), layout="constrained")
    plane = figure.subplots()
    modes = (chosen[0].mode or "max", chosen[1].mode or "max")
    front = pareto_front([(x.mean, y.mean) for _, x, y in points], modes)
    ends = sorted((points[i][1].mean, points[i][2].mean) for i in front)
    plane.plot([x for x, _ in ends], [y for _, y in ends], color=_FRONT, linewidth=1.2, label="not beaten in both")
    for place, (index, x, y) in enumerate(points):
        colour = _FRONT if place in front else _BEHIND
        name = f"{index + 1}  {_shortened(comparison.rows[index].name)}"
        reach = (_reach(x), _reach(y))
        plane.errorbar(x.mean, y.mean, reach[1], reach[0], "none", ecolor=colour, elinewidth=0.8, alpha=0.4)
        plane.scatter(x.mean, y.mean, color=colour, zorder=3, label=name)
        plane.annotate(
            str(index + 1),
            (x.mean, y.mean),
            _ASIDE[place % len(_ASIDE)],
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=9,
        )
    for axis, column in ((plane.xaxis, chosen[0]), (plane.yaxis, chosen[1])):
        axis.set_label_text(f"{column.group}: {column.tag}")
        axis.set_inverted(column.mode == "min")
    plane.grid(alpha=0.3)
    plane.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, handletextpad=0.4)
    return figure


def _points(comparison: Comparison, across: Column, up: Column) -> list[tuple[int, Cell, Cell]]:
    """Number of the row and its two cells, where it has both as finite numbers."""
    rows = enumerate(comparison.rows)
    both = [
        (i, row.cells[across.tag], row.cells[up.tag]) for i, row in rows if {across.tag, up.tag} <= row.cells.keys()
    ]
    return [(i, x, y) for i, x, y in both if math.isfinite(x.mean) and math.isfinite(y.mean)]


def _head(column: Column) -> Markup:
    """The tag of a column, which may break after slashes and underscores."""
    return escape(f"{column.tag}{_arrow(column)}").replace("/", Markup("/<wbr>")).replace("_", Markup("_<wbr>"))


def _rows(comparison: Comparison) -> list[dict[str, Any]]:
    best = [comparison.best(column) for column in comparison.columns]
    rows = []
    for index, row in enumerate(comparison.rows):
        cells = [
            _cell(row.cells.get(column.tag), index in those)
            for column, those in zip(comparison.columns, best, strict=True)
        ]
        rows.append({"words": [row.name, index + 1, len(row.runs)], "cells": cells})
    return rows


def _cell(cell: Cell | None, best: bool) -> dict[str, Any]:
    if cell is None:
        return {"mean": _NOTHING}
    return {"mean": _number(cell.mean), "range": cell.interval and _range(cell.interval), "best": best}


def _told(cell: Cell | None) -> str:
    if cell is None:
        return _NOTHING
    return _number(cell.mean) + (f" ({_range(cell.interval)})" if cell.interval else "")


def _number(value: float) -> str:
    return f"{value:.4g}"


def _range(interval: Sequence[float]) -> str:
    return f"{interval[0]:.3g} to {interval[1]:.3g}"


def _arrow(column: Column) -> str:
    return {"max": " ↑", "min": " ↓", None: ""}[column.mode]


def _difference(row: Row, plain: Row, column: Column) -> str:
    if column.tag not in row.cells:
        return _NOTHING
    return f"{row.cells[column.tag].mean - plain.cells[column.tag].mean:+.3g}"


def _reach(cell: Cell) -> list[list[float]] | None:
    """How far the interval reaches down and up from the mean, as error bars want it."""
    if cell.interval is None:
        return None
    low, high = cell.interval
    return [[cell.mean - low], [high - cell.mean]]


def _shortened(name: str, length: int = 44) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"
