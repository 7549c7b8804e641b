"""Moves between kept nodes."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from lightning_robust.deployment.numerics.moves import MoveGraph
from lightning_robust.deployment.numerics.sensitivity import NodeSweep


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
