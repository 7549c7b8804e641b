"""How far each node's values drift when a whole graph computes in low precision, in one run of bounded memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import TensorProto

from lightning_robust.deployment.graph.session import Session
from lightning_robust.deployment.graph.types import element_types
from lightning_robust.deployment.numerics.emulate import Emulation, to_model
from lightning_robust.deployment.numerics.rounding import Precision

_STATISTICS = 5  # a node, see _add_statistics


@dataclass(frozen=True)
class NodeTrace:
    r"""How far one node's values have drifted from fp32, everything before it and itself in low precision.

    Args:
        drift: :math:`\|h - f\| / \|f\|` of its first output, ``h`` in low precision, ``f`` in fp32; infinite where
            ``h`` is not finite and ``f`` is.
        overflow: Share of its values that were finite before they were rounded, and infinite after.
        nonfinite: Share of its values that are infinite or NaN, inherited ones included, and were not in fp32.
        flushed: Share of its values that rounding made zero.
    """

    drift: float
    overflow: float
    nonfinite: float
    flushed: float


def trace_rounding(
    model: onnx.ModelProto, feeds: Mapping[str, NDArray[np.generic]], precision: Precision
) -> dict[str, NodeTrace]:
    """Run a graph in fp32 and in low precision at the same time, and compare every node.

    The statistics are computed inside the graph, so that no intermediate value outlives its last reader.

    Args:
        model: fp32 graph.
        feeds: Input name -> array.
        precision: ``"fp16"``, ``"bf16"`` or ``"tf32"``.

    Returns:
        Node name -> :class:`NodeTrace`, for every node with a floating first output.

    Raises:
        ValueError: If the graph cannot be emulated.
    """
    paired, names = _pair(model, precision)
    # in a single run the optimiser loses more time on so many small nodes than it saves
    (statistics,) = Session(paired, optimise=False).run(feeds)
    rows = statistics.reshape(len(names), _STATISTICS).tolist()
    return {name: _to_trace(*row) for name, row in zip(names, rows, strict=True)}


def _to_trace(error: float, size: float, overflow: float, nonfinite: float, flushed: float) -> NodeTrace:
    if nonfinite > 0 or not math.isfinite(error):
        drift = math.inf
    else:
        drift = math.sqrt(error / size) if size > 0 else (0.0 if error == 0 else math.inf)
    return NodeTrace(drift, overflow, nonfinite, flushed)


def _pair(model: onnx.ModelProto, precision: Precision) -> tuple[onnx.ModelProto, list[str]]:
    """The graph, its emulation on the same inputs, and the statistics of these nodes as the only output."""
    emulation = Emulation(model, precision)
    narrow, wide = emulation.build().graph, ir.from_proto(model)
    graph, types = wide.graph, element_types(model)
    nodes = [node for node in graph if types.get(node.outputs[0].name or "") == TensorProto.FLOAT]
    rounded = {value.name: value for node in narrow for value in node.outputs}
    pairs = [(node.outputs[0], rounded[node.outputs[0].name]) for node in nodes]
    _merge(narrow, graph)
    statistics = _Statistics(graph)
    rows = [statistics.add(wide, narrow, emulation.unrounded.get(narrow, narrow)) for wide, narrow in pairs]
    output = statistics.node("Concat", *rows, axis=0)
    output.type, output.shape = ir.TensorType(ir.DataType.DOUBLE), ir.Shape([None])
    graph.outputs.clear()
    graph.outputs.append(output)
    return to_model(wide), [node.name or "" for node in nodes]


def _merge(narrow: ir.Graph, graph: ir.Graph) -> None:
    """Move the nodes of one graph into another whose inputs and unrounded weights they share."""
    narrow.outputs.clear()
    for ours, theirs in zip(graph.inputs, narrow.inputs, strict=True):
        theirs.replace_all_uses_with(ours)
    for name, weight in tuple(narrow.initializers.items()):
        del narrow.initializers[name]
        if name in graph.initializers:
            weight.replace_all_uses_with(graph.initializers[name])
        else:
            graph.register_initializer(weight)
    for node in tuple(narrow):
        narrow.remove(node)
        node.name = f"narrow/{node.name}"
        for value in node.outputs:
            value.name = f"narrow/{value.name}"
        graph.append(node)


class _Statistics:
    """Nodes at the end of a graph that reduce two versions of a value to the arguments of :func:`_to_trace`."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph, self._count = graph, 0
        self._zero = self._constant("trace/zero", np.array(0, np.float32))
        self._flat = self._constant("trace/flat", np.array([-1]))

    def add(self, wide: ir.Value, narrow: ir.Value, unrounded: ir.Value) -> ir.Value:
        """A vector of squared error, squared size, and the shares of overflowed, lost and flushed values."""
        lost = self.node("Not", self._finite(narrow))
        flushed = self.node("And", self._is_zero(narrow), self.node("Not", self._is_zero(unrounded)))
        scalars = (
            self._square_sum(self.node("Sub", narrow, wide)),
            self._square_sum(wide),
            self._share(self.node("And", lost, self._finite(unrounded))),
            self._share(self.node("And", lost, self._finite(wide))),
            self._share(flushed),
        )
        return self.node("Concat", *(self.node("Reshape", scalar, self._flat) for scalar in scalars), axis=0)

    def node(self, operator: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        """Append a node; returns its output."""
        name = f"trace/{self._count}"
        self._count += 1
        output = ir.Value(name=name)
        self._graph.append(ir.node(operator, inputs, attributes, outputs=[output], name=name))
        return output

    def _constant(self, name: str, value: NDArray[np.generic]) -> ir.Value:
        constant = ir.Value(name=name, const_value=ir.tensor(value, name=name))
        self._graph.register_initializer(constant)
        return constant

    def _square_sum(self, value: ir.Value) -> ir.Value:
        return self.node("ReduceSumSquare", self.node("Cast", value, to=TensorProto.DOUBLE), keepdims=0)

    def _finite(self, value: ir.Value) -> ir.Value:
        # a finite value minus itself is zero, infinity and NaN minus themselves are NaN
        return self._is_zero(self.node("Sub", value, value))

    def _is_zero(self, value: ir.Value) -> ir.Value:
        return self.node("Equal", value, self._zero)

    def _share(self, mask: ir.Value) -> ir.Value:
        return self.node("ReduceMean", self.node("Cast", mask, to=TensorProto.DOUBLE), keepdims=0)
