"""How far each node's values drift when a whole graph computes in low precision, in one run of bounded memory."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
from numpy.typing import NDArray

from lightning_robust.deployment.graph.session import Session
from lightning_robust.deployment.numerics.emulate import Emulation, to_model
from lightning_robust.deployment.numerics.layers import LayeredGraph
from lightning_robust.deployment.numerics.precisions import OutOfRange, Precision
from lightning_robust.deployment.numerics.prepare import prepare

_STATISTICS = 5  # a node
# One row: squared error and squared size where fp32 is finite, and the shares of overflowed, lost and flushed values. A
# finite value minus itself is zero, infinity and NaN minus themselves are NaN.
_FUNCTION = """
<domain: "trace", opset_import: ["" : {opset}]>
statistics (wide, narrow, unrounded) => (row) {{
    flat = Constant<value = int64[1] {{-1}}>()
    zero = Constant<value = double {{0}}>()
    wide_rest = Sub(wide, wide)
    wide_lost = IsNaN(wide_rest)
    wide_finite = Not(wide_lost)
    error32 = Sub(narrow, wide)
    error64 = Cast<to = 11>(error32)
    finite_error = Where(wide_finite, error64, zero)
    error = ReduceSumSquare<keepdims = 0>(finite_error)
    wide64 = Cast<to = 11>(wide)
    finite_wide = Where(wide_finite, wide64, zero)
    size = ReduceSumSquare<keepdims = 0>(finite_wide)
    narrow_rest = Sub(narrow, narrow)
    lost = IsNaN(narrow_rest)
    unrounded_rest = Sub(unrounded, unrounded)
    unrounded_lost = IsNaN(unrounded_rest)
    unrounded_finite = Not(unrounded_lost)
    overflow_mask = And(lost, unrounded_finite)
    nonfinite_mask = And(lost, wide_finite)
    is_not_zero = Cast<to = 9>(narrow)
    is_zero = Not(is_not_zero)
    was_not_zero = Cast<to = 9>(unrounded)
    flushed_mask = And(is_zero, was_not_zero)
    overflow_values = Cast<to = 11>(overflow_mask)
    overflow = ReduceMean<keepdims = 0>(overflow_values)
    nonfinite_values = Cast<to = 11>(nonfinite_mask)
    nonfinite = ReduceMean<keepdims = 0>(nonfinite_values)
    flushed_values = Cast<to = 11>(flushed_mask)
    flushed = ReduceMean<keepdims = 0>(flushed_values)
    error_row = Reshape(error, flat)
    size_row = Reshape(size, flat)
    overflow_row = Reshape(overflow, flat)
    nonfinite_row = Reshape(nonfinite, flat)
    flushed_row = Reshape(flushed, flat)
    values = Concat<axis = 0>(error_row, size_row, overflow_row, nonfinite_row, flushed_row)
    line = Constant<value = int64[2] {{1, -1}}>()
    row = Reshape(values, line)
}}
"""


@dataclass(frozen=True)
class NodeTrace:
    r"""How far one node's values have drifted from fp32, everything before it and itself in low precision.

    Args:
        drift: :math:`\|h - f\| / \|f\|` of its first output, ``h`` in low precision, ``f`` in fp32, over all places
            where ``f`` is finite; infinite where ``h`` is not finite there.
        overflow: Share of its values that were finite before they were rounded, and infinite after.
        nonfinite: Share of its values that are infinite or NaN, inherited ones included, and were not in fp32.
        flushed: Share of its values that rounding made zero.
    """

    drift: float
    overflow: float
    nonfinite: float
    flushed: float


def trace_rounding(
    model: onnx.ModelProto,
    feeds: Mapping[str, NDArray[np.generic]],
    precision: Precision,
    out_of_range: OutOfRange = "clamp",
    keep_fp32: Collection[str] = (),
    *,
    tf32: bool = False,
) -> dict[str, NodeTrace]:
    """Run a graph in fp32 and in low precision at the same time, and compare every node.

    The statistics are computed inside the graph, so that no intermediate value outlives its last reader.

    Args:
        model: fp32 graph.
        feeds: Input name -> array.
        precision: ``"fp16"``, ``"bf16"`` or ``"tf32"``.
        out_of_range: As for :func:`~.emulate.emulate`.
        keep_fp32: As there.
        tf32: As there.

    Returns:
        Node name -> :class:`NodeTrace`, for every layer with a floating first output: the drift of its result, and the
        largest shares among the parts that it is written out as. A BatchNormalization that is folded into the
        convolution before it has no line of its own.

    Raises:
        ValueError: If the graph cannot be emulated.
    """
    emulation = Emulation(model, precision, keep_fp32, out_of_range=out_of_range, tf32=tf32)
    narrow = emulation.build().graph
    return compare_nodes(prepare(model, precision, keep_fp32), narrow, feeds, emulation.unrounded)


def compare_nodes(
    wide: LayeredGraph,
    narrow: ir.Graph,
    feeds: Mapping[str, NDArray[np.generic]],
    unrounded: Mapping[ir.Value, ir.Value] | None = None,
) -> dict[str, NodeTrace]:
    """Run two graphs at the same time, and compare what they compute under the same names.

    Args:
        wide: In fp32. It is changed.
        narrow: The same nodes in low precision, on the same inputs and weights. Its nodes are moved into the other.
        feeds: Input name -> array.
        unrounded: Value of `narrow` -> what it was before it was rounded, where that was done.

    Returns:
        As :func:`trace_rounding`.
    """
    pairs = _same_values(wide, narrow)
    if not pairs:
        return {}
    paired, names = _pair(wide, narrow, pairs, unrounded or {})
    # in a single run the optimiser loses more time on so many small nodes than it saves
    (statistics,) = Session(paired, optimise=False).run(feeds)
    rows = statistics.reshape(-1, len(names), _STATISTICS).mean(0).tolist()  # over batches of a fixed size
    traces: dict[str, NodeTrace] = {}
    for name, row in zip(names, rows, strict=True):
        part = _to_trace(*row)
        traces[name] = _join_parts(traces[name], part) if name in traces else part
    return traces


def _join_parts(before: NodeTrace, last: NodeTrace) -> NodeTrace:
    """What two parts of a layer do."""
    return NodeTrace(
        last.drift,
        max(before.overflow, last.overflow),
        max(before.nonfinite, last.nonfinite),
        max(before.flushed, last.flushed),
    )


def _to_trace(error: float, size: float, overflow: float, nonfinite: float, flushed: float) -> NodeTrace:
    if nonfinite > 0 or not math.isfinite(error):
        drift = math.inf
    else:
        drift = math.sqrt(error / size) if size > 0 else (0.0 if error == 0 else math.inf)
    return NodeTrace(drift, overflow, nonfinite, flushed)


def _pair(
    wide: LayeredGraph,
    narrow: ir.Graph,
    pairs: list[tuple[ir.Value, ir.Value]],
    unrounded: Mapping[ir.Value, ir.Value],
) -> tuple[onnx.ModelProto, list[str]]:
    """Both graphs on the same inputs, and a row with the statistics of parts of these layers as the only output."""
    graph = wide.graph
    layers = [wide.layer(node) for value, _ in pairs if (node := value.producer()) is not None]
    _merge(narrow, graph)
    rows = [ir.Value(name=f"trace/{index}") for index in range(len(pairs))]
    for row, (value, low) in zip(rows, pairs, strict=True):
        versions = [value, low, unrounded.get(low, low)]
        graph.append(ir.node("statistics", versions, domain="trace", outputs=[row], name=row.name))
    output = ir.Value(name="trace", type=ir.TensorType(ir.DataType.DOUBLE), shape=ir.Shape([1, None]))
    graph.append(ir.node("Concat", rows, {"axis": 1}, outputs=[output], name="trace"))
    graph.outputs.clear()
    graph.outputs.append(output)
    return _with_statistics(wide.model), layers


def _same_values(wide: LayeredGraph, narrow: ir.Graph) -> list[tuple[ir.Value, ir.Value]]:
    """The first floating output of each node beside that of the same name in the other graph."""
    theirs = {value.name: value for node in narrow for value in node.outputs}
    ours = [node.outputs[0] for node in wide.graph if node.outputs and wide.is_float(node.outputs[0])]
    return [(value, theirs[value.name]) for value in ours if value.name in theirs]


def _with_statistics(model: ir.Model) -> onnx.ModelProto:
    """The model with the function that its nodes of domain "trace" call."""
    opset = model.graph.opset_imports.get("", 1)
    model.graph.opset_imports["trace"] = 1
    proto = to_model(model)
    proto.functions.append(onnx.parser.parse_function(_FUNCTION.format(opset=opset)))
    return proto


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
