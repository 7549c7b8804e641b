"""The figure of validation under corruptions: a metric for each corruption and severity, beside the clean one."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from lightning_robust.callbacks.metric_curves import MOST_METRICS
from lightning_robust.callbacks.robust_validation.corruption_error import CLEAN_NAME, UnderEach, by_corruption, means
from lightning_robust.figures import GREY, add_legend, panel, plain
from lightning_robust.tables import number, shorten

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CLEAN = "#4c78a8"
_SHADES = ("#fdd0a2", "#fdae6b", "#f58518", "#b45309", "#5c2a04")
"""Of severities 1 to 5, light to dark."""
_MOST_ROWS = 30


def corruption_figures(measured: UnderEach, metrics: Sequence[str]) -> dict[str, Callable[[], Figure]]:
    """What draws each figure, by tag, of the first few metrics.

    Args:
        measured: The metrics clean and under each condition.
        metrics: The metrics, the one that counts first.
    """
    figures: dict[str, Callable[[], Figure]] = {}
    for metric in metrics[:MOST_METRICS]:
        # what is not finite has no place on an axis
        shown = {name: values for name, values in measured.items() if math.isfinite(values[metric])}
        if CLEAN_NAME in shown and len(shown) > 1:
            tag = f"corruption/{metric.replace('/', '_')}_by_corruption"
            figures[tag] = functools.partial(draw_corruptions, shown, metric)
    return figures


def draw_corruptions(measured: UnderEach, metric: str) -> Figure:
    """A row for each corruption with a mark for each severity; a line where the clean metric lies."""
    groups = by_corruption([name for name in measured if name != CLEAN_NAME])
    clean, each = measured[CLEAN_NAME][metric], {name: values[metric] for name, values in means(measured).items()}
    # those that move the metric most stand on top
    order = sorted(groups, key=lambda name: abs(each[name] - clean))[-_MOST_ROWS:]
    worst = f"{order[-1].replace('_', ' ')} moves it most, to {number(each[order[-1]])}"
    figure, axes = panel(1.8 + 0.3 * len(order), f"{shorten(metric)}: {number(clean)} clean; {worst}")
    marks: dict[str, list[tuple[float, int]]] = {}
    for row, name in enumerate(order):
        values = [measured[condition][metric] for condition in groups[name]]
        axes.hlines(row, min(clean, *values), max(clean, *values), color=GREY, linewidth=0.8)
        for condition, value in zip(groups[name], values, strict=True):
            marks.setdefault(condition.partition("@")[2], []).append((value, row))
    for severity, points in sorted(marks.items()):
        shade, label = (_SHADES[int(severity) - 1], f"severity {severity}") if severity else (GREY, "preprocessing")
        xs, rows = zip(*points, strict=True)
        axes.plot(xs, rows, color=shade, marker="o", markersize=7, linestyle="none", label=label, zorder=3)
    axes.axvline(clean, color=_CLEAN, linewidth=1.6, label="clean")
    axes.set_yticks(range(len(order)), [plain(name.replace("_", " ")) for name in order])
    axes.set_xlabel(plain(shorten(metric)))
    axes.grid(alpha=0.3, axis="x")
    add_legend(axes, 3)
    return figure
