"""Figures of the layers: which nodes cost most in low precision, and how the values drift along the depth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lightning_robust.deployment.numerics.sensitivity import NodeSensitivity, Sensitivity
from lightning_robust.deployment.parity.scale import unit_label
from lightning_robust.figures import FONT, add_legend, name_axes, panel, plain, use_plain_log_ticks
from lightning_robust.tables import percent, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COST, _DRIFT, _LOST = "#f58518", "#4c78a8", "#e45756"
_NAME = 26  # letters
_ROW, _FRAME = 0.3, 1.8  # inches


def draw_costs(layers: Sensitivity, count: int = 10) -> Figure:
    """Draw what the nodes that cost most cost alone.

    Args:
        layers: What each node costs.
        count: How many nodes are shown.
    """
    costly = [(node, node.isolated) for node in layers.ranked() if node.isolated][:count][::-1]
    figure, axes = panel(_FRAME + _ROW * max(len(costly), 3), f"What costs most in {layers.precision}, each node alone")
    longest = max((cost for _, cost in costly if math.isfinite(cost)), default=1.0)
    for row, (node, cost) in enumerate(costly):
        _draw_bar(axes, row, node, cost, longest)
    axes.set_yticks(range(len(costly)), [plain(_name_bar(node)) for node, _ in costly], fontsize=FONT)
    axes.tick_params(axis="y", length=0)
    name_axes(axes, _with_note(unit_label(layers.unit), layers))
    axes.set_xlim(0, 1.2 * longest)
    axes.locator_params(axis="x", nbins=3)
    if not costly:
        axes.set_yticks([])
        axes.text(0.5, 0.5, "No node costs anything alone.", ha="center", fontsize=FONT, transform=axes.transAxes)
    elif not all(node.exact for node, _ in costly):
        add_legend(axes, 1)
    return figure


def draw_drift(layers: Sensitivity) -> Figure:
    """Draw how far the values of each node drift from fp32 along the depth, with the largest drift named.

    Args:
        layers: What each node costs; a node's number is its place in the order of the graph, as in the table.
    """
    figure, axes = panel(3.8, f"How far values drift from fp32, everything in {layers.precision}")
    values = _drawable([node.trace.drift for node in layers.nodes])
    finite = [value for value in values if math.isfinite(value)] or [1e-6, 1.0]
    low, top = min(finite), max(finite)
    axes.plot(range(1, len(values) + 1), values, ".-", color=_DRIFT, linewidth=1.5)
    lost = [number for number, node in enumerate(layers.nodes, 1) if node.trace.nonfinite > 0]
    if lost:
        axes.plot(lost, [top] * len(lost), "x", color=_LOST, markersize=8, label="infinite or NaN")
        add_legend(axes, 1)
    use_plain_log_ticks(axes, "y")
    axes.set_ylim(low / 1.5, top * (top / low) ** 0.25 * 1.5)
    name_axes(axes, "number of the node, from input to output", "relative L2 distance")
    if any(map(math.isfinite, values)):
        _name_peak(axes, layers, values)
    return figure


def _drawable(drift: Sequence[float]) -> list[float]:
    """What a logarithmic axis can show: the smallest for zero, NaN for what is lost."""
    floor = min((value for value in drift if 0 < value < math.inf), default=1e-6)
    return [max(value, floor) if math.isfinite(value) else math.nan for value in drift]


def _draw_bar(axes: Axes, row: int, node: NodeSensitivity, cost: float, longest: float) -> None:
    """A bar; where values are lost one as long as the longest, in red."""
    if not math.isfinite(cost):
        axes.barh(row, longest, color=_LOST)
        axes.text(0.02 * longest, row, "infinite", va="center", color="white", fontsize=FONT)
        return
    label = "alone" if node.exact else "at most: together with its neighbours"
    _, known = axes.get_legend_handles_labels()
    name = "_" if label in known else label
    axes.barh(row, cost, color=_COST, label=name, alpha=1.0 if node.exact else 0.4, hatch="" if node.exact else "//")
    axes.annotate(f"{cost:.2g}", (cost, row), (4, 0), textcoords="offset points", va="center", fontsize=FONT - 1)


def _name_peak(axes: Axes, layers: Sensitivity, values: Sequence[float]) -> None:
    """The place, the number and the size of the largest drift, at its point."""
    index = max(range(len(values)), key=lambda place: -1.0 if math.isnan(values[place]) else values[place])
    number, middle = index + 1, len(values) / 2
    axes.plot(number, values[index], "o", color=_DRIFT, markersize=9, markerfacecolor="none", markeredgewidth=2)
    axes.annotate(
        f"{number}: {plain(_name_bar(layers.nodes[index]))}, {percent(layers.nodes[index].trace.drift)}",
        (number, values[index]),
        (0, 12),
        textcoords="offset points",
        ha="left" if number < 0.6 * middle else "right" if number > 1.4 * middle else "center",
        fontsize=FONT - 1,
    )


def _with_note(unit: str, layers: Sensitivity) -> str:
    missing = len(layers.unmeasured())
    return f"{unit}; {missing} of {len(layers.nodes)} nodes were not measured" if missing else unit


def _name_bar(node: NodeSensitivity) -> str:
    return f"{shorten(node.origin.module or node.origin.source or node.name, _NAME)} {node.op}"
