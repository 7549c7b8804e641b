"""What each node of a graph costs at the outputs when it computes in low precision, as a result to read."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lightning_robust.deployment.graph.origin import Origin
from lightning_robust.deployment.numerics.precisions import Low
from lightning_robust.deployment.numerics.trace import NodeTrace
from lightning_robust.tables import percent

SOUND: dict[Low, float] = {"fp16": 5e-3, "bf16": 4e-2, "tf32": 3e-3, "int8": 5e-2}
"""Relative L2 that values of a sound model stay within: about three times what small untrained networks show."""


@dataclass(frozen=True)
class NodeSensitivity:
    """What one node costs.

    Args:
        name: The node's name.
        op: Its operator.
        origin: Where it comes from.
        isolated: Distance of the outputs if this node alone computes in low precision, in the sweep's unit; None if
            that was not measured, because time was up.
        exact: Whether `isolated` was measured for the node alone; else it is that of the block around it, which was too
            small to take apart, or time was up.
        trace: How far its own values have drifted when every node computes in low precision.
    """

    name: str
    op: str
    origin: Origin
    isolated: float | None
    exact: bool
    trace: NodeTrace

    @property
    def place(self) -> str:
        """Line, operator and module with what stands in the line; operator and name where they are not known.

        Example:
            >>> trace = NodeTrace(0.0, 0.0, 0.0, 0.0)
            >>> NodeSensitivity("pow_1", "Pow", Origin("norm", "neck.py:7", "v = x.pow(2)"), None, False, trace).place
            'neck.py:7 Pow in norm (v = x.pow(2))'
            >>> NodeSensitivity("pow_1", "Pow", Origin("", ""), None, False, trace).place
            'Pow pow_1'
        """
        known = self.origin.module or self.origin.source
        return self.origin.place(self.op) if known else f"{self.op} {self.name}"


@dataclass(frozen=True)
class Sensitivity:
    """What every node costs.

    Args:
        nodes: In the graph's order; those that only move values are left out.
        total: Distance with all nodes in low precision.
        precision: ``"fp16"``, ``"bf16"``, ``"tf32"`` or ``"int8"``, for which nodes are the products.
        unit: What the distances are counted in.
        samples: Number of inputs.
        seconds: What it took.
        complete: False if time was up before every block that matters was taken apart.
    """

    nodes: tuple[NodeSensitivity, ...]
    total: float
    precision: Low
    unit: str
    samples: int
    seconds: float
    complete: bool

    def ranked(self) -> list[NodeSensitivity]:
        """The nodes, the most expensive first; those that were not measured last."""
        costs = {node.name: -math.inf if node.isolated is None else node.isolated for node in self.nodes}
        return sorted(self.nodes, key=lambda node: -costs[node.name])

    def unmeasured(self) -> list[NodeSensitivity]:
        """The nodes that time was too short for."""
        return [node for node in self.nodes if node.isolated is None]

    def first_diverging(self, tolerance: float) -> NodeSensitivity | None:
        """The first node whose values overflow, or drift from fp32 by more than a relative L2 of ``tolerance``."""
        return next((n for n in self.nodes if n.trace.nonfinite > 0 or n.trace.drift > tolerance), None)


def first_divergence(layers: Sensitivity) -> NodeSensitivity | None:
    """The first node whose values overflow, or drift further from fp32 than a sound model's outputs."""
    return layers.first_diverging(SOUND[layers.precision])


def overflow_sentence(layers: Sensitivity) -> str:
    """Names the first node that diverges, if it does so by overflow; else empty."""
    node = first_divergence(layers)
    if node is None or node.trace.overflow <= 0:
        return ""
    return f"{node.place} is the first to overflow in {layers.precision}: {percent(node.trace.overflow)} of its values."
