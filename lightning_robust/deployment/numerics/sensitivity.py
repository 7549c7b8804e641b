"""What each node of a graph costs at the outputs when it computes in low precision."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from torch import Tensor

from lightning_robust.deployment.graph.origin import Origin
from lightning_robust.deployment.graph.session import Session
from lightning_robust.deployment.numerics.moves import MoveGraph
from lightning_robust.deployment.numerics.operators import MOVES
from lightning_robust.deployment.numerics.rounding import OutOfRange, Precision
from lightning_robust.deployment.numerics.switches import SWITCHES, switchable
from lightning_robust.deployment.numerics.trace import NodeTrace, trace_rounding

Measure = Callable[[Sequence[Tensor], Sequence[Tensor]], float]
"""Distance of outputs (second) to a reference (first); infinite where something is lost."""
SOUND: dict[Precision, float] = {"fp16": 5e-3, "bf16": 4e-2, "tf32": 3e-3}
"""Relative L2 that values of a sound model stay within: about three times what small untrained networks show."""
_BLOCK = 8
_SETTLED = 0.01  # share of the summed squared errors that may lie in blocks which are not taken apart


@dataclass(frozen=True)
class NodeSensitivity:
    """What one node costs.

    Args:
        name: The node's name.
        op: Its operator.
        origin: Where it comes from.
        isolated: Distance of the outputs if this node alone computes in low precision, in the sweep's unit.
        exact: Whether `isolated` was measured for the node alone; else it is that of the block around it, which was too
            small to take apart, or time was up.
        trace: How far its own values have drifted when every node computes in low precision.
    """

    name: str
    op: str
    origin: Origin
    isolated: float
    exact: bool
    trace: NodeTrace

    @property
    def place(self) -> str:
        """Module and line, or the node's name where they are not known."""
        return str(self.origin) if self.origin.module or self.origin.source else self.name


@dataclass(frozen=True)
class Sensitivity:
    """What every node costs.

    Args:
        nodes: In the graph's order; those that only move values are left out.
        total: Distance with all nodes in low precision.
        precision: ``"fp16"``, ``"bf16"`` or ``"tf32"``.
        unit: What the distances are counted in.
        samples: Number of inputs.
        seconds: What it took.
        complete: False if time was up before every block that matters was taken apart.
    """

    nodes: tuple[NodeSensitivity, ...]
    total: float
    precision: Precision
    unit: str
    samples: int
    seconds: float
    complete: bool

    def ranked(self) -> list[NodeSensitivity]:
        """The nodes, the most expensive first."""
        return sorted(self.nodes, key=lambda node: -node.isolated)

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
    share = f"{100 * node.trace.overflow:.2g} %"
    return f"{node.place} ({node.op}) is the first to overflow in {layers.precision}: {share} of its values."


def relative_distance(reference: Sequence[Tensor], outputs: Sequence[Tensor]) -> float:
    r""":math:`\|y - r\| / \|r\|` over all floating outputs together; infinite where a value is lost.

    Example:
        >>> import torch
        >>> relative_distance([torch.tensor([3.0, 4.0])], [torch.tensor([3.0, 4.5])])
        0.1
    """
    pairs = [(r.double(), o.double()) for r, o in zip(reference, outputs, strict=True) if r.is_floating_point()]
    error = math.sqrt(sum(float((o - r).square().sum()) for r, o in pairs))
    size = math.sqrt(sum(float(r.square().sum()) for r, _ in pairs))
    if not math.isfinite(error):
        return math.inf
    return error / size if size > 0 else (0.0 if error == 0 else math.inf)


