"""The figure of the layers: which nodes cost most in low precision, and how the values drift along the depth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lightning_robust.deployment.numerics.sensitivity import NodeSensitivity, Sensitivity
from lightning_robust.tables import shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ALONE, _BLOCK, _DRIFT, _LOST = "#f58518", "#fad7ac", "#4c78a8", "#e45756"


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
    costly = [(node, node.isolated) for node in layers.ranked() if node.isolated]
    _draw_costs(left, costly[:count][::-1])
    left.set_title(f"Cost of one node alone in {layers.precision}")
    left.set_xlabel(_with_note(unit, layers), parse_math=False)
    _draw_drift(right, layers)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _with_note(unit: str, layers: Sensitivity) -> str:
    missing = len(layers.unmeasured())
    return f"{unit}\n{missing} of {len(layers.nodes)} nodes were not measured" if missing else unit


def _draw_costs(axes: Axes, costly: Sequence[tuple[NodeSensitivity, float]]) -> None:
    """Bars; where values are lost one as long as the longest, in red."""
    longest = max((cost for _, cost in costly if math.isfinite(cost)), default=1.0)
    for position, (node, cost) in enumerate(costly):
        if math.isfinite(cost):
            axes.barh(position, cost, color=_ALONE if node.exact else _BLOCK)
        else:
            axes.barh(position, longest, color=_LOST)
            axes.text(0.02 * longest, position, "infinite", va="center", color="white", fontsize=8)
    axes.set_yticks(range(len(costly)), [_name_bar(node) for node, _ in costly], fontsize=8, parse_math=False)


def _name_bar(node: NodeSensitivity) -> str:
    return f"{shorten(node.origin.module or node.origin.source or node.name, 34)}  {node.op}"


def _draw_drift(axes: Axes, layers: Sensitivity) -> None:
    drift = [node.trace.drift for node in layers.nodes]
    floor = min((value for value in drift if 0 < value < math.inf), default=1e-6)
    values = [max(value, floor) if math.isfinite(value) else math.nan for value in drift]
    axes.plot(values, color=_DRIFT, linewidth=1.5)
    lost = [index for index, node in enumerate(layers.nodes) if node.trace.nonfinite > 0]
    if lost:
        top = max(filter(math.isfinite, values), default=1.0)
        axes.plot(lost, [top] * len(lost), "x", color=_LOST, label="infinite or NaN")
        axes.legend(frameon=False)
    axes.set_yscale("log")
    axes.set_title(f"Drift from fp32, everything in {layers.precision}")
    axes.set_xlabel("node, from input to output")
    axes.set_ylabel("relative L2 of its values")
