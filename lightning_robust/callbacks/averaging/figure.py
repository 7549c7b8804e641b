"""The figure of averaging: a metric of the raw weights against that of the average, over the epochs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from lightning_robust.callbacks.metric_curves import MetricCurves, Series, draw_curves
from lightning_robust.tables import number, shorten

if TYPE_CHECKING:
    from matplotlib.figure import Figure

AVERAGE_SERIES, RAW_SERIES = "average", "raw"
_LOOKS = (("#b45309", "^"), ("#5c2a04", "D"), ("#1b1f24", "v"))


def averaging_figures(curves: MetricCurves, metrics: Sequence[str]) -> dict[str, Callable[[], Figure]]:
    """What draws the figure of each of these metrics, by tag."""
    return {
        f"swa/{metric.replace('/', '_')}_over_epochs": functools.partial(draw_averaging, metric, curves.points[metric])
        for metric in metrics
        if AVERAGE_SERIES in curves.points[metric]
    }


def draw_averaging(metric: str, series: Mapping[str, Sequence[Sequence[float]]]) -> Figure:
    """A metric of the raw weights, of the average, and of further averages; the first validation of it is marked."""
    average = series[AVERAGE_SERIES]
    lines = [Series("average", "#f58518", "s", average)]
    if RAW_SERIES in series:
        lines.insert(0, Series("raw weights", "#4c78a8", "o", series[RAW_SERIES]))
    others = [name for name in series if name not in (AVERAGE_SERIES, RAW_SERIES)]
    for index, name in enumerate(others):
        lines.append(Series(f"average {shorten(name, 14)}", *_LOOKS[index % len(_LOOKS)], series[name]))
    return draw_curves(metric, _tell_averaging(metric, series), lines, (average[0][0], "average begins"))


def _tell_averaging(metric: str, series: Mapping[str, Sequence[Sequence[float]]]) -> str:
    average = series[AVERAGE_SERIES][-1]
    raw = series.get(RAW_SERIES, [[0.0, 0.0]])[-1]
    text = f"{shorten(metric)}: {number(average[1])} with the average"
    return f"{text}, {number(raw[1])} with the raw weights" if raw[0] == average[0] else text
