"""Norms written out as engines' parsers write them, so that what overflows between the parts is seen.

onnx-tensorrt imports ReduceL2 as a square, a sum and a root, each a layer of the network's precision. A square of 300
is beyond fp16. TensorRT-RTX 1.7 casts to fp32 around them and errs less: what is emulated here is the worse case.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from lightning_robust.deployment.numerics.layers import LayeredGraph

_AXES_AS_INPUT = 13  # the operator set from which ReduceSum takes its axes as an input
_PARTS: dict[str, tuple[str | None, str | None]] = {
    "ReduceL1": ("Abs", None),
    "ReduceL2": ("Mul", "Sqrt"),
    "ReduceSumSquare": ("Mul", None),
    "ReduceLogSum": (None, "Log"),
    "ReduceLogSumExp": ("Exp", "Log"),
}
"""Operator -> what is done to each value before a ReduceSum, and to its result; Mul is the square."""


def write_out(graph: LayeredGraph) -> None:
    """Write out the norms of fp32 in layers that are not kept; the last part keeps the node's name and output."""
    for node in tuple(graph.graph):
        if node.domain or graph.is_kept(node) or not graph.is_float(node.outputs[0]):
            continue
        if node.op_type in _PARTS and not node.attributes.get_int("noop_with_empty_axes", 0):
            _write_reduction(graph, node)
        if node.op_type == "LpNormalization" and node.attributes.get_int("p", 2) == 2:
            _write_normalization(graph, node)


def _write_reduction(graph: LayeredGraph, node: ir.Node) -> None:
    first, last = _PARTS[node.op_type]
    inputs, attributes = _sum(graph, node, _values(graph, node, first), node.attributes.get_int("keepdims", 1))
    if last is None:
        graph.replace_node(node, "ReduceSum", inputs, attributes)
    else:
        graph.replace_node(node, last, [graph.add_node(node, "ReduceSum", inputs, "sum", attributes)])


def _write_normalization(graph: LayeredGraph, node: ir.Node) -> None:
    """X / |x|, and 0 where that is 0."""
    node.attributes["axes"] = ir.AttrInt64s("axes", [node.attributes.get_int("axis", -1)])
    inputs, attributes = _sum(graph, node, _values(graph, node, "Mul"), 1)
    norm = graph.add_node(node, "Sqrt", [graph.add_node(node, "ReduceSum", inputs, "sum", attributes)], "norm")
    zero, one = (graph.add_weight(f"{node.name}/{value}", np.array(value, np.float32)) for value in (0, 1))
    is_zero = graph.add_node(node, "Equal", [norm, zero], "is_zero", kind=ir.DataType.BOOL)
    graph.replace_node(node, "Div", [node.inputs[0], graph.add_node(node, "Where", [is_zero, one, norm], "divisor")])


def _values(graph: LayeredGraph, node: ir.Node, first: str | None) -> ir.Value | None:
    """What is summed."""
    if first is None:
        return node.inputs[0]
    operands = [node.inputs[0]] * (2 if first == "Mul" else 1)
    return graph.add_node(node, first, operands, "square" if first == "Mul" else first.lower())


def _sum(
    graph: LayeredGraph, node: ir.Node, values: ir.Value | None, keepdims: int
) -> tuple[list[ir.Value | None], dict[str, Any]]:
    """Inputs and attributes of the ReduceSum of these values over the node's axes."""
    axes = node.attributes.get_ints("axes")
    if axes is None:
        return [values, *node.inputs[1:]], {"keepdims": keepdims}
    if graph.version < _AXES_AS_INPUT:
        return [values], {"keepdims": keepdims, "axes": axes}
    return [values, graph.add_weight(f"{node.name}/axes", np.array(axes, np.int64))], {"keepdims": keepdims}
