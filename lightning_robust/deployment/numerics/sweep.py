"""One session that answers what any set of nodes costs at the outputs when it computes in low precision."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import cast

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_robust.deployment.graph.batches import Arrays
from lightning_robust.deployment.graph.names import with_names
from lightning_robust.deployment.graph.origin import Origin
from lightning_robust.deployment.graph.session import Session
from lightning_robust.deployment.numerics.moves import MoveGraph
from lightning_robust.deployment.numerics.operators import MOVES
from lightning_robust.deployment.numerics.precisions import Low, OutOfRange, Precision
from lightning_robust.deployment.numerics.sensitivity import NodeSensitivity, Sensitivity
from lightning_robust.deployment.numerics.switches import SWITCHES, switchable
from lightning_robust.deployment.numerics.trace import NodeTrace, trace_rounding
from lightning_robust.progress import track

Measure = Callable[[Sequence[Tensor], Sequence[Tensor]], float]
"""Distance of outputs (second) to a reference (first); infinite where something is lost."""
_BLOCK = 8
_CHUNK = 16  # samples in one run: memory does not grow with the number of samples
_Costs = dict[str, tuple[float | None, bool]]  # node -> its cost, and whether that is of the node alone
_SETTLED = 0.01  # share of the summed squared errors that may lie in blocks which are not taken apart


def relative_distance(reference: Sequence[Tensor], outputs: Sequence[Tensor]) -> float:
    r""":math:`\|y - r\| / \|r\|` over all floating outputs together, where ``r`` is finite.

    Infinite where ``y`` is not finite and ``r`` is, or ``r`` is finite nowhere.

    Example:
        >>> import torch
        >>> relative_distance([torch.tensor([3.0, 4.0])], [torch.tensor([3.0, 4.5])])
        0.1
    """
    pairs = [(r, o) for r, o in zip(reference, outputs, strict=True) if r.is_floating_point()]
    exact, inexact = zip(*map(_where_finite, pairs), strict=True) if pairs else ((), ())
    error, size = _norm(map(torch.sub, inexact, exact)), _norm(exact)
    if not math.isfinite(error) or (pairs and not any(map(len, exact))):
        return math.inf
    return error / size if size > 0 else (0.0 if error == 0 else math.inf)


def _where_finite(pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Both sides in fp64, where the first is finite."""
    reference, outputs = pair
    finite = reference.isfinite()
    return reference[finite].double(), outputs[finite].double()


def _norm(parts: Iterable[Tensor]) -> float:
    return math.sqrt(sum(float(part.square().sum()) for part in parts))


