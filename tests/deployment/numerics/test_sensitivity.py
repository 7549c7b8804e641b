"""What nodes cost in low precision, and which to keep: against the emulation, closed forms and numpy's own fp16."""

import functools
import importlib.util
import json
import math
import re
import time

import numpy as np
import onnx
import onnx.reference
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from lightning_robust.deployment.engines.builder import build_engine
from lightning_robust.deployment.graph.export import Origin, export, frozen_copy
from lightning_robust.deployment.numerics.convert import to_half
from lightning_robust.deployment.numerics.emulate import SWITCHES, emulate, switchable
from lightning_robust.deployment.numerics.sensitivity import Sweep, relative_distance
from lightning_robust.deployment.numerics.trace import trace_rounding

from ..models import OutlierViT, OverflowingNorm, SmallCNN, images
from .test_emulate import run

MODULES = {"cnn": SmallCNN, "norm": OverflowingNorm, "vit": OutlierViT}


@functools.cache
def make(kind, count=4):
    torch.manual_seed(0)
    x = images(count)
    return export(frozen_copy(MODULES[kind]()), (x,)), x


def sweep(kind, **settings):
    exported, x = make(kind)
    return exported, x, Sweep(exported.model, {"input": x.numpy()}, origins=exported.origins, **settings)


def chain(*steps, size=4):
    """x through nodes ``(op, constant or None)`` named n0, n1, ..."""
    nodes, weights = [], []
    for i, (op, constant) in enumerate(steps):
        operands = [f"v{i}"]
        if constant is not None:
            weights.append(numpy_helper.from_array(np.array([constant], np.float32), f"c{i}"))
            operands.append(f"c{i}")
        nodes.append(helper.make_node(op, operands, [f"v{i + 1}"], f"n{i}"))
    x = helper.make_tensor_value_info("v0", TensorProto.FLOAT, ["batch", size])
    y = helper.make_tensor_value_info(f"v{len(steps)}", TensorProto.FLOAT, ["batch", size])
    graph = helper.make_graph(nodes, "g", [x], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def switched(model, precision, x, narrow):
    graph, names = switchable(model, precision)
    import onnxruntime

    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    mask = np.array([name in narrow for name in names])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy(), SWITCHES: mask})[0]), names


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("precision", ["fp16", "bf16", "tf32"])
def test_all_switches_off_is_fp32_and_all_on_is_the_emulation(kind, precision):
    exported, x = make(kind)
    off, names = switched(exported.model, precision, x, ())
    torch.testing.assert_close(off, run(exported.model, x), rtol=1e-5, atol=1e-5 * float(off.abs().max()))
    on, _ = switched(exported.model, precision, x, names)
    emulated = run(emulate(exported.model, precision), x)
    scale = {"fp16": 2**-11, "bf16": 2**-8, "tf32": 2**-11}[precision]
    # fused kernels sum in another order, which may turn a rounding over
    assert (on - emulated).norm() <= 4 * scale * emulated.norm()


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_one_switch_is_everything_else_kept(precision):
    model = chain(("Mul", 0.1), ("Exp", None), ("Add", 3.3))
    x = torch.randn(5, 4)
    for name in ("n0", "n1", "n2"):
        got, names = switched(model, precision, x, {name})
        assert torch.equal(got, run(emulate(model, precision, keep_fp32=set(names) - {name}), x))


def test_what_a_kept_node_reads_from_half_has_lost_its_bits():
    """1e5 is infinite in fp16, whether or not the next node computes in fp32."""
    model = chain(("Mul", 1e3), ("Mul", 1e-3))
    x = torch.full((2, 4), 100.0)
    assert run(emulate(model, "fp16", keep_fp32=["n1"]), x).isinf().all()
    assert run(emulate(model, "fp16", keep_fp32=["n0"]), x).isinf().all()
    torch.testing.assert_close(run(emulate(model, "fp16", keep_fp32=["n0", "n1"]), x), x)


def test_isolated_costs_closed_form():
    """x = 1: times 1 is exact; plus 2**-12 is lost in fp16 (spacing 2**-10); times 2 doubles it."""
    model = chain(("Mul", 1.0), ("Add", 2**-12), ("Mul", 2.0))
    found = Sweep(model, {"v0": np.ones((2, 4), np.float32)}).sensitivity()
    lost = 2**-12 / (1 + 2**-12)
    assert [node.isolated for node in found.nodes] == pytest.approx([0, lost, lost], abs=1e-7)
    assert all(node.exact for node in found.nodes[1:])
    assert found.total == pytest.approx(lost, abs=1e-7)
    assert [node.trace.drift for node in found.nodes] == pytest.approx([0, lost, lost], abs=1e-7)


