"""Draws the Pareto picture of a comparison: robust against clean."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np

from lightning_robust.comparison.columns import Column
from lightning_robust.comparison.table import Comparison, axes, mean_range, pareto_front
from lightning_robust.figures import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FRONT, _BEHIND = "#f58518", "#4c78a8"
# where row numbers stand beside their points, in turns: neighbours are often close
_OFFSETS = ((9, 7), (-9, 7), (9, -7), (-9, -7))


def draw_pareto(comparison: Comparison) -> Figure | None:
    """Robust against clean, better is up and to the right; the numbers are those of the table. None without both.

    Where rows are on different data, those of the data with the most rows.
    """
    if (chosen := axes(comparison)) is None:
        return None
    tags = [column.tag for column in chosen]
    means = comparison.means[tags].to_numpy()
    rows = [row for row in comparison.same_data()[0] if np.isfinite(means[row]).all()]
    if len(rows) < 2:
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5), layout="constrained")
    plane = figure.subplots()
    front = [rows[place] for place in pareto_front(means[rows], [column.mode or "max" for column in chosen])]
    plane.plot(*np.array(sorted(means[front].tolist())).T, color=_FRONT, linewidth=1.2, label="not beaten in both")
    for row, offset in zip(rows, cycle(_OFFSETS), strict=False):
        _draw_point(plane, comparison, row, tags, {True: _FRONT, False: _BEHIND}[row in front], offset)
    _name_axes(plane, chosen)
    plane.grid(alpha=0.3)
    plane.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, handletextpad=0.4)
    return figure


def _name_axes(plane: Axes, columns: Sequence[Column]) -> None:
    """The metric of each axis, and its better end up or to the right."""
    for axis, column in zip((plane.xaxis, plane.yaxis), columns, strict=True):
        axis.set_label_text(plain(f"{column.group}: {column.tag}"))
        axis.set_inverted(column.mode == "min")


def _draw_point(
    plane: Axes, comparison: Comparison, row: int, tags: Sequence[str], colour: str, offset: tuple[int, int]
) -> None:
    """A row with its intervals as error bars and its number beside it."""
    cells = [comparison.cell(row, tag) for tag in tags]
    x, y = map(fmean, cells)
    across, up = map(_error_bar, cells)
    plane.errorbar(x, y, up, across, "none", ecolor=colour, elinewidth=0.8, alpha=0.4)
    name = comparison.rows[row].name
    plane.scatter(
        x, y, color=colour, zorder=3, label=plain(f"{row + 1}  {name if len(name) <= 44 else name[:43] + '…'}")
    )
    plane.annotate(str(row + 1), (x, y), offset, textcoords="offset points", ha="center", va="center", fontsize=9)


def _error_bar(values: Sequence[float]) -> list[list[float]] | None:
    """How far the interval reaches down and up from the mean."""
    interval = mean_range(values)
    return None if interval is None else [[fmean(values) - interval[0]], [interval[1] - fmean(values)]]
