"""What each node of a graph costs in low precision, and the shortest list of nodes to keep in fp32.

The arithmetic is ``numerics/emulate.py``'s; what is done with the list is ``numerics/convert.py``'s.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from torch import Tensor

from lightning_robust.deployment.graph.export import Origin
from lightning_robust.deployment.graph.session import Session
from lightning_robust.deployment.numerics.emulate import MOVES, SWITCHES, Precision, switchable
from lightning_robust.deployment.numerics.trace import NodeTrace, trace_rounding

Measure = Callable[[Sequence[Tensor], Sequence[Tensor]], float]
"""Distance of outputs (second) to a reference (first); infinite where something is lost."""
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


@dataclass(frozen=True)
class KeepList:
    """Nodes that compute in fp32 so that a tolerance is met.

    Args:
        nodes: Names for ``to_half(model, keep_fp32=...)``, those between two of them that only move values included.
        modules: Paths of the PyTorch modules they come from.
        error: Distance that is left with all other nodes in low precision.
        tolerance: What was asked for.
        total: Distance without the list.
        precision: ``"fp16"``, ``"bf16"`` or ``"tf32"``.
        unit: What the distances are counted in.
        samples: Number of inputs that it was found on.
        complete: False if time was up before the list could be shortened.
    """

    nodes: tuple[str, ...]
    modules: tuple[str, ...]
    error: float
    tolerance: float
    total: float
    precision: Precision
    unit: str
    samples: int
    complete: bool

    @property
    def met(self) -> bool:
        """Whether the tolerance is met."""
        return self.error <= self.tolerance

    def write(self, path: str | Path) -> None:
        """Write it as JSON: ``nodes_to_exclude`` are the regular expressions that ModelOpt AutoCast takes."""
        content = asdict(self) | {"met": self.met, "nodes_to_exclude": [f"^{re.escape(name)}$" for name in self.nodes]}
        Path(path).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


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


class Sweep:
    """One ONNX Runtime session that answers what any set of nodes costs in low precision.

    Args:
        model: fp32 graph as from :func:`~.export.export`.
        feeds: Input name -> array; a few samples are enough.
        precision: ``"fp16"``, ``"bf16"`` or ``"tf32"``.
        measure: Distance between two sets of outputs, in the task's own unit.
        unit: Name of that unit.
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
    ) -> None:
        switched, self.names = switchable(model, precision)
        if not self.names:
            raise ValueError(
                "Expected a graph with nodes that compute in fp32, but none does. Give the fp32 model, before any "
                "conversion to half precision or quantisation."
            )
        self._session = Session(switched)
        wanted = [value.name for value in model.graph.input]
        if missing := sorted(set(wanted) - set(feeds)):
            raise ValueError(f"Expected an array for each input of the graph, but got none for {missing}.")
        self._feeds = {name: feeds[name] for name in wanted}
        self._model, self._precision, self._measure, self._unit = model, precision, measure, unit
        self._origins = origins or {}
        self._samples = max((len(array) for array in self._feeds.values() if array.ndim), default=1)
        self._index = {name: position for position, name in enumerate(self.names)}
        self._readers = _Moves(model, frozenset(self.names))
        self._ops = {node.name: node.op_type for node in model.graph.node}
        self.computing = [name for name in self.names if self._ops[name] not in MOVES]
        self._reference = self._run(np.zeros(len(self.names), bool))
        self._ranking: Sensitivity | None = None

    def cost(self, narrow: Iterable[str]) -> float:
        """Distance of the outputs to those in fp32 if the named nodes, and no others, compute in low precision."""
        mask = np.zeros(len(self.names), bool)
        mask[[self._index[name] for name in narrow]] = True
        return self._distance(mask)

    def cost_of_keeping(self, keep: Collection[str]) -> float:
        """Distance if all nodes compute in low precision but the named ones, and the moves between them."""
        mask = np.ones(len(self.names), bool)
        mask[[self._index[name] for name in self._readers.carried(keep)]] = False
        return self._distance(mask)

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
                self._ops[name],
                self._origins.get(name, Origin("", "")),
                *costs[name],
                traces.get(name, NodeTrace(0.0, 0.0, 0.0, 0.0)),  # a comparison: it reads floats and gives none
            )
            for name in self.computing
        )
        total = self.cost_of_keeping(())
        seconds = time.monotonic() - start
        self._ranking = Sensitivity(nodes, total, self._precision, self._unit, self._samples, seconds, complete)
        return self._ranking

    def keep_fp32(self, tolerance: float, time_limit: float = 60.0) -> KeepList:
        """Find a short list of nodes whose computing in fp32 brings the distance down to a tolerance.

        The nodes that cost most alone are kept, as few as it takes; then each is given up again that is not needed.
        Neighbours that help only together (a norm that overflows) are found because each overflows alone.

        Args:
            tolerance: Largest allowed distance, in the sweep's unit.
            time_limit: Seconds for the search, besides those of the ranking where it has not been made.

        Raises:
            ValueError: If the tolerance is negative or not finite.
        """
        if not 0 <= tolerance < math.inf:
            raise ValueError(f"Expected `tolerance` to be a number from 0 up, but got {tolerance}.")
        ranking = self._ranking or self.sensitivity(time_limit)
        deadline = time.monotonic() + time_limit
        order = [node.name for node in ranking.ranked()]
        count = self._shortest_prefix(order, tolerance) if ranking.total > tolerance else 0
        kept, complete = self._without_needless(order[:count], tolerance, deadline)
        modules = dict.fromkeys(str(self._origins[name].module) for name in kept if name in self._origins)
        return KeepList(
            tuple(self._readers.carried(kept)),
            tuple(modules),
            self.cost_of_keeping(kept),
            tolerance,
            ranking.total,
            self._precision,
            self._unit,
            self._samples,
            complete,
        )

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

    def _shortest_prefix(self, order: list[str], tolerance: float) -> int:
        """The smallest number of leading nodes to keep that meets the tolerance: doubling, then halving."""
        low, high = 0, 1
        while high < len(order) and self.cost_of_keeping(order[:high]) > tolerance:
            low, high = high, 2 * high
        high = min(high, len(order))
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.cost_of_keeping(order[:middle]) <= tolerance else (middle, high)
        return high

    def _without_needless(self, kept: list[str], tolerance: float, deadline: float) -> tuple[list[str], bool]:
        for name in reversed(kept):
            if time.monotonic() > deadline:
                return kept, False
            rest = [other for other in kept if other != name]
            if self.cost_of_keeping(rest) <= tolerance:
                kept = rest
        return kept, True

    def _distance(self, mask: NDArray[np.bool_]) -> float:
        distance = self._measure(self._reference, self._run(mask))
        return math.inf if math.isnan(distance) else distance

    def _run(self, mask: NDArray[np.bool_]) -> list[Tensor]:
        return self._session.run({**self._feeds, SWITCHES: mask})