def test_shares_of_overflow_infinity_and_flushed_closed_form():
    """1 of 4 values overflows at n0, is inherited by n1; 1 of 4 is flushed to zero at n0 (below 2**-25)."""
    model = chain(("Mul", 1.0), ("Mul", 0.5))
    x = np.array([[7e4, 1.0, 2**-26, 2.0]], np.float32)
    traces = trace_rounding(model, {"v0": x}, "fp16")
    # n0 reads x rounded already, and so neither overflows nor flushes by itself
    assert (traces["n0"].nonfinite, traces["n1"].nonfinite) == (0.25, 0.25)
    own = trace_rounding(
        chain(("Mul", 7e4), ("Neg", None)), {"v0": np.array([[1.0, 1e-8, 0, 0.5]], np.float32)}, "fp16"
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


def test_keep_list_beats_all_fp16_fifty_times_on_an_outlier_channel():
    exported, x, s = sweep("vit")
    total = s.sensitivity().total
    kept = s.keep_fp32(total / 50)
    assert kept.met
    assert len(kept.nodes) <= 5
    wide, fp16, mixed = (
        run(m, x)
        for m in (exported.model, emulate(exported.model, "fp16"), emulate(exported.model, "fp16", kept.nodes))
    )
    assert (mixed - wide).square().mean().sqrt() * 50 <= (fp16 - wide).square().mean().sqrt()
    assert set(kept.modules) == {"norm", "head", ""}


def test_keep_list_repairs_the_overflow_also_in_numpys_fp16():
    """The converted graph run by ONNX's reference evaluator, which computes in numpy's fp16: not our emulation."""
    exported, x, s = sweep("norm")
    kept = s.keep_fp32(2e-3)
    assert kept.met
    assert {"node_pow_1", "node_mean_1"} <= set(kept.nodes)
    wide = run(exported.model, x)

    def distance(keep):
        half = to_half(exported.model, "fp16", keep)
        with np.errstate(all="ignore"):
            got = onnx.reference.ReferenceEvaluator(half).run(None, {"input": x.numpy()})[0]
        return relative_distance([wide], [torch.from_numpy(got)])

    assert distance(()) > 0.5
    assert distance(kept.nodes) < 5e-3


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
    s = Sweep(model, {"x": torch.randn(3, 4).numpy()})
    assert s.computing == ["a", "b", "c"]
    assert s._readers.carried(["a", "b"]) == ["a", "first", "b"]
    assert s._readers.carried(["c"]) == ["c", "last"]
    assert s._readers.carried(["b"]) == ["b"]
    assert s.cost_of_keeping(["a", "b", "c"]) == 0


def test_list_is_empty_where_fp16_is_good_enough_and_whole_where_nothing_may_be_lost():
    _, _, s = sweep("cnn")
    assert s.keep_fp32(1.0).nodes == ()
    whole = s.keep_fp32(0.0)
    assert whole.error == 0
    assert set(whole.nodes) == set(s.names)


def test_no_node_of_the_list_is_needless():
    _, _, s = sweep("vit", measure=lambda r, o: float((r[0] - o[0]).abs().max()), unit="max_abs")
    kept = s.keep_fp32(s.sensitivity().total / 20)
    for name in set(kept.nodes) & set(s.computing):
        assert s.cost_of_keeping(set(kept.nodes) - {name}) > kept.tolerance
    assert kept.unit == "max_abs"


def test_written_for_autocast(tmp_path):
    exported, _, s = sweep("norm")
    kept = s.keep_fp32(2e-3)
    kept.write(tmp_path / "keep_fp32.json")
    written = json.loads((tmp_path / "keep_fp32.json").read_text())
    assert written["nodes"] == list(kept.nodes)
    assert written["met"] is True
    names = [node.name for node in exported.model.graph.node]
    excluded = {n for n in names if any(re.match(pattern, n) for pattern in written["nodes_to_exclude"])}
    assert excluded == set(kept.nodes)


def test_two_thousand_nodes_within_the_time():
    """Partial, marked as such, and every node carries at least the cost of its block, or infinity."""
    model = chain(*[("Mul", 1.37) if i % 2 else ("Tanh", None) for i in range(2000)])
    s = Sweep(model, {"v0": np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)})
    start = time.monotonic()
    found = s.sensitivity(time_limit=0.5)
    assert time.monotonic() - start < 60
    assert len(found.nodes) == 2000
    assert not found.complete
    assert not any(n.exact for n in found.nodes)


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
    found = Sweep(model, {"x": np.array([1 + 2**-12], np.float32)}).sensitivity()
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
        Sweep(half, {"v0": np.ones((1, 4), np.float16)})


@pytest.mark.parametrize("tolerance", [-1.0, math.nan, math.inf])
def test_rejects_tolerance(tolerance):
    s = Sweep(chain(("Exp", None)), {"v0": np.ones((1, 4), np.float32)})
    with pytest.raises(ValueError, match="from 0 up"):
        s.keep_fp32(tolerance)


def test_rejects_a_missing_input():
    with pytest.raises(ValueError, match=r"none for \['v0'\]"):
        Sweep(chain(("Exp", None)), {"x": np.ones((1, 4), np.float32)})


def test_relative_distance_of_lost_values_is_infinite():
    assert relative_distance([torch.ones(2)], [torch.tensor([1.0, torch.nan])]) == math.inf
    assert relative_distance([torch.zeros(2)], [torch.zeros(2)]) == 0
    assert relative_distance([torch.zeros(2)], [torch.ones(2)]) == math.inf


def test_origin_of_a_node_without_one_is_empty():
    s = Sweep(chain(("Exp", None)), {"v0": np.ones((1, 4), np.float32)})
    assert s.sensitivity().nodes[0].origin == Origin("", "")


@pytest.mark.rtx
@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="needs tensorrt-rtx")
@pytest.mark.parametrize("kind", ["norm", "vit"])
def test_parser_takes_the_mixed_graph(kind, tmp_path):
    exported, x, s = sweep(kind)
    kept = s.keep_fp32(s.sensitivity().total / 50)
    shape = tuple(x.shape)
    engine = build_engine(
        to_half(exported.model, "fp16", kept.nodes).SerializeToString(),
        backend="tensorrt_rtx",
        profile={"input": ((1, *shape[1:]), shape, shape)},
        directory=tmp_path,
        time_limit=300,
    )
    assert engine.size > 1000
