"""The head of a graph: what turns the last product into the outputs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import onnx
from onnx import TensorProto

from lightning_robust.deployment.graph.types import element_types
from lightning_robust.deployment.numerics.operators import MOVES, TENSOR_CORE

_LAYERS = TENSOR_CORE | {"Attention", "DeformConv", "Einsum", "GRU", "LSTM", "RNN"}


def head_nodes(model: onnx.ModelProto) -> tuple[str, ...]:
    """Names of the nodes between the last layers that multiply and the floating outputs, moves included.

    A layer that multiplies is a convolution, a matrix product or a recurrence. A mean of constants under softmax
    weights, as a soft-argmax, is none, whichever operator computes it. Without such a layer the head is everything.

    Args:
        model: fp32 graph.

    Returns:
        The names in the graph's order: nodes on the way to a floating output that lead to no layer on the way there.
        Nodes that neither read nor compute floats, as those of shapes, are left out.

    Example:
        >>> from onnx import parser
        >>> text = '''<ir_version: 10, opset_import: ["" : 20]> g (float[2, 2] x, float[2, 2] w) => (float[2, 2] y) {
        ...     [layer] a = MatMul(x, w) [bend] b = Sigmoid(a) [scale] y = Mul(b, b) }'''
        >>> head_nodes(parser.parse_model(text))
        ('bend', 'scale')
    """
    nodes = list(model.graph.node)
    floats = {name for name, kind in element_types(model).items() if kind == TensorProto.FLOAT}
    layers = _layers(nodes, {value.name for value in model.graph.input})
    outputs = [value.name for value in model.graph.output if value.name in floats]
    wanted = set().union(*(_head(nodes, layers, output) for output in outputs))
    return tuple(node.name for node in nodes if node.name in wanted and _is_floating(node, floats))


def fp32_outputs(model: onnx.ModelProto, keep_fp32: Collection[str]) -> tuple[bool, ...]:
    """For each output, whether it is no float or is computed by one of these nodes, and so stays as exact as it is.

    Args:
        model: fp32 graph.
        keep_fp32: Names of nodes that compute in fp32.
    """
    producers = {name: node.name for node in model.graph.node for name in node.output}
    floats = {value.name for value in model.graph.output if value.type.tensor_type.elem_type == TensorProto.FLOAT}
    outputs = (value.name for value in model.graph.output)
    return tuple(name not in floats or producers.get(name, "") in keep_fp32 for name in outputs)


def _head(nodes: Sequence[onnx.NodeProto], layers: Sequence[onnx.NodeProto], output: str) -> set[str]:
    """Names of the nodes on the way to an output that lead to no layer on the way there."""
    above = _ancestors(nodes, {output})
    here = [node for node in layers if node.name in above]
    before = _ancestors(nodes, {name for node in here for name in node.input})
    return above - before - {node.name for node in here}


def _is_floating(node: onnx.NodeProto, floats: set[str]) -> bool:
    computes = not floats.isdisjoint(node.output)
    return computes or (node.op_type not in MOVES and not floats.isdisjoint(node.input))


def _ancestors(nodes: Sequence[onnx.NodeProto], values: Iterable[str]) -> set[str]:
    """Names of the nodes that these values are computed by, from the first one on."""
    needed, found = set(values), set()
    for node in reversed(nodes):
        if not needed.isdisjoint(node.output):
            found.add(node.name)
            needed.update(filter(None, node.input))
    return found


def _layers(nodes: Sequence[onnx.NodeProto], inputs: set[str]) -> list[onnx.NodeProto]:
    """The layers that multiply, but for those that multiply a softmax, moved or not, with constants."""
    varying, weights = set(inputs), set[str]()
    layers = []
    for node in nodes:
        read = varying.intersection(node.input)
        varying.update(node.output if read else ())
        of_weights = bool(read) and read <= weights
        if node.op_type == "Softmax" or (of_weights and node.op_type in MOVES):
            weights.update(node.output)
        elif node.op_type in _LAYERS and not of_weights:
            layers.append(node)
    return layers
