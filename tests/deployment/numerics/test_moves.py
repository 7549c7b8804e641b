"""Moves between kept nodes."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from lightning_robust.deployment.numerics.moves import MoveGraph
from lightning_robust.deployment.numerics.sweep import NodeSweep

from ..graphs import graph


def test_moves_between_kept_nodes_are_kept_and_others_are_not():
    """a -> Reshape -> b -> Reshape -> c: keeping a and b carries the first, keeping c the one to the output."""
    shape = numpy_helper.from_array(np.array([-1, 4]), "shape")
    nodes = [
        helper.make_node("Exp", ["x"], ["p"], "a"),
        helper.make_node("Reshape", ["p", "shape"], ["q"], "first"),
        helper.make_node("Exp", ["q"], ["r"], "b"),
        helper.make_node("Reshape", ["r", "shape"], ["s"], "second"),
        helper.make_node("Tanh", ["s"], ["t"], "c"),
        helper.make_node("Reshape", ["t", "shape"], ["y"], "last"),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])
    graph = helper.make_graph(nodes, "g", [x], [y], [shape])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    moves = MoveGraph(model, [node.name for node in nodes])
    assert moves.with_moves(["a", "b"]) == ["a", "first", "b"]
    assert moves.with_moves(["c"]) == ["c", "last"]
    assert moves.with_moves(["b"]) == ["b"]
    assert moves.with_moves(["a", "c"]) == ["a", "c", "last"]
    s = NodeSweep(model, {"x": np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)})
    assert s.computing == ["a", "b", "c"]
    assert s.cost_of_keeping(["a", "b", "c"]) == 0


def test_moves_from_inputs_and_weights_to_a_kept_node_are_kept():
    """What is in fp32 to begin with is not rounded on its way; a constant beside a rounded value changes nothing."""
    model = graph(
        "g (float[n, 4] x, int64[n] i) => (float[n, 4] y) {"
        "[turn] a = Transpose(x) [back] b = Transpose(a) [look] e = Gather(table, i) [sum] s = Add(b, e)"
        "[bend] t = Tanh(s) [fill] f = Concat<axis = 0>(t, zeros) [cut] g = Slice(f, start, end) [last] y = Exp(g) }",
        table=np.ones((5, 4), np.float32),
        zeros=np.zeros((1, 4), np.float32),
        start=np.array([0], np.int64),
        end=np.array([3], np.int64),
    )
    moves = MoveGraph(model, [node.name for node in model.graph.node])
    assert moves.with_moves(["sum"]) == ["turn", "back", "look", "sum"]
    assert moves.with_moves(["last"]) == ["last"]
    assert moves.with_moves([]) == []
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    sweep = NodeSweep(model, {"x": x, "i": np.array([0, 1, 2])})
    assert sweep.cost_of_keeping(sweep.computing) == 0
