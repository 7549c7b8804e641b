"""Weights that a graph computes from other weights, as weights: what a builder folds before it quantises."""

from __future__ import annotations

from collections.abc import Iterable

import onnx
import onnx_ir as ir

from lightning_robust.deployment.graph.session import Session
from lightning_robust.deployment.graph.types import ONNX_DOMAIN
from lightning_robust.deployment.numerics.layers import LayeredGraph, has_body

_CHANCE = ("Random", "Bernoulli", "Multinomial")  # how the names of operators that draw begin


def fold_computed_weights(graph: LayeredGraph, values: Iterable[ir.Value]) -> None:
    """Compute those of some tensors that depend on weights alone, and put them in as weights of the same name.

    A transposed matrix, a weight of weight normalisation, or one that is stored in fp16 is a weight to an engine; taken
    for data it would have one scale instead of one for each channel.

    Args:
        graph: The graph, which is changed.
        values: Tensors of it.
    """
    fixed = _depending_on_weights(graph)
    computed = [value for value in dict.fromkeys(values) if value in fixed and graph.constant(value) is None]
    if not computed:
        return
    nodes = _nodes_before(computed)
    tensors = Session(_weights_alone(graph, nodes, computed), optimise=False).run({})
    for value, tensor in zip(computed, tensors, strict=True):
        folded = graph.add_weight(f"{value.name}__folded", tensor.numpy())
        for node, index in tuple(value.uses()):
            node.replace_input_with(index, folded)
    graph.drop_unread_nodes(nodes)


def _weights_alone(graph: LayeredGraph, nodes: set[ir.Node], outputs: list[ir.Value]) -> onnx.ModelProto:
    """The graph with some of its nodes, without inputs, and with some fp32 tensors as outputs."""
    model = ir.to_proto(graph.model)
    kept, infos = {node.name for node in nodes}, onnx.helper.make_tensor_value_info
    part = [node for node in model.graph.node if node.name in kept]
    del model.graph.input[:], model.graph.node[:], model.graph.output[:]
    model.graph.node.extend(part)
    model.graph.output.extend(infos(str(value.name), onnx.TensorProto.FLOAT, None) for value in outputs)
    return model


def _depending_on_weights(graph: LayeredGraph) -> set[ir.Value]:
    """The tensors that no input of the graph reaches, and no chance."""
    found = {value for value in graph.graph.initializers.values() if not value.is_graph_input()}
    for node in graph.graph:
        if _is_sure(node) and all(value is None or value in found for value in node.inputs):
            found.update(node.outputs)
    return found


def _is_sure(node: ir.Node) -> bool:
    """Whether equal inputs give equal outputs, and all inputs are in sight."""
    return node.domain in ONNX_DOMAIN and not node.op_type.startswith(_CHANCE) and not has_body(node)


def _nodes_before(values: list[ir.Value]) -> set[ir.Node]:
    """The nodes that compute some tensors."""
    found: set[ir.Node] = set()
    waiting = list(values)
    while waiting:
        node = waiting.pop().producer()
        if node is not None and node not in found:
            found.add(node)
            waiting += [source for source in node.inputs if source is not None]
    return found
