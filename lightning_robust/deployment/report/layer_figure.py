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
    _draw_costs(left, [node for node in layers.ranked()[:count] if node.isolated > 0][::-1])
    left.set_title(f"Cost of one node alone in {layers.precision}")
    left.set_xlabel(unit)
    _draw_drift(right, layers)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _draw_costs(axes: Axes, nodes: Sequence[NodeSensitivity]) -> None:
    colours = [_ALONE if node.exact else _BLOCK for node in nodes]
    widths = [node.isolated if math.isfinite(node.isolated) else 0.0 for node in nodes]
    axes.barh(range(len(nodes)), widths, color=colours)
    places = [shorten(node.origin.module or node.origin.source or node.name, 34) for node in nodes]
    labels = [f"{place}  {node.op}" for place, node in zip(places, nodes, strict=True)]
    axes.set_yticks(range(len(nodes)), labels, fontsize=8)


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
