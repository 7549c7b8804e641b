"""Pictures of a parity pass: what causes the distance, which preprocessing moves the outputs, which layers cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lightning_robust.deployment.graph.export import Origin
from lightning_robust.deployment.numerics.sensitivity import Sensitivity
from lightning_robust.deployment.parity.measure import CAUSES, ParityReport

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


def draw_causes(history: Sequence[tuple[int, dict[str, float]]], unit: str) -> Figure:
    """Draw what the distance comes from over the passes, with preprocessing and without.

    Args:
        history: ``(epoch, attribution)`` of each pass.
        unit: The metric that the shares are counted in.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, causes, title in ((left, CAUSES, "By cause"), (right, CAUSES[:-1], "Without preprocessing")):
        _stack(axes, history, causes, unit_label(unit))
        axes.set_title(title)
        axes.set_xlabel("epoch")
    return figure


def draw_layers(layers: Sensitivity, unit: str, count: int = 12) -> Figure:
    """Draw the nodes that cost most, and how the values drift from fp32 along the depth of the network.

    Args:
        layers: What each node costs.
        unit: Label of the unit.
        count: How many nodes are named.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.2])
    worst = [node for node in layers.ranked()[:count] if node.isolated > 0][::-1]
    costs = [_finite(node.isolated) for node in worst]
    colours = [_COLOURS["fp16"] if node.exact else "#fad7ac" for node in worst]
    left.barh(range(len(worst)), costs, color=colours)
    left.set_yticks(range(len(worst)), [f"{_short(node.origin, node.name)}  {node.op}" for node in worst], fontsize=8)
    left.set_title(f"Cost of one node alone in {layers.precision}")
    left.set_xlabel(unit)
    _drift(right, layers)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _drift(axes: Axes, layers: Sensitivity) -> None:
    drift = [node.trace.drift for node in layers.nodes]
    floor = min((value for value in drift if 0 < value < math.inf), default=1e-6)
    shown = [max(value, floor) if math.isfinite(value) else math.nan for value in drift]
    axes.plot(shown, color=_COLOURS["export"], linewidth=1.5)
    lost = [index for index, node in enumerate(layers.nodes) if node.trace.nonfinite > 0]
    if lost:
        top = max((value for value in shown if math.isfinite(value)), default=1.0)
        axes.plot(lost, [top] * len(lost), "x", color=_COLOURS["engine"], label="infinite or NaN")
        axes.legend(frameon=False)
    axes.set_yscale("log")
    axes.set_title(f"Drift from fp32, everything in {layers.precision}")
    axes.set_xlabel("node, from input to output")
    axes.set_ylabel("relative L2 of its values")


def _short(origin: Origin, name: str) -> str:
    place = origin.module or origin.source or name
    return place if len(place) <= 34 else f"\u2026{place[-33:]}"


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
