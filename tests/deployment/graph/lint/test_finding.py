"""The graph that rules read, and how a finding is told."""

import numpy as np
import onnx.parser
import pytest
from onnx import TensorProto, helper, numpy_helper

from lightning_robust.deployment.graph.lint import Finding
from lightning_robust.deployment.graph.lint.finding import (
    LintGraph,
    constant,
    is_floating,
    producers,
    reached,
    upstream,
)
from lightning_robust.deployment.graph.origin import Origin


@pytest.fixture
def model():
    """x -> a = Neg -> b = Reshape -> y = Add of b and a constant, with a second reader of a."""
    nodes = [
        helper.make_node("Neg", ["x"], ["a"], "neg"),
        helper.make_node("Constant", [], ["c"], "constant", value=numpy_helper.from_array(np.ones(2, np.float32), "")),
        helper.make_node("Reshape", ["a", "shape"], ["b"], "reshape"),
        helper.make_node("Add", ["b", "c"], ["y"], "add"),
        helper.make_node("Abs", ["a"], ["z"], "abs"),
    ]
    x, y, z = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xyz")
    graph = helper.make_graph(nodes, "g", [x], [y, z], [numpy_helper.from_array(np.array([2]), "shape")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def names(nodes):
    return [node.name for node in nodes]


def floating(node):
    """The floating constants among the inputs of a node."""
    return [value.tolist() for value in map(constant, node.inputs) if value is not None and is_floating(value)]


def test_neighbours(model):
    graph = LintGraph(model, {})
    neg, _, reshape, add, _ = graph.graph
    assert names(producers(add)) == ["reshape", "constant"]
    assert [(user.name, place) for user, place in reached(neg, ())] == [("reshape", 0), ("abs", 0)]
    assert [(user.name, place) for user, place in reached(neg, {"Reshape"})][2:] == [("add", 0)]
    assert sorted(names(upstream(add, {"Reshape"}))) == ["constant", "neg", "reshape"]
    assert sorted(names(upstream(add, ()))) == ["constant", "reshape"]
    assert names(graph.nodes("Abs", "Add")) == ["add", "abs"]
    assert [constant(value).tolist() for value in reshape.inputs[1:]] == [[2]]
    assert floating(add) == [[1, 1]]
    assert floating(reshape) == []


def test_model_is_not_changed(model):
    """Neither are the tensors in it, which onnx_ir shares."""
    before = model.SerializeToString(deterministic=True)
    graph = LintGraph(model, {})
    assert [len(floating(node)) for node in graph.graph] == [0, 0, 0, 1, 0]
    assert model.SerializeToString(deterministic=True) == before


def test_weights_outside_of_the_file_are_not_read(model):
    model.graph.initializer.append(numpy_helper.from_array(np.ones(2, np.float32), "w"))
    model.graph.node[3].input[1] = "w"
    onnx.external_data_helper.set_external_data(model.graph.initializer[1], "w.bin")
    assert [floating(node) for node in LintGraph(model, {}).graph] == [[]] * 5


def test_places(model):
    graph = LintGraph(model, {"neg": Origin("head.0", "head.py:3"), "abs": Origin("head", "")})
    neg, _, reshape, _, last = graph.graph
    told = [str(graph.finding("A1", node, "what", "So.", "Do.")) for node in (neg, last, reshape, None)]
    assert told == [
        "A1 head.0 (head.py:3): what. So. Do.",
        "A1 head: what. So. Do.",
        "A1 reshape: what. So. Do.",
        "A1 g: what. So. Do.",
    ]
    assert graph.finding("A1", neg, "", "", "") == Finding("A1", "neg", "head.0", "head.py:3", "", "", "")
