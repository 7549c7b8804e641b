"""Rules A5, A10, A11 and A12."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lightning_robust.deployment.graph.export import export, frozen_copy
from lightning_robust.deployment.graph.lint import lint
from lightning_robust.deployment.numerics.convert import to_half

from ...models import SmallCNN, images
from .graphs import of_nodes, parser_accepts, rules, written


def dropped(training):
    node = helper.make_node("Dropout", ["x", "r", "t"], ["y"], "drop")
    constants = {"r": np.array(0.5, np.float32), "t": np.array(training)}
    return of_nodes([node], [("x", TensorProto.FLOAT, [2, 3])], [("y", TensorProto.FLOAT, [2, 3])], constants)


def test_a5_training_mode():
    assert rules(dropped(True)) == ["A5"]
    assert dropped(False) == []
    values = {name: np.ones(3, np.float32) for name in "sbmv"}
    for mode, outputs in ((1, ["y", "m2", "v2"]), (0, ["y"])):
        node = helper.make_node("BatchNormalization", ["x", *"sbmv"], outputs, "norm", training_mode=mode)
        shapes = [("x", TensorProto.FLOAT, [2, 3])], [("y", TensorProto.FLOAT, [2, 3])]
        assert rules(of_nodes([node], *shapes, values)) == ["A5"] * mode


def test_a10_shapes_in_floating_point():
    def graph(kind):
        nodes = [
            helper.make_node("Shape", ["x"], ["shape"], "shape"),
            helper.make_node("Cast", ["shape"], ["float"], "cast", to=kind),
            helper.make_node("Mul", ["float", "two"], ["double"], "mul"),
            helper.make_node("Cast", ["double"], ["sizes"], "back", to=TensorProto.INT64),
            helper.make_node("Expand", ["one", "sizes"], ["y"], "expand"),
        ]
        two = np.array(2, np.float32 if kind == TensorProto.FLOAT else np.int64)
        constants = {"two": two, "one": np.ones((1, 1), np.float32)}
        return of_nodes(nodes, [("x", TensorProto.FLOAT, ["n", 3])], [("y", TensorProto.FLOAT, None)], constants)

    assert rules(graph(TensorProto.FLOAT)) == ["A10"]
    assert graph(TensorProto.INT64) == []


@pytest.mark.parametrize(("kind", "expected"), [(TensorProto.FLOAT16, ["A7", "A11"]), (TensorProto.FLOAT, ["A7"])])
def test_a11_grids_of_another_type(kind, expected):
    node = helper.make_node("GridSample", ["x", "g"], ["y"], "sample")
    inputs = [("x", kind, [1, 1, 4, 4]), ("g", TensorProto.FLOAT, [1, 4, 4, 2])]
    assert rules(of_nodes([node], inputs, [("y", kind, [1, 1, 4, 4])])) == expected


def test_a12_types_that_do_not_agree():
    exported = export(frozen_copy(SmallCNN()), (images(),))
    half = to_half(exported.model)
    assert "A12" not in rules(lint(half))
    broken = onnx.ModelProto()
    broken.CopyFrom(half)
    weight = next(tensor for tensor in broken.graph.initializer if tensor.data_type == TensorProto.FLOAT16)
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight).astype(np.float32), weight.name))
    (finding,) = [found for found in lint(broken) if found.rule == "A12"]
    assert "A strongly typed engine does not build" in finding.consequence
    assert "inconsistent type" in finding.what or "elem type" in finding.what


MISMATCHES = {
    "an input": ("Add", TensorProto.FLOAT16, [2, 3], TensorProto.FLOAT16, [3], ["A12"]),
    "the output": ("Add", TensorProto.FLOAT, [2, 3], TensorProto.FLOAT16, [3], ["A12"]),
    "the output's annotated shape": ("Add", TensorProto.FLOAT, [7, 3], TensorProto.FLOAT, [3], []),
    "a large weight": ("MatMul", TensorProto.FLOAT16, [2, 2000], TensorProto.FLOAT16, [3, 2000], ["A12"]),
}


@pytest.mark.parametrize("name", MISMATCHES)
def test_a12_types_and_not_shapes(name):
    operator, kind, shape, out, weight, expected = MISMATCHES[name]
    node = helper.make_node(operator, ["x", "c"], ["y"], "node")
    parts = [node], [("x", kind, [2, 3])], [("y", out, shape)], {"c": np.ones(weight, np.float32)}
    found = of_nodes(*parts)
    assert rules(found) == expected
    assert all(finding.node == "node" for finding in found)
    if kind == TensorProto.FLOAT16:
        assert not parser_accepts(written(*parts))


def test_a5_and_a11_are_refused_by_the_parser():
    values = {name: np.ones(3, np.float32) for name in "sbmv"}
    norm = helper.make_node("BatchNormalization", ["x", *"sbmv"], ["y", "m2", "v2"], "norm", training_mode=1)
    x, y = [("x", TensorProto.FLOAT, [2, 3])], [("y", TensorProto.FLOAT, [2, 3])]
    assert not parser_accepts(written([norm], x, y, values))
    switch = {"r": np.array(0.5, np.float32), "t": np.array(True)}
    assert not parser_accepts(written([helper.make_node("Dropout", ["x", "r", "t"], ["y"])], x, y, switch))
    inputs = [("x", TensorProto.FLOAT16, [1, 1, 4, 4]), ("g", TensorProto.FLOAT, [1, 4, 4, 2])]
    sample = helper.make_node("GridSample", ["x", "g"], ["y"])
    assert not parser_accepts(written([sample], inputs, [("y", TensorProto.FLOAT16, [1, 1, 4, 4])]))


def test_a5_remedy_names_what_eval_does_not_switch_off():
    (finding,) = dropped(True)
    assert "training=self.training" in finding.remedy
