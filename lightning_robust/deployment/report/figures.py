"""Figures of a parity pass: the causes of the distance, the perturbations that move the outputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lightning_robust.deployment.parity.attribution import CAUSES, History
from lightning_robust.deployment.parity.result import ParityReport
from lightning_robust.deployment.parity.scale import unit_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = {
    "export": "#4c78a8",
    "tf32": "#72b7b2",
    "fp16": "#f58518",
    "engine": "#e45756",
    "preprocessing": "#b3b3b3",
}
_MOST_TICKS = 16


def draw_parity(history: History, report: ParityReport) -> Figure:
    """Draw three panels: all causes, the numerical causes alone, and the perturbations of the last pass.

    Args:
        history: ``(epoch, attribution)`` of each pass so far.
        report: The last pass.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5.4), layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=[1, 1.15])
    upper, lower = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[1, 0])
    unit = unit_label(report.unit)
    _draw_causes(upper, history, CAUSES, unit)
    upper.set_title("Distance of the deployed model, by cause")
    _draw_causes(lower, history, CAUSES[:-1], unit)
    lower.set_title("The same without preprocessing")
    lower.set_xlabel("epoch")
    _draw_perturbations(figure.add_subplot(grid[:, 1]), report, unit)
    return figure


def draw_causes(history: History, unit: str) -> Figure:
    """Draw the causes of the distance over the passes, with preprocessing and without.

    Args:
        history: ``(epoch, attribution)`` of each pass.
        unit: The metric that the causes are counted in.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, causes, title in ((left, CAUSES, "By cause"), (right, CAUSES[:-1], "Without preprocessing")):
        _draw_causes(axes, history, causes, unit_label(unit))
        axes.set_title(title)
        axes.set_xlabel("epoch")
    return figure


def _draw_causes(axes: Axes, history: History, causes: Sequence[str], unit: str) -> None:
    """Bars side by side, never on top of each other: percentiles do not add."""
    measured = [cause for cause in causes if any(cause in attribution for _, attribution in history)]
    width = 0.8 / max(len(measured), 1)
    for index, cause in enumerate(measured):
        offset = (index - (len(measured) - 1) / 2) * width
        _draw_cause(axes, cause, [attribution.get(cause, 0.0) for _, attribution in history], offset, width)
    ticks = range(0, len(history), math.ceil(len(history) / _MOST_TICKS))
    axes.set_xticks(list(ticks), [str(history[tick][0]) for tick in ticks])
    axes.set_ylabel(unit)
    axes.spines[["top", "right"]].set_visible(False)
    if measured:
        axes.legend(frameon=False, fontsize=8, loc="upper left", ncols=2)
        axes.margins(y=0.35)


def _draw_cause(axes: Axes, cause: str, values: Sequence[float], offset: float, width: float) -> None:
    label = "preprocessing (median)" if cause == "preprocessing" else cause
    positions = [place + offset for place in range(len(values))]
    axes.bar(positions, [_finite(value) for value in values], width, color=_COLOURS[cause], label=label)
    for position, value in zip(positions, values, strict=True):
        if not math.isfinite(value):
            axes.text(position, 0.0, "\u221e", ha="center", va="bottom", fontsize=14, color=_COLOURS["engine"])


def _draw_perturbations(axes: Axes, report: ParityReport, unit: str) -> None:
    bars = sorted((_finite(metrics[report.unit]), name) for name, metrics in report.sensitivity.items())
    if not bars:
        axes.axis("off")
        axes.text(0.5, 0.5, "no preprocessing was perturbed", ha="center", va="center")
        return
    values = [value for value, _ in bars]
    axes.barh([name for _, name in bars], values, color=_COLOURS["preprocessing"])
    fp16 = report.attribution.get("fp16")
    if fp16 and math.isfinite(fp16):
        axes.axvline(fp16, color=_COLOURS["fp16"], linewidth=2, label=f"fp16: {fp16:.2g}")
        axes.legend(frameon=False, loc="lower right")
    if min(values) > 0:
        axes.set_xscale("log")
    for position, value in enumerate(values):
        axes.annotate(f"{value:.2g}", (value, position), (3, 0), textcoords="offset points", va="center", fontsize=8)
    axes.margins(x=0.12)
    axes.set_title("How far each preprocessing difference moves the outputs")
    axes.set_xlabel(unit)
    axes.spines[["top", "right"]].set_visible(False)


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0
