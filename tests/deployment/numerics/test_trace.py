"""Drift, overflow and underflow of each node's values: closed forms."""

import math

import numpy as np
import onnx
import pytest

from lightning_robust.deployment.numerics.emulate import emulate
from lightning_robust.deployment.numerics.trace import trace_rounding

from ..graphs import MODULES, chain, make, run


def test_shares_of_overflow_infinity_and_flushed_closed_form():
    """1 of 4 values overflows at n0, is inherited by n1; 1 of 4 is flushed to zero at n0 (below 2**-25)."""
    model = chain(("Mul", 1.0), ("Mul", 0.5))
    x = np.array([[7e4, 1.0, 2**-26, 2.0]], np.float32)
    traces = trace_rounding(model, {"v0": x}, "fp16")
    # n0 reads x rounded already, and so neither overflows nor flushes by itself
    assert (traces["n0"].nonfinite, traces["n1"].nonfinite) == (0.25, 0.25)
    own = trace_rounding(
        chain(("Mul", 7e4), ("Neg", None)), {"v0": np.array([[1.0, 1e-8, 0, 0.5]], np.float32)}, "fp16", "inf"
    )
    assert own["n0"].nonfinite > 0
    squares = trace_rounding(
        chain(("Sqrt", None), ("Exp", None)), {"v0": np.array([[4, 144, 400, 1]], np.float32)}, "fp16"
    )
    assert squares["n1"].overflow == 0.5  # exp(12) and exp(20) are beyond 65504, exp(2) and exp(1) are not
    assert squares["n1"].drift == math.inf
    tiny = trace_rounding(chain(("Neg", None), ("Exp", None)), {"v0": np.array([[1, 2, 20, 30]], np.float32)}, "fp16")
    assert tiny["n1"].flushed == 0.5  # exp(-20) = 2.06e-9 and exp(-30), below half of 2**-24
    assert tiny["n1"].overflow == tiny["n1"].nonfinite == 0


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("precision", ["fp16", "bf16", "tf32"])
def test_drift_of_the_last_node_matches_the_emulation(kind, precision):
    """The trace runs without the optimiser, whose fused kernels sum in another order: within 1 % of the drift."""
    exported, x = make(kind)
    wide, narrow = run(exported.model, x).double(), run(emulate(exported.model, precision), x).double()
    last = list(trace_rounding(exported.model, {"input": x.numpy()}, precision).values())[-1]
    assert last.drift == pytest.approx(float((narrow - wide).norm() / wide.norm()), rel=0.01)


def test_model_is_not_changed():
    exported, x = make("norm")
    before = exported.model.SerializeToString(deterministic=True)
    trace_rounding(exported.model, {"input": x.numpy()}, "fp16")
    assert exported.model.SerializeToString(deterministic=True) == before


def test_weights_with_the_names_of_generated_values_do_not_clash():
    """onnx_ir calls values without a name val_0, val_1, ..., as torch's exporter does."""
    model = chain(("Mul", 0.1), ("Exp", None))
    for node in model.graph.node:
        node.input[:] = ["val_0" if name == "c0" else name for name in node.input]
    model.graph.initializer[0].name = "val_0"
    plain = trace_rounding(chain(("Mul", 0.1), ("Exp", None)), {"v0": np.ones((2, 4), np.float32)}, "fp16")
    assert list(trace_rounding(model, {"v0": np.ones((2, 4), np.float32)}, "fp16").values()) == list(plain.values())


def test_infinity_that_is_meant_is_no_drift_and_does_not_hide_the_overflow_behind_it():
    """A mask of -inf: both sides are infinite there. Exp then overflows where fp32 does not."""
    graph = chain(("Add", np.array([0.0, -np.inf, 0.0, -np.inf], np.float32)), ("Exp", None))
    traces = trace_rounding(graph, {"v0": np.array([[1, 1, 12, 1]], np.float32)}, "fp16")
    assert traces["n0"] == type(traces["n0"])(0.0, 0.0, 0.0, 0.0)
    assert (traces["n1"].drift, traces["n1"].overflow) == (math.inf, 0.25)


@pytest.mark.parametrize(("batch", "samples"), [(5, 7), (10, 13), (4, 9)])
def test_any_fixed_batch_and_any_number_of_samples(batch, samples):
    """The statistics are no rows of samples, whatever their number: with one node there are five."""
    model = chain(("Mul", 0.1))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = batch
    x = np.random.default_rng(0).normal(size=(samples, 4)).astype(np.float32)
    (trace,) = trace_rounding(model, {"v0": x}, "fp16").values()
    assert 0 < trace.drift < 1e-3


def test_a_graph_without_floating_results_has_no_traces():
    node = onnx.helper.make_node("Greater", ["x", "z"], ["y"], "g")
    inputs = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None, 4]) for name in "xz"]
    output = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.BOOL, [None, 4])
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], "g", inputs, [output]), opset_imports=[onnx.helper.make_opsetid("", 20)]
    )
    x = np.ones((2, 4), np.float32)
    assert trace_rounding(model, {"x": x, "z": x}, "fp16") == {}


@pytest.mark.parametrize("opset", [7, 8, 9])
def test_operator_sets_from_before_where(opset):
    model = chain(("Mul", 300.0))
    model.opset_import[0].version = opset
    (trace,) = trace_rounding(model, {"v0": np.array([[1, 2, 300, 4]], np.float32)}, "fp16").values()
    assert trace.overflow == 0.25
