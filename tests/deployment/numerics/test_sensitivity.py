"""What nodes cost in low precision: closed forms, and against what the whole graph costs."""

import math
import time

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from packaging.version import Version

from lightning_robust.deployment.graph.origin import Origin
from lightning_robust.deployment.numerics.convert import to_half
from lightning_robust.deployment.numerics.sweep import NodeSweep, relative_distance

from ..graphs import chain, sweep


def test_isolated_costs_closed_form():
    """x = 1: times 1 is exact; plus 2**-12 is lost in fp16 (spacing 2**-10); times 2 doubles it."""
    model = chain(("Mul", 1.0), ("Add", 2**-12), ("Mul", 2.0))
    found = NodeSweep(model, {"v0": np.ones((2, 4), np.float32)}).sensitivity()
    lost = 2**-12 / (1 + 2**-12)
    assert [node.isolated for node in found.nodes] == pytest.approx([0, lost, lost], abs=1e-7)
    assert all(node.exact for node in found.nodes[1:])
    assert found.total == pytest.approx(lost, abs=1e-7)
    assert [node.trace.drift for node in found.nodes] == pytest.approx([0, lost, lost], abs=1e-7)


def test_root_sum_of_squares_predicts_the_whole():
    """Independent roundings add in squares: within 40 % on a small network."""
    _, _, s = sweep("cnn")
    found = s.sensitivity()
    assert math.sqrt(sum(n.isolated**2 for n in found.nodes)) == pytest.approx(found.total, rel=0.4)


def test_names_the_overflowing_layer_first():
    exported, _, s = sweep("norm")
    found = s.sensitivity()
    first = found.first_diverging(5e-3)
    assert first.op == "Pow"
    assert first.trace.overflow > 0.05
    assert first.origin == exported.origins[first.name]
    assert first.origin.source.startswith("models.py:")
    # the output is finite and wrong: nothing but the trace shows where
    assert found.nodes[-1].trace.nonfinite == 0
    assert found.nodes[-1].trace.drift > 0.1


def test_a_healthy_network_has_no_diverging_layer():
    _, _, s = sweep("cnn")
    assert s.sensitivity().first_diverging(5e-3) is None


@pytest.mark.skipif(
    Version(onnxruntime.__version__) < Version("1.32"),
    reason="ONNX Runtime 1.23 takes minutes to open what 1.32 opens in seconds",
)
def test_two_thousand_nodes_within_the_time():
    """Partial, marked as such; a node carries the cost of its block, or none, and those come last."""
    model = chain(*[("Mul", 1.37) if i % 2 else ("Tanh", None) for i in range(2000)])
    s = NodeSweep(model, {"v0": np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)})
    start = time.monotonic()
    found = s.sensitivity(time_limit=0.5)
    assert time.monotonic() - start < 60
    assert len(found.nodes) == 2000
    assert not found.complete
    assert not any(n.exact for n in found.nodes)
    ranked = [node.isolated for node in found.ranked()]
    measured = len(found.nodes) - len(found.unmeasured())
    assert None not in ranked[:measured]
    assert ranked[measured:] == [None] * len(found.unmeasured())


def test_a_graph_of_comparisons_and_integers_is_swept():
    nodes = [
        helper.make_node("Mul", ["x", "x"], ["p"], "square"),
        helper.make_node("Greater", ["p", "x"], ["q"], "greater"),
        helper.make_node("Cast", ["q"], ["y"], "cast", to=TensorProto.FLOAT),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch"])
    model = helper.make_model(
        helper.make_graph(nodes, "g", [x], [y]), opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    )
    # (1 + 2**-12)**2 > 1 + 2**-12 in fp32; in fp16 both are 1
    found = NodeSweep(model, {"x": np.array([1 + 2**-12], np.float32)}).sensitivity()
    assert [n.name for n in found.nodes] == ["square", "greater", "cast"]
    assert found.total == 1.0


def test_rejects_a_graph_that_is_half_already():
    half = to_half(chain(("Exp", None)), "fp16")
    for value in (*half.graph.input, *half.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    nodes = [node for node in half.graph.node if node.op_type != "Cast"]
    nodes[0].input[0], nodes[0].output[0] = "v0", "v1"
    del half.graph.node[:], half.graph.value_info[:]
    half.graph.node.extend(nodes)
    with pytest.raises(ValueError, match=r"but none does\. Give the fp32 model"):
        NodeSweep(half, {"v0": np.ones((1, 4), np.float16)})


def test_rejects_a_missing_input():
    with pytest.raises(ValueError, match=r"none for \['v0'\]"):
        NodeSweep(chain(("Exp", None)), {"x": np.ones((1, 4), np.float32)})


def test_relative_distance_of_lost_values_is_infinite():
    assert relative_distance([torch.ones(2)], [torch.tensor([1.0, torch.nan])]) == math.inf
    assert relative_distance([torch.zeros(2)], [torch.zeros(2)]) == 0
    assert relative_distance([torch.zeros(2)], [torch.ones(2)]) == math.inf


def test_origin_of_a_node_without_one_is_empty():
    s = NodeSweep(chain(("Exp", None)), {"v0": np.ones((1, 4), np.float32)})
    assert s.sensitivity().nodes[0].origin == Origin("", "")