def _is_settled(blocks: Sequence[tuple[float, list[str]]], costs: Mapping[str, tuple[float, bool]]) -> bool:
    """Whether the blocks that are not taken apart, the largest first, hold next to nothing of all squared errors."""
    if not math.isfinite(blocks[0][0]):
        return False
    left = sum(cost**2 for cost, _ in blocks)
    found = sum(cost**2 for cost, exact in costs.values() if exact and math.isfinite(cost))
    return left <= _SETTLED * (left + found)


class _Moves:
    """Which nodes only move values, and between which others."""

    def __init__(self, model: onnx.ModelProto, switches: frozenset[str]) -> None:
        self._nodes = [node for node in model.graph.node if node.name in switches]
        self._outputs = {value.name for value in model.graph.output}

    def carried(self, keep: Collection[str]) -> list[str]:
        """The nodes to keep with the moves on the way from one of them to another or to an output, in order."""
        kept = set(keep)
        before = self._reached(self._nodes, kept, lambda node: (node.input, node.output), set())
        after = self._reached(self._nodes[::-1], kept, lambda node: (node.output, node.input), set(self._outputs))
        return [node.name for node in self._nodes if node.name in kept | (before & after)]

    @staticmethod
    def _reached(
        nodes: Sequence[onnx.NodeProto],
        kept: set[str],
        ends: Callable[[onnx.NodeProto], tuple[Sequence[str], Sequence[str]]],
        values: set[str],
    ) -> set[str]:
        """The moves that a kept node's values reach through moves alone."""
        found = set()
        for node in nodes:
            here, there = ends(node)
            if node.name in kept:
                values.update(there)
            elif node.op_type in MOVES and values & set(here):
                found.add(node.name)
                values.update(there)
        return found
