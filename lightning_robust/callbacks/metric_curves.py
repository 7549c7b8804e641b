"""Validation metrics over the epochs of a fit, several series of each, and the panel that draws one metric."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import lightning.pytorch as pl
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from lightning_robust.figures import add_legend, panel, plain
from lightning_robust.harness.compat import batch_in_epoch
from lightning_robust.harness.trainers import find_callbacks
from lightning_robust.tables import shorten

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_METRICS = 3
"""Metrics that are drawn at the end of a fit."""
Points = dict[str, dict[str, list[list[float]]]]
"""Metric -> series -> pairs of epochs and value."""


class Series(NamedTuple):
    """One line of a panel.

    Args:
        label: Its name in the legend.
        colour: Of matplotlib.
        marker: Of matplotlib.
        points: Pairs of epochs and value.
    """

    label: str
    colour: str
    marker: str
    points: Sequence[Sequence[float]]


class MetricCurves:
    """What validations found so far; it goes into checkpoints, so that a resumed run draws the whole curve.

    Example:
        >>> curves = MetricCurves()
        >>> curves.note(1.0, "raw", {"val/acc": 0.5})
        >>> curves.points["val/acc"]["raw"]
        [[1.0, 0.5]]
    """

    def __init__(self) -> None:
        self.points: Points = {}

    def note(self, epochs: float, series: str, metrics: Mapping[str, float]) -> None:
        """Add the metrics of a validation; those that are not finite are left out."""
        for name, value in metrics.items():
            if math.isfinite(value):
                self.points.setdefault(name, {}).setdefault(series, []).append([epochs, float(value)])

    def chosen(self, trainer: pl.Trainer) -> list[str]:
        """The metrics to draw: of those with two series and more, the ones that callbacks watch first."""
        watched = [each.monitor for each in find_callbacks(trainer, ModelCheckpoint | EarlyStopping)]
        several = [name for name, series in self.points.items() if len(series) > 1]
        return sorted(several, key=lambda name: name not in watched)[:MOST_METRICS]

    def state(self) -> Points:
        """A copy of plain lists."""
        return {
            name: {label: [list(p) for p in points] for label, points in series.items()}
            for name, series in self.points.items()
        }


def epochs_so_far(trainer: pl.Trainer) -> float:
    """Epochs of training behind a validation, with the part of the present one."""
    batches = trainer.num_training_batches
    share = (batch_in_epoch(trainer) + 1) / batches if 0 < batches < math.inf else 1.0
    return trainer.current_epoch + min(share, 1.0)


def draw_curves(metric: str, title: str, series: Sequence[Series], start: tuple[float, str] | None = None) -> Figure:
    """A metric over the epochs.

    Args:
        metric: Its name.
        title: The finding.
        series: The lines.
        start: A moment to mark, and its name in the legend.
    """
    figure, axes = panel(4.2, title)
    for each in series:
        xs, ys = [point[0] for point in each.points], [point[1] for point in each.points]
        axes.plot(xs, ys, color=each.colour, marker=each.marker, markersize=5, label=each.label)
    if start is not None:
        axes.axvline(start[0], color="#1b1f24", linestyle=":", linewidth=1.2, label=start[1])
    axes.set_xlim(left=0)
    axes.set_xlabel("epochs of training")
    axes.set_ylabel(plain(shorten(metric)))
    axes.grid(alpha=0.3)
    add_legend(axes)
    return figure
