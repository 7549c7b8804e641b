"""The figures of robust validation: clean against attacked metrics over the epochs, and over eps."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from lightning_robust.callbacks.metric_curves import MetricCurves, Series, draw_curves
from lightning_robust.figures import add_legend, panel, plain
from lightning_robust.tables import number, shorten

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLEAN_SERIES = "0"
"""Metrics on clean batches; other series have the name of their eps."""
_CLEAN, _ATTACKED = "#4c78a8", ("#f58518", "#b45309", "#5c2a04", "#8a94a0")
_MARKERS = ("s", "^", "D", "v")


def robust_figures(
    curves: MetricCurves, metrics: Sequence[str], batches: int | None
) -> dict[str, Callable[[], Figure]]:
    """What draws each figure, by tag: over the epochs, and over eps where several were measured.

    Args:
        curves: What was measured.
        metrics: The metrics to draw.
        batches: How many were attacked of each loader; all if None.
    """
    figures: dict[str, Callable[[], Figure]] = {}
    for metric in metrics:
        name, series = metric.replace("/", "_"), curves.points[metric]
        figures[f"adversarial/{name}_over_epochs"] = functools.partial(draw_over_epochs, metric, series, batches)
        if len(series) > 2:
            figures[f"adversarial/{name}_over_eps"] = functools.partial(draw_over_eps, metric, series)
    return figures


def draw_over_epochs(metric: str, series: Mapping[str, Sequence[Sequence[float]]], batches: int | None) -> Figure:
    """The clean metric, and that under each eps."""
    radii = _radii(series)
    on = "" if batches is None else f", {batches} batch{'es' if batches > 1 else ''}"
    lines = [Series("clean, all batches" if on else "clean", _CLEAN, "o", series[CLEAN_SERIES])]
    for index, radius in enumerate(radii):
        look = _ATTACKED[index % len(_ATTACKED)], _MARKERS[index % len(_MARKERS)]
        lines.append(Series(f"eps {eps_words(float(radius))}{on}", *look, series[radius]))
    return draw_curves(metric, _tell_robustness(metric, series), lines)


def draw_over_eps(metric: str, series: Mapping[str, Sequence[Sequence[float]]]) -> Figure:
    """The metric of the last validation over the radius of the attack, 0 being clean."""
    figure, axes = panel(4.0, _tell_robustness(metric, series))
    names = [CLEAN_SERIES, *_radii(series)]
    points = [(float(name), series[name][-1][1]) for name in names]
    axes.plot(*zip(*points, strict=True), color=_ATTACKED[0], marker="o", markersize=5, label="attacked")
    axes.scatter(*points[0], color=_CLEAN, s=60, zorder=3, label="clean")
    axes.set_xlabel("eps of the attack, in pixels of 0 to 1")
    axes.set_ylabel(plain(shorten(metric)))
    axes.grid(alpha=0.3)
    add_legend(axes)
    return figure


def eps_words(eps: float) -> str:
    """A radius as it is usually written: in levels of 255 where they are whole.

    Example:
        >>> eps_words(0.0313725), eps_words(0.1)
        ('8/255', '0.1')
    """
    levels = 255 * eps
    return f"{round(levels)}/255" if levels > 0.5 and abs(levels - round(levels)) < 1e-3 else number(eps)


def _tell_robustness(metric: str, series: Mapping[str, Sequence[Sequence[float]]]) -> str:
    radius = _radii(series)[-1]
    clean, attacked = (series[name][-1][1] for name in (CLEAN_SERIES, radius))
    under = f"under attack (eps {eps_words(float(radius))})"
    return f"{shorten(metric)}: {number(clean)} clean, {number(attacked)} {under}"


def _radii(series: Mapping[str, object]) -> list[str]:
    return sorted(series.keys() - {CLEAN_SERIES}, key=float)
