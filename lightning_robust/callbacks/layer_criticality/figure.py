"""The figures of criticality maps: heat maps of the metric and of the distance to the start."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_robust.callbacks.conditions import CLEAN
from lightning_robust.callbacks.layer_criticality.measure import CriticalityMap
from lightning_robust.callbacks.layer_panel import layer_panel
from lightning_robust.figures import FONT, plain
from lightning_robust.functional.criticality import Verdict
from lightning_robust.tables import number, shorten, without_common

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Grid = np.ndarray[Any, np.dtype[np.float64]]
_COLOURS: dict[Verdict, str] = {
    "ambient": "#2166ac",
    "critical": "#b45309",
    "undecided": "#1b1f24",
    "unchanged": "#6b7280",
}
_MEANINGS: dict[Verdict, str] = {
    "ambient": "ambient: keeps at least {0:.0f} % put back to the start",
    "critical": "critical: keeps less than {0:.0f} % put back to the start",
    "undecided": "undecided: the 95 % interval holds {0:.0f} %",
    "unchanged": "unchanged by training",
}
_MOST_COLUMNS = 8
"""A map with more columns has no room for numbers, and names some of its columns."""
_MOST_ROWS = 24
_LONGEST_METRIC = 28
_GRID, _LETTER = 320, 8
"""Pixels: of all columns together, and of a letter."""


def criticality_figures(maps: Sequence[CriticalityMap]) -> dict[str, Callable[[], Figure]]:
    """What draws each figure, by tag: a map for each condition, and the two distances to the start.

    Args:
        maps: Of one network; the first gives the verdicts.
    """
    figures: dict[str, Callable[[], Figure]] = {
        f"criticality/{each.condition}_map": functools.partial(draw_map, each, maps[0]) for each in maps
    }
    for tag, norm in (("mean_distance", "l2"), ("largest_distance", "linf")):
        figures[f"criticality/{tag}"] = functools.partial(draw_distances, maps[0], norm)
    return figures


def draw_map(result: CriticalityMap, first: CriticalityMap) -> Figure:
    """The metric with each layer put back to fresh draws, to the start, and to each checkpoint.

    The colours say which share of training's gain remains, and so mean the same for every metric.

    Args:
        result: The map.
        first: The map that gives the verdicts.
    """
    rows = [*result.rows, result.whole]
    figure, axes = layer_panel(_row_names(result), _tell_map(result), lines=2)
    numbers = np.array([[row.randomised.value, *(cell.value for cell in row.cells)] for row in rows])
    start = result.whole.cells[0].value
    gain = result.trained - start
    shares = np.nan_to_num((numbers - start) / (gain or math.nan), nan=0.0, posinf=0.0, neginf=0.0).clip(0, 1)
    _draw_heat_map(axes, shares, numbers, 1.0, "viridis", ["random", *result.labels])
    axes.axvline(0.5, color="white", linewidth=4, label="_guide")
    axes.set_xlabel("the weights that one layer is put back to")
    _add_colorbar(axes, "share of the gain kept")
    _colour_names(axes, first)
    return figure


def draw_distances(result: CriticalityMap, norm: str) -> Figure:
    """How far each layer was from the start at each moment.

    Args:
        result: The map.
        norm: ``"l2"`` or ``"linf"``, as in its rows.
    """
    rows = [*result.rows, result.whole]
    numbers = np.array([getattr(row, norm) for row in rows])
    known = np.where(np.isfinite(numbers), numbers, 0.0)
    top = float(known.max(initial=0.0)) or 1.0
    place = int(known[: len(result.rows), -1].argmax()) if result.rows else 0
    measure = "on average" if norm == "l2" else "in its largest weight"
    title = f"{shorten(rows[place].name, _LONGEST_METRIC)} moves furthest from the start {measure}"
    figure, axes = layer_panel(_row_names(result), title if known.any() else "Training moved no layer")
    _draw_heat_map(axes, numbers, numbers, top, "cividis", result.labels)
    axes.set_xlabel("moment of the training")
    _add_colorbar(axes, "root mean square change" if norm == "l2" else "largest change of a weight")
    return figure


def _row_names(result: CriticalityMap) -> list[str]:
    """Of the layers, without what all of them begin with, and of the network."""
    return [*without_common([row.name for row in result.rows], "."), result.whole.name]


def _tell_map(result: CriticalityMap) -> str:
    critical, layers = result.named("critical"), [row for row in result.rows if row.verdict != "unchanged"]
    where = (
        ""
        if result.condition == CLEAN.name
        else f" under {result.condition.replace('_', ' ').replace('@', ' of severity ')}"
    )
    metric = f"for {shorten(result.criterion.monitor, _LONGEST_METRIC)}{where}"
    if not layers:
        return f"Training changed no layer ({metric})"
    if not critical:
        return f"No layer alone is critical {metric}"
    return f"{len(critical)} of {len(layers)} layers {'is' if len(critical) == 1 else 'are'} critical {metric}"


def _draw_heat_map(axes: Axes, values: Grid, numbers: Grid, top: float, cmap: str, labels: Sequence[str]) -> None:
    """Cells coloured by values from 0 to ``top``, with their numbers, and a line above the whole network."""
    axes.imshow(values, aspect="auto", cmap=cmap, vmin=0, vmax=top)
    rows, columns = numbers.shape
    if rows <= _MOST_ROWS and columns <= _MOST_COLUMNS:
        for (y, x), value in np.ndenumerate(numbers):
            colour = "black" if values[y, x] > 0.6 * top else "white"
            axes.text(
                x,
                y,
                _in_cell(value, 3 if columns < _MOST_COLUMNS - 1 else 2),
                ha="center",
                va="center",
                fontsize=FONT,
                color=colour,
            )
    known = [shorten(label, 9) for label in labels]
    named = range(0, columns, _step_between_names(known))
    axes.set_xticks(list(named), [plain(known[column]) for column in named])
    axes.axhline(rows - 1.5, color="white", linewidth=4, label="_guide")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _in_cell(value: float, digits: int) -> str:
    """A number that fits a cell, without the zero before its point."""
    if 1000 <= abs(value) < 100_000:
        return f"{value:.0f}"
    text = number(value, digits)
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text


def _step_between_names(names: Sequence[str]) -> int:
    """The smallest number of columns from one name to the next at which none touches another."""
    lengths = [len(name) for name in names]
    for step in range(1, len(names)):
        shown = lengths[::step]
        if all(
            _LETTER * (one + other) / 2 + 6 <= step * _GRID / len(names) for one, other in itertools.pairwise(shown)
        ):
            return step
    return len(names)


def _add_colorbar(axes: Axes, label: str) -> None:
    bar = axes.figure.colorbar(axes.images[-1], ax=axes)
    bar.set_label(label, fontsize=FONT)
    bar.ax.tick_params(labelsize=FONT)
    bar.ax.locator_params(nbins=5)


def _colour_names(axes: Axes, result: CriticalityMap) -> None:
    """Names coloured by verdict, with a legend of the verdicts that occur."""
    from matplotlib.patches import Patch

    named = dict(zip((int(tick) for tick in axes.get_yticks()), axes.get_yticklabels(), strict=True))
    for place, row in enumerate(result.rows):
        if place in named:
            named[place].set_color(_COLOURS[row.verdict])
    handles = [
        Patch(color=colour, label=_MEANINGS[verdict].format(100 * result.criterion.threshold))
        for verdict, colour in _COLOURS.items()
        if result.named(verdict)
    ]
    axes.figure.legend(handles=handles, loc="outside lower left", fontsize=FONT, frameon=False)
