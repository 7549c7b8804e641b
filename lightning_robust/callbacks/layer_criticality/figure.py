"""The picture of criticality maps: heat maps of the metric and of the distance to the start."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_robust.callbacks.layer_criticality.measure import CriticalityMap
from lightning_robust.functional.criticality import Verdict
from lightning_robust.tables import number, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Grid = np.ndarray[Any, np.dtype[np.float64]]
_COLOURS: dict[Verdict, str] = {
    "ambient": "#1b7837",
    "critical": "#b2182b",
    "undecided": "#8c6d1f",
    "unchanged": "#8a8a8a",
}
_MEANINGS: dict[Verdict, str] = {
    "ambient": "ambient: keeps at least {0:.0%} put back to the start",
    "critical": "critical: keeps less than {0:.0%} put back to the start",
    "undecided": "undecided: the 95 % interval holds {0:.0%}",
    "unchanged": "unchanged by training",
}
_MOST_NUMBERS = 400
"""A panel with more cells than this shows no numbers."""
_NAME_WIDTH = 28


def draw_criticality(maps: Sequence[CriticalityMap]) -> Figure:
    """Heat maps, layers from top to bottom: the metric under each condition, and the two distances to the start.

    The colours of the metric say which share of training's gain remains, and so mean the same for every metric.

    Args:
        maps: Of one network; the first gives the verdicts.
    """
    from matplotlib.figure import Figure

    first = maps[0]
    rows, columns = [*first.rows, first.whole], len(first.labels)
    names = [shorten(row.name, _NAME_WIDTH) for row in rows]
    ratios = [columns + 1.3] * len(maps) + [columns, columns]
    width = 0.075 * max(map(len, names)) + 0.5 * sum(ratios) + 0.9 * (len(maps) + 2)
    height = min(0.3 * len(rows) + 1.8, 40)
    figure = Figure(figsize=(max(width, 8), max(height, 3.0)), layout="constrained")
    panels = figure.subplots(1, len(ratios), width_ratios=ratios, squeeze=False)[0]
    for axes, result in zip(panels, maps, strict=False):
        _draw_metric(axes, result)
    _add_colorbar(panels[len(maps) - 1], "share of training's gain kept")
    for axes, title, values in (
        (panels[-2], "distance to start, 2-norm / √n", [row.l2 for row in rows]),
        (panels[-1], "distance to start, max-norm", [row.linf for row in rows]),
    ):
        numbers = np.array(values)
        top = float(numbers[np.isfinite(numbers)].max(initial=0.0)) or 1.0
        _draw_heat_map(axes, numbers, numbers, top, "cividis", first.labels)
        axes.set_title(title, fontsize=9)
        _add_colorbar(axes)
    for axes in panels[1:]:
        axes.set_yticks([])
    _name_layers(panels[0], names, first)
    title = f"One layer put back to fresh random draws, to the start, or to a checkpoint: {first.criterion.monitor}"
    figure.suptitle(f"{title} ({first.trained:.4g} as trained)", fontsize=10)
    return figure


def _draw_metric(axes: Axes, result: CriticalityMap) -> None:
    rows = [*result.rows, result.whole]
    numbers = np.array([[row.randomised.value, *(cell.value for cell in row.cells)] for row in rows])
    start = result.whole.cells[0].value
    gain = result.trained - start
    shares = np.nan_to_num((numbers - start) / (gain or math.nan), nan=0.0, posinf=0.0, neginf=0.0).clip(0, 1)
    _draw_heat_map(axes, shares, numbers, 1.0, "viridis", ["random", *result.labels])
    axes.axvline(0.5, color="white", linewidth=4)
    monitor = result.criterion.monitor
    axes.set_title(monitor if result.condition == "clean" else f"{monitor} under {result.condition}", fontsize=9)


def _draw_heat_map(axes: Axes, values: Grid, numbers: Grid, top: float, cmap: str, labels: Sequence[str]) -> None:
    """Cells coloured by values from 0 to ``top``, with their numbers, and a line above the whole network."""
    axes.imshow(values, aspect="auto", cmap=cmap, vmin=0, vmax=top)
    if numbers.size <= _MOST_NUMBERS:
        for (y, x), value in np.ndenumerate(numbers):
            colour = "black" if values[y, x] > 0.6 * top else "white"
            axes.text(x, y, number(value), ha="center", va="center", fontsize=7, color=colour)
    axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right", rotation_mode="anchor", fontsize=8)
    axes.axhline(len(numbers) - 1.5, color="white", linewidth=4)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _add_colorbar(axes: Axes, label: str = "") -> None:
    bar = axes.figure.colorbar(axes.images[-1], ax=axes)
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=7)


def _name_layers(axes: Axes, names: Sequence[str], result: CriticalityMap) -> None:
    """Names coloured by verdict, with a legend of the verdicts that occur."""
    from matplotlib.patches import Patch

    axes.set_yticks(range(len(names)), names, fontsize=8)
    for label, row in zip(axes.get_yticklabels(), result.rows, strict=False):
        label.set_color(_COLOURS[row.verdict])
    handles = [
        Patch(color=colour, label=_MEANINGS[verdict].format(result.criterion.threshold))
        for verdict, colour in _COLOURS.items()
        if result.named(verdict)
    ]
    axes.figure.legend(handles=handles, loc="outside lower left", ncols=len(handles), fontsize=8, frameon=False)