class NodeSweep:
    """One ONNX Runtime session that answers what any set of nodes costs in low precision.

    Args:
        model: fp32 graph as from :func:`~lightning_robust.deployment.graph.export.export`.
        feeds: Input name -> array; a few samples are enough for :meth:`sensitivity`.
        precision: ``"fp16"``, ``"bf16"`` or ``"tf32"``; for int8 there is :class:`~.int8_sweep.Int8Sweep`.
        measure: Distance between two sets of outputs, in the task's own unit.
        unit: Name of that unit.
        origins: Node name -> where it comes from.
        out_of_range: What becomes of weights beyond the range of `precision`, as for :func:`~.emulate.emulate`.
        kept: Names of nodes that stay fp32 whatever is asked, as a user's ``keep_fp32`` has them.
        tf32: Let what is kept multiply in TF32, as for :func:`~.emulate.emulate`. What one node costs alone is measured
            beside true fp32 all the same.

    Attributes:
        names: All nodes that can compute in low precision, in the graph's order.
        computing: Those of them that do more than move values; of a convolution and a BatchNormalization that is folded
            into it, the convolution.
        origins: Node name -> where it comes from.
        samples: Number of inputs.

    Raises:
        ValueError: If the graph cannot be emulated, no node of it computes in fp32, an input has no array, or the fp32
            graph gives nothing that can be compared.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        feeds: Mapping[str, NDArray[np.generic]],
        *,
        precision: Low = "fp16",
        measure: Measure = relative_distance,
        unit: str = "rel_l2",
        origins: Mapping[str, Origin] | None = None,
        out_of_range: OutOfRange = "clamp",
        kept: Collection[str] = (),
        tf32: bool = False,
    ) -> None:
        self._model = model = with_names(model)
        self._precision, self._measure, self._unit = precision, measure, unit
        self._out_of_range: OutOfRange = out_of_range
        self._tf32, self._kept = tf32, frozenset(kept)
        switched, self._switch = self._build()
        self.names = list(self._switch)
        if not self.names:
            raise ValueError(
                "Expected a graph with nodes that compute in fp32, but none does. Give the fp32 model, before any "
                "conversion to half precision or quantisation."
            )
        self._session = Session(switched)
        self.origins = dict(origins or {})
        self._operators = {node.name: node.op_type for node in model.graph.node}
        self._switches = 1 + max(self._switch.values()) + tf32
        self._kept &= self._switch.keys()
        self.computing = self._list_computing()
        self._moves = MoveGraph(model, self.names)
        self._read(feeds)

    @property
    def output_bytes(self) -> int:
        """The size of the outputs of all samples."""
        return sum(output.nbytes for output in self._reference)

    def on(self, feeds: Arrays, *, measure: Measure | None = None) -> NodeSweep:
        """The same graph on other inputs, or in another unit.

        Args:
            feeds: Input name -> array.
            measure: Distance between two sets of outputs; this sweep's if None.

        Raises:
            ValueError: If an input has no array, or the fp32 graph gives nothing that can be compared.
        """
        other = copy.copy(self)
        other._measure = measure or self._measure
        other._read(feeds)
        return other

    def _build(self) -> tuple[onnx.ModelProto, dict[str, int]]:
        """The graph with switches, and the switch of each node."""
        precision = cast(Precision, self._precision)
        return switchable(self._model, precision, out_of_range=self._out_of_range, tf32=self._tf32)

    def _trace(self) -> dict[str, NodeTrace]:
        """How far each node's values drift with everything in low precision but what is kept."""
        precision = cast(Precision, self._precision)
        return trace_rounding(self._model, self._feeds, precision, self._out_of_range, self._kept, tf32=self._tf32)

    def _list_computing(self) -> list[str]:
        stay = {self._switch[name] for name in self._kept}
        leads = (name for name in _leads(self._switch) if self._switch[name] not in stay)
        return [name for name in leads if self._operators[name] not in MOVES]

    def _read(self, feeds: Arrays) -> None:
        self._feeds = _select_feeds(self._model, feeds)
        self.samples = next((len(array) for array in self._feeds.values() if array.ndim), 1)
        self._parts = _split(self._feeds, self.samples, _CHUNK)
        self._reference = self._run(np.zeros(self._switches, bool))
        if self._measure(self._reference, self._reference) != 0:
            raise ValueError(
                f"Expected outputs in fp32 that can be compared in {self._unit}, but on these {self.samples} samples "
                "they are infinite or NaN throughout, or none of them counts. Give other samples, or the model before "
                "it diverged."
            )

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
        """The layers of these nodes and of those that stay fp32, and what only moves values between or beside them."""
        kept = {self._switch[name] for name in {*keep, *self._kept}}
        return self._moves.with_moves([name for name, position in self._switch.items() if position in kept])

    def sensitivity(self, time_limit: float = 60.0) -> Sensitivity:
        """Measure every node, in blocks first: a block of neighbours that costs next to nothing is not taken apart.

        Cost: one run for each block of eight neighbours, one for each node of the blocks that hold 99 % of the summed
        squared errors, and one run with two copies of the graph, which is always made (4 ms a node).

        Args:
            time_limit: Seconds; afterwards nodes carry the cost of their block, None where not even that is known, and
                the result is not ``complete``.
        """
        start = time.monotonic()
        traces = self._trace()
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
        seconds = time.monotonic() - start
        return Sensitivity(nodes, total, self._precision, self._unit, self.samples, seconds, complete)

    def _costs(self, deadline: float) -> tuple[_Costs, bool]:
        """What each node costs, and whether everything that matters was taken apart."""
        blocks = [self.computing[i : i + _BLOCK] for i in range(0, len(self.computing), _BLOCK)]
        costs: _Costs = dict.fromkeys(self.computing, (None, False))
        known: list[tuple[float, list[str]]] = []
        for block in track(blocks, f"Blocks of nodes in {self._precision}"):
            if time.monotonic() > deadline:
                return costs, False
            known.append((self.cost(block), block))
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
        runs = [self._session.run({**part, SWITCHES: mask}) for part in self._parts]
        joined = [torch.cat(outputs) for outputs in zip(*runs, strict=True) if all(output.ndim for output in outputs)]
        if len(runs) == 1 or (len(joined) == len(runs[0]) and all(len(output) == self.samples for output in joined)):
            return joined if len(runs) > 1 else runs[0]
        self._parts = [self._feeds]  # an output is of all samples together
        return self._run(mask)


def _leads(switches: Mapping[str, int]) -> list[str]:
    """The first node of each switch."""
    leads: dict[int, str] = {}
    for name, position in switches.items():
        leads.setdefault(position, name)
    return list(leads.values())


def _is_settled(blocks: Sequence[tuple[float, list[str]]], costs: _Costs) -> bool:
    """Whether the blocks that are not taken apart, the largest first, hold next to nothing of all squared errors."""
    if not math.isfinite(blocks[0][0]):
        return False
    left = sum(cost**2 for cost, _ in blocks)
    found = sum(cost**2 for cost, exact in costs.values() if cost is not None and exact and math.isfinite(cost))
    return left <= _SETTLED * (left + found)


def _split(feeds: Arrays, samples: int, size: int) -> list[Arrays]:
    """The inputs in parts of so many samples; what is no batch is in each."""
    return [
        {name: a[start : start + size] if a.ndim and len(a) == samples else a for name, a in feeds.items()}
        for start in range(0, samples, size)
    ]


def _select_feeds(model: onnx.ModelProto, feeds: Arrays) -> Arrays:
    names = [value.name for value in model.graph.input]
    if missing := sorted(set(names) - set(feeds)):
        raise ValueError(f"Expected an array for each input of the graph, but got none for {missing}.")
    return {name: feeds[name] for name in names}
