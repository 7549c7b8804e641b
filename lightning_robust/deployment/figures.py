"""The parity picture: what causes the distance, over the epochs, and which preprocessing moves the outputs most."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lightning_robust.deployment.parity import CAUSES, ParityReport

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


def draw_parity(history: Sequence[tuple[int, dict[str, float]]], report: ParityReport) -> Figure:
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
    _stack(upper, history, CAUSES, unit)
    upper.set_title("Distance of the deployed model, by cause")
    _stack(lower, history, CAUSES[:-1], unit)
    lower.set_title("The same without preprocessing")
    lower.set_xlabel("epoch")
    _bars(figure.add_subplot(grid[:, 1]), report, unit)
    return figure


def unit_label(metric: str) -> str:
    """A metric's name as a reader would say it.

    Example:
        >>> unit_label("lateral_px_p99")
        'lateral px (99th percentile)'
    """
    words = {"p99": "(99th percentile)", "max": "(largest)", "mean": "(mean)"}
    stem, _, last = metric.rpartition("_")
    if last in words and stem:
        return f"{stem.replace('_', ' ')} {words[last]}"
    return {"rel_l2": "relative L2 distance"}.get(metric, metric.replace("_", " "))


def _stack(axes: Axes, history: Sequence[tuple[int, dict[str, float]]], causes: Sequence[str], unit: str) -> None:
    positions = range(len(history))
    base = [0.0] * len(history)
    for cause in causes:
        heights = [_finite(shares.get(cause, 0.0)) for _, shares in history]
        if any(cause in shares for _, shares in history):
            label = "preprocessing (median)" if cause == "preprocessing" else cause
            axes.bar(positions, heights, 0.7, bottom=base, color=_COLOURS[cause], label=label)
            base = [low + high for low, high in zip(base, heights, strict=True)]
    for position, (_, shares) in enumerate(history):
        if any(not math.isfinite(shares.get(cause, 0.0)) for cause in causes):
            axes.annotate("\u221e", (position, base[position]), ha="center", va="bottom", fontsize=14, color="#e45756")
    axes.set_xticks(list(positions), [str(epoch) for epoch, _ in history])
    axes.set_ylabel(unit)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8, loc="upper left", ncols=2)
        axes.margins(y=0.35)


def _bars(axes: Axes, report: ParityReport, unit: str) -> None:
    moved = sorted((_finite(metrics[report.unit]), name) for name, metrics in report.sensitivity.items())
    if not moved:
        axes.axis("off")
        axes.text(0.5, 0.5, "no preprocessing was perturbed", ha="center", va="center")
        return
    values = [value for value, _ in moved]
    axes.barh([name for _, name in moved], values, color=_COLOURS["preprocessing"])
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