class NodeSweep:
    """One ONNX Runtime session that answers what any set of nodes costs in low precision.

    Args:
        model: fp32 graph as from :func:`~.export.export`.
        feeds: Input name -> array; a few samples are enough.
        precision: ``"fp16"``, ``"bf16"`` or ``"tf32"``.
        measure: Distance between two sets of outputs, in the task's own unit.
        unit: Name of that unit.
        origins: Node name -> where it comes from.
        out_of_range: What becomes of weights beyond the range of `precision`, as for :func:`~.emulate.emulate`.

    Attributes:
        names: All nodes that can compute in low precision, in the graph's order.
        computing: Those of them that do more than move values; of a convolution and a BatchNormalization that is folded
            into it, the convolution.
        origins: Node name -> where it comes from.

    Raises:
        ValueError: If the graph cannot be emulated, no node of it computes in fp32, or an input has no array.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        feeds: Mapping[str, NDArray[np.generic]],
        *,
        precision: Precision = "fp16",
        measure: Measure = relative_distance,
        unit: str = "rel_l2",
        origins: Mapping[str, Origin] | None = None,
        out_of_range: OutOfRange = "clamp",
    ) -> None:
        switched, self._switch = switchable(model, precision, out_of_range=out_of_range)
        self.names = list(self._switch)
        if not self.names:
            raise ValueError(
                "Expected a graph with nodes that compute in fp32, but none does. Give the fp32 model, before any "
                "conversion to half precision or quantisation."
            )
        self._feeds = _select_feeds(model, feeds)
        self._session = Session(switched)
        self._model, self._precision, self._measure, self._unit = model, precision, measure, unit
        self.origins = dict(origins or {})
        self._operators = {node.name: node.op_type for node in model.graph.node}
        self._switches = 1 + max(self._switch.values())
        self.computing = [name for name in _leads(self._switch) if self._operators[name] not in MOVES]
        self._moves = MoveGraph(model, self.names)
        self._reference = self._run(np.zeros(self._switches, bool))

    def cost(self, narrow: Iterable[str]) -> float:
        """Distance of the outputs to those in fp32 if the named nodes, and no others, compute in low precision."""
        mask = np.zeros(self._switches, bool)
        mask[[self._switch[name] for name in narrow]] = True
        return self._distance(mask)

    def cost_of_keeping(self, keep: Collection[str]) -> float:
        """Distance if all nodes compute in low precision but the named ones, and the moves between them."""
        mask = np.ones(self._switches, bool)
        mask[[self._switch[name] for name in self.with_moves(keep)]] = False
        return self._distance(mask)

    def with_moves(self, keep: Collection[str]) -> list[str]:
        """The layers of these nodes, and what only moves values from one of them to another or to an output."""
        kept = {self._switch[name] for name in keep}
        return self._moves.with_moves([name for name, position in self._switch.items() if position in kept])

    def sensitivity(self, time_limit: float = 60.0) -> Sensitivity:
        """Measure every node, in blocks first: a block of neighbours that costs next to nothing is not taken apart.

        Cost: one run for each block of eight neighbours, one for each node of the blocks that hold 99 % of the summed
        squared errors, and one run with two copies of the graph, which is always made (4 ms a node).

        Args:
            time_limit: Seconds; afterwards nodes carry the cost of their block, infinity where not even that is known,
                and the result is not ``complete``.
        """
        start = time.monotonic()
        traces = trace_rounding(self._model, self._feeds, self._precision)
        costs, complete = self._costs(start + time_limit)
        nodes = tuple(
            NodeSensitivity(
                name,
                self._operators[name],
                self.origins.get(name, Origin("", "")),
                *costs[name],
                traces.get(name, NodeTrace(0.0, 0.0, 0.0, 0.0)),  # a comparison: it reads floats and gives none
            )
            for name in self.computing
        )
        total = self.cost_of_keeping(())
        samples = max((len(array) for array in self._feeds.values() if array.ndim), default=1)
        return Sensitivity(nodes, total, self._precision, self._unit, samples, time.monotonic() - start, complete)

    def _costs(self, deadline: float) -> tuple[dict[str, tuple[float, bool]], bool]:
        """Node -> (cost, whether of the node alone); and whether everything that matters was taken apart."""
        blocks = [self.computing[i : i + _BLOCK] for i in range(0, len(self.computing), _BLOCK)]
        costs: dict[str, tuple[float, bool]] = {}
        known: list[tuple[float, list[str]]] = []
        for block in blocks:
            known.append((self.cost(block) if time.monotonic() < deadline else math.inf, block))
            costs |= dict.fromkeys(block, (known[-1][0], len(block) == 1))
        known.sort(key=lambda item: -item[0])
        while known and not _is_settled(known, costs):
            if time.monotonic() > deadline:
                return costs, False
            _, block = known.pop(0)
            costs |= {name: (self.cost([name]), True) for name in block}
        return costs, True

    def _distance(self, mask: NDArray[np.bool_]) -> float:
        distance = self._measure(self._reference, self._run(mask))
        return math.inf if math.isnan(distance) else distance

    def _run(self, mask: NDArray[np.bool_]) -> list[Tensor]:
        return self._session.run({**self._feeds, SWITCHES: mask})


def _leads(switches: Mapping[str, int]) -> list[str]:
    """The first node of each switch."""
    leads: dict[int, str] = {}
    for name, position in switches.items():
        leads.setdefault(position, name)
    return list(leads.values())


def _is_settled(blocks: Sequence[tuple[float, list[str]]], costs: Mapping[str, tuple[float, bool]]) -> bool:
    """Whether the blocks that are not taken apart, the largest first, hold next to nothing of all squared errors."""
    if not math.isfinite(blocks[0][0]):
        return False
    left = sum(cost**2 for cost, _ in blocks)
    found = sum(cost**2 for cost, exact in costs.values() if exact and math.isfinite(cost))
    return left <= _SETTLED * (left + found)


def _select_feeds(model: onnx.ModelProto, feeds: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
    names = [value.name for value in model.graph.input]
    if missing := sorted(set(names) - set(feeds)):
        raise ValueError(f"Expected an array for each input of the graph, but got none for {missing}.")
    return {name: feeds[name] for name in names}
