"""Layers, names and constants of a graph that is rewritten."""

import numpy as np
import onnx_ir as ir

from lightning_robust.deployment.graph.types import element_types
from lightning_robust.deployment.numerics.layers import LayeredGraph, has_body

from .operators import GRAPHS, one


def layered(name):
    model, _ = GRAPHS[name]
    return LayeredGraph(ir.from_proto(model), element_types(model), 20)


def test_free_names_are_free_within_bodies_too():
    graph = layered("If")
    assert [graph.free_name(name) for name in ("s", "p", "h", "branch", "new", "new")] == [
        "s_", "p_", "h_", "branch_", "new", "new_",
    ]  # fmt: skip


def test_constants_are_weights_also_through_identity():
    model, _ = one("u = Identity(w) v = Identity(u) [op] h = Mul(x, v) [end] y = Add(h, w)", w=np.float32([1, 2]))
    graph = LayeredGraph(ir.from_proto(model), element_types(model), 20)
    multiply, add = list(graph.graph)[2:]
    assert graph.constant(multiply.inputs[1]).tolist() == [1, 2]
    assert graph.constant(multiply.inputs[0]) is None  # fed
    assert graph.constant(add.inputs[0]) is None  # computed
    assert graph.constant(None) is None


def test_new_nodes_belong_to_the_layer_they_stand_before():
    graph = layered("Conv")
    (conv,) = graph.graph
    value = graph.add_node(conv, "Neg", [conv.inputs[0]], "sign")
    graph.keep_layers(["op"])
    assert (value.producer().name, graph.layer(value.producer())) == ("op/sign", "op")
    assert graph.is_kept(value.producer())
    assert graph.is_float(value)
    assert [node.op_type for node in graph.graph] == ["Neg", "Conv"]


def test_nodes_with_bodies():
    assert {node.op_type for node in layered("nested If").graph if has_body(node)} == {"If"}
    assert {node.op_type for node in layered("Loop").graph if has_body(node)} == {"Loop"}
    assert not any(map(has_body, layered("LSTM").graph))


def test_weights_that_a_body_reads_are_read():
    graph = layered("Scan")
    graph.drop_unread_weights()
    assert list(graph.graph.initializers) == ["w"]
    graph.add_weight("unread", np.ones(1, np.float32))
    graph.drop_unread_weights()
    assert list(graph.graph.initializers) == ["w"]
