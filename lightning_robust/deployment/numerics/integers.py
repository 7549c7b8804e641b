"""A Q/DQ graph whose products ONNX Runtime executes in integers, whatever follows them.

ONNX Runtime fuses a product with its Q/DQ only where an int32 bias and another QuantizeLinear stand around it, and runs
all others in fp32 without a word. Here each product of two dequantised tensors is written out.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from lightning_robust.deployment.graph.types import ONNX_DOMAIN, element_types
from lightning_robust.deployment.numerics.emulate import to_model
from lightning_robust.deployment.numerics.layers import LayeredGraph
from lightning_robust.deployment.numerics.operators import QDQ, TENSOR_CORE

_EXECUTED = {
    **dict.fromkeys(("ConvInteger", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"), "int8"),
    **dict.fromkeys(("QLinearConv", "QLinearMatMul", "QGemm"), "int8"),
    **dict.fromkeys(("FusedConv", "FusedGemm", "FusedMatMul", "NhwcFusedConv", *TENSOR_CORE), "fp32"),
}
_MIDDLE = 128  # between int8 and uint8
_ZEROS = {ir.DataType.UINT8: 0, ir.DataType.INT8: _MIDDLE}
"""The zero point that is left out, as of uint8."""


def in_integers(model: onnx.ModelProto) -> onnx.ModelProto:
    r"""Write products of dequantised tensors as integer arithmetic.

    .. math:: s_x (x - z_x) \cdot s_w (w - z_w) + b = s_x s_w \sum (x - z_x) (w - z_w) + b

    with the sum in int32, exact, as ConvInteger and MatMulInteger compute it, and one multiplication and one addition
    in fp32 after it. Operands become uint8 with zero points 128 higher: ONNX Runtime's kernels for these do not
    saturate on CPUs without VNNI, as those for int8 do, and are the faster ones on CPUs with it.

    What stays a float product of dequantised tensors: ConvTranspose, for which ONNX has no integers; what has a scale
    for each element of the sum, or zero points that differ; activations that were not quantised right before.

    Args:
        model: A graph with Q/DQ. It is not changed.

    Example:
        >>> from onnx import parser
        >>> model = parser.parse_model('''<ir_version: 10, opset_import: ["" : 20]>
        ...     g (float[n, 2] x) => (float[n, 1] y) <float s = {0.1}, int8 z = {0}, int8[2, 1] w = {3, -4}> {
        ...         q = QuantizeLinear(x, s, z)
        ...         d = DequantizeLinear(q, s, z)
        ...         v = DequantizeLinear(w, s, z)
        ...         y = MatMul(d, v)
        ...     }''')
        >>> [node.op_type for node in in_integers(model).graph.node]
        ['QuantizeLinear', 'MatMulInteger', 'Cast', 'Mul']
    """
    graph = LayeredGraph(ir.from_proto(model), element_types(model), 0)
    for node in tuple(graph.graph):
        if node.op_type in _WRITE and node.domain in ONNX_DOMAIN:
            first, second = _operand(graph, node, 0), _operand(graph, node, 1)
            if first is not None and second is not None:
                _WRITE[node.op_type](graph, node, first, second)
    graph.drop_unread_nodes(node for node in graph.graph if node.op_type in QDQ)
    return to_model(graph.model)


def count_products(model: onnx.ModelProto) -> dict[str, int]:
    """How many products of a graph that ONNX Runtime has optimised compute in int8, and how many in fp32.

    Example:
        >>> from onnx import parser
        >>> text = "g (float[2, 2] x) => (float[2, 2] y) { h = MatMul(x, x) y = Relu(h) }"
        >>> count_products(parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> {text}'))
        {'fp32': 1}
    """
    return dict(Counter(_EXECUTED[node.op_type] for node in model.graph.node if node.op_type in _EXECUTED))


@dataclass(frozen=True)
class _Operand:
    """A dequantised tensor, (integers - zero) scale, with one scale or with one for each index along an axis."""

    integers: ir.Value
    zero: ir.Value
    scale: NDArray[np.float32]
    axis: int | None
    ndim: int | None

    def factor(self, axis: int, shape: tuple[int, ...]) -> NDArray[np.float32] | None:
        """The scale in a shape that the product takes, if it has one value or one for each index along this axis."""
        if self.axis is None:
            return self.scale.reshape(())
        if self.ndim is None or self.ndim < 2 or self.axis % self.ndim != axis % self.ndim:
            return None
        return self.scale.reshape(shape)


def _operand(graph: LayeredGraph, node: ir.Node, index: int) -> _Operand | None:
    """What a product reads, as uint8; None where that is not dequantised in a way that can be followed."""
    dequantise = _quantiser(node.inputs[index], QDQ[1])
    source = None if dequantise is None else dequantise.inputs[0]
    if dequantise is None or source is None:
        return None
    scale, zero, integers = (
        graph.constant(dequantise.inputs[1]),
        _zero_point(graph, dequantise),
        _unsigned(graph, source),
    )
    if scale is None or scale.dtype != np.float32 or scale.ndim > 1 or zero is None or integers is None:
        return None
    axis = dequantise.attributes.get_int("axis", 1) if scale.size > 1 else None
    weight = graph.constant(source)
    return _Operand(integers, _shared_zero(graph, zero), scale, axis, getattr(weight, "ndim", None))


def _quantiser(value: ir.Value | None, kind: str) -> ir.Node | None:
    """The QuantizeLinear or DequantizeLinear that computes a tensor, ONNX's or ONNX Runtime's own."""
    producer = None if value is None else value.producer()
    if producer is None or producer.op_type != kind or producer.domain not in (*ONNX_DOMAIN, "com.microsoft"):
        return None
    return producer


def _shared_zero(graph: LayeredGraph, zero: int) -> ir.Value:
    return graph.shared_weight(f"__zero_{zero}", np.array(zero, np.uint8))


def _zero_point(graph: LayeredGraph, node: ir.Node) -> int | None:
    """The zero point of a Q or a DQ as of uint8; None where it is not known, not of 8 bits, or not one.

    One that is left out is 0 in the type of what is quantised.
    """
    if len(node.inputs) < 3 or node.inputs[2] is None:
        quantised = node.outputs[0] if node.op_type == QDQ[0] else node.inputs[0]
        kind = None if quantised is None else _type_of(graph, quantised)
        return None if kind is None else _ZEROS.get(kind)
    zero = graph.constant(node.inputs[2])
    if zero is None or zero.dtype not in (np.int8, np.uint8) or (zero != zero.flat[0]).any():
        return None
    return int(zero.flat[0]) + _MIDDLE * (zero.dtype == np.int8)


def _type_of(graph: LayeredGraph, value: ir.Value) -> ir.DataType | None:
    weight = graph.constant(value)
    if weight is not None:
        return ir.DataType.from_numpy(weight.dtype)
    found = graph.types.get(value.name or "")
    return None if found is None else ir.DataType(found)


def _unsigned(graph: LayeredGraph, source: ir.Value) -> ir.Value | None:
    """A quantised tensor as uint8; None where it is not of 8 bits, or computed by other than a QuantizeLinear."""
    weight = graph.constant(source)
    if weight is None:
        return _unsigned_activation(graph, source)
    if weight.dtype != np.int8:
        return source if weight.dtype == np.uint8 else None
    return graph.shared_weight(f"{source.name}__uint8", (weight.astype(np.int16) + _MIDDLE).astype(np.uint8))


def _unsigned_activation(graph: LayeredGraph, source: ir.Value) -> ir.Value | None:
    """The tensor quantised to uint8, by another node in the place of one that quantises it to int8."""
    quantise = _quantiser(source, QDQ[0])
    zero = None if quantise is None else _zero_point(graph, quantise)
    if quantise is None or zero is None:
        return None
    if graph.types.get(source.name or "") == ir.DataType.UINT8:
        return source
    name = f"{quantise.name}/uint8"
    for node in quantise.inputs[0].consumers() if quantise.inputs[0] is not None else ():
        if node.name == name:
            return node.outputs[0]
    inputs = [*quantise.inputs[:2], _shared_zero(graph, zero)]
    return graph.add_node(quantise, QDQ[0], inputs, "uint8", kind=ir.DataType.UINT8)


def _write_conv(graph: LayeredGraph, node: ir.Node, first: _Operand, second: _Operand) -> None:
    ones = None if second.ndim is None else (1,) * (second.ndim - 2)
    factor = None if ones is None or first.axis is not None else second.factor(0, (-1, *ones))
    if ones is None or factor is None:
        return
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None:
        shape = graph.shared_weight(f"__channels_{len(ones)}", np.array([-1, *ones], np.int64))
        bias = graph.add_node(node, "Reshape", [bias, shape], "bias")
    _finish(graph, node, "ConvInteger", (first, second), first.scale.reshape(()) * factor, bias)


def _write_matmul(graph: LayeredGraph, node: ir.Node, first: _Operand, second: _Operand) -> None:
    factors = first.factor(-2, (-1, 1)), second.factor(-1, (-1,))
    if factors[0] is not None and factors[1] is not None:
        _finish(graph, node, "MatMulInteger", (first, second), factors[0] * factors[1], None)


def _write_gemm(graph: LayeredGraph, node: ir.Node, first: _Operand, second: _Operand) -> None:
    flips = node.attributes.get_int("transA", 0), node.attributes.get_int("transB", 0)
    factors = first.factor(flips[0], (-1, 1)), second.factor(1 - flips[1], (-1,))
    if factors[0] is None or factors[1] is None:
        return
    alpha, beta = (np.float32(node.attributes.get_float(name, 1.0)) for name in ("alpha", "beta"))
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None and beta != 1:
        bias = graph.add_node(node, "Mul", [bias, graph.add_weight(f"{node.name}/beta", np.array(beta))], "bias")
    pair = (
        replace(operand, integers=graph.add_node(node, "Transpose", [operand.integers], "flip", kind=ir.DataType.UINT8))
        if flip
        else operand
        for operand, flip in zip((first, second), flips, strict=True)
    )
    _finish(graph, node, "MatMulInteger", tuple(pair), alpha * factors[0] * factors[1], bias)


def _finish(
    graph: LayeredGraph,
    node: ir.Node,
    op: str,
    operands: tuple[_Operand, ...],
    factor: NDArray[np.float32],
    bias: ir.Value | None,
) -> None:
    """Put the sum of integers, the product with the scales, and the bias in the place of a node."""
    inputs: list[ir.Value | None] = [
        *(operand.integers for operand in operands),
        *(operand.zero for operand in operands),
    ]
    attributes = dict(node.attributes) if op == "ConvInteger" else None
    total = graph.add_node(node, op, inputs, "integers", attributes, ir.DataType.INT32)
    wide = graph.add_node(node, "Cast", [total], "float", {"to": ir.DataType.FLOAT.value})
    scale = graph.add_weight(f"{node.name}/scale", np.asarray(factor, np.float32))
    if bias is None:
        graph.replace_node(node, "Mul", [wide, scale])
    else:
        graph.replace_node(node, "Add", [graph.add_node(node, "Mul", [wide, scale], "scaled"), bias])


_WRITE = {"Conv": _write_conv, "MatMul": _write_matmul, "Gemm": _write_gemm}
