"""Q/DQ in a graph of half precision: scales in half, so that no Cast stands between them and what they belong to."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

from lightning_robust.deployment.graph.types import ONNX_DOMAIN, element_types
from lightning_robust.deployment.numerics.layers import LayeredGraph
from lightning_robust.deployment.numerics.rounding import HALF_RANGES

_OPSET = 19  # the first in which QuantizeLinear and DequantizeLinear take fp16
_SMALLEST = 2.0**-14  # below it fp16 loses bits


def with_half_scales(model: onnx.ModelProto) -> onnx.ModelProto:
    """Let Q/DQ read and write fp16 where :func:`~.convert.to_half` casts around them.

    It keeps scales fp32, so that a product reads a DequantizeLinear through a Cast. Engines fuse the two where nothing
    is between them. A scale is rounded by 5e-4 of itself at most; one that fp16 holds with fewer bits stays fp32, with
    its Cast, and so do all in a graph below opset 19.

    Args:
        model: An fp16 graph with Q/DQ, from :func:`~.convert.to_half`. It is not changed.

    Example:
        >>> from onnx import parser
        >>> model = parser.parse_model('''<ir_version: 10, opset_import: ["" : 20]>
        ...     g (int8[n] x) => (float16[n] y) <float s = {0.1}> {
        ...         d = DequantizeLinear(x, s)
        ...         h = Cast<to = 10>(d)
        ...         y = Relu(h)
        ...     }''')
        >>> [node.op_type for node in with_half_scales(model).graph.node]
        ['DequantizeLinear', 'Relu']
    """
    graph = LayeredGraph(ir.from_proto(model), element_types(model), 0)
    if graph.version < _OPSET:
        return model
    for node in tuple(graph.graph):
        if node.domain not in ONNX_DOMAIN:
            continue
        if node.op_type == "QuantizeLinear":
            _narrow_input(graph, node)
        elif node.op_type == "DequantizeLinear":
            _narrow_output(graph, node)
    graph.drop_unread_weights()
    return ir.to_proto(graph.model)


def _half_scale(graph: LayeredGraph, node: ir.Node) -> ir.Value | None:
    """The scale of a Q or a DQ in fp16; None where it is not known, or fp16 does not hold it."""
    scale, source = graph.constant(node.inputs[1]), node.inputs[1]
    if scale is None or source is None or scale.dtype != np.float32:
        return None
    holds = ((scale >= _SMALLEST) & (scale <= HALF_RANGES["fp16"][1])).all()
    return graph.shared_weight(f"{source.name}_fp16", scale.astype(np.float16)) if holds else None


def _narrow_input(graph: LayeredGraph, node: ir.Node) -> None:
    """Read what was cast to fp32 for a QuantizeLinear."""
    cast = _cast_before(graph, node.inputs[0])
    scale = None if cast is None else _half_scale(graph, node)
    if cast is None or scale is None:
        return
    node.replace_input_with(0, cast.inputs[0])
    node.replace_input_with(1, scale)
    if not cast.outputs[0].uses() and not cast.outputs[0].is_graph_output():
        graph.graph.remove(cast, safe=True)


def _narrow_output(graph: LayeredGraph, node: ir.Node) -> None:
    """Write fp16 where all readers of a DequantizeLinear are casts to it."""
    output = node.outputs[0]
    casts = list(output.consumers())
    if output.is_graph_output() or not casts or not all(_is_to_half(cast) for cast in casts):
        return
    scale = _half_scale(graph, node)
    if scale is None:
        return
    node.replace_input_with(1, scale)
    output.type = ir.TensorType(ir.DataType.FLOAT16)
    for cast in casts:
        cast.outputs[0].replace_all_uses_with(output)
        graph.graph.remove(cast, safe=True)


def _is_to_half(node: ir.Node) -> bool:
    """Whether this is a cast to fp16 for nodes of the graph, and not for who reads its outputs."""
    to = node.attributes.get_int("to", 0)
    return node.op_type == "Cast" and to == ir.DataType.FLOAT16 and not node.outputs[0].is_graph_output()


def _cast_before(graph: LayeredGraph, value: ir.Value | None) -> ir.Node | None:
    """The cast from fp16 that makes a tensor."""
    cast = None if value is None else value.producer()
    if cast is None or cast.op_type != "Cast" or cast.inputs[0] is None:
        return None
    return cast if graph.types.get(cast.inputs[0].name or "") == ir.DataType.FLOAT16 else None
