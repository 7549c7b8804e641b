"""Emulated targets: what they are measured on, what their notes say, and when there is nothing to measure."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_robust.deployment.engines import BuildSettings, Subject, runtime
from lightning_robust.deployment.engines.execution import execute
from lightning_robust.deployment.graph.export import frozen_copy
from lightning_robust.deployment.graph.files import GraphSubject
from lightning_robust.deployment.numerics.rounding import round_array

from ..numerics.operators import GRAPHS, one


def relative(values, reference):
    return float((values - reference).norm() / reference.norm())


def measure(target, model, feeds, **settings):
    return execute(runtime(target), GraphSubject(model, feeds, BuildSettings(**settings)))


class Up(nn.Module):
    def __init__(self, factor, mode):
        super().__init__()
        self.factor, self.mode = factor, mode

    def forward(self, x):
        return F.interpolate(x, scale_factor=self.factor, mode=self.mode)


@pytest.mark.parametrize(
    ("factor", "mode"), [(1.6, "nearest"), (1.7, "nearest"), (3.3, "nearest"), (1.6, "bilinear"), (0.7, "bicubic")]
)
def test_scales_of_a_resize_are_not_rounded(factor, mode):
    """Rounded to fp16, 1.7 moves pixels (0.36 of relative L2 instead of 4e-4) and 1.6 loses a row (31 of 32)."""
    torch.manual_seed(0)
    x = torch.rand(2, 3, 20, 20)
    exact = F.interpolate(x, scale_factor=factor, mode=mode)
    made = execute(runtime("emulated-fp16"), Subject(frozen_copy(Up(factor, mode)), (x,)))
    assert made.outputs[0].shape == exact.shape
    half = F.interpolate(x.half(), scale_factor=factor, mode=mode).float()
    assert 0.5 < relative(made.outputs[0], exact) / relative(half, exact) < 1.5


@pytest.mark.parametrize("name", ["If", "nested If", "Loop", "Scan"])
@pytest.mark.parametrize("target", ["emulated-fp16", "emulated-bf16", "emulated-fp16acc"])
def test_control_flow_is_measured_around_and_named(name, target):
    model, feeds = GRAPHS[name]
    kind = "If" if "If" in name else name
    made = measure(target, model, feeds)
    assert made.status == "measured"
    assert f"{kind} '" in made.note
    assert "computes in fp32, with all that is in it" in made.note


def test_a_graph_that_is_all_control_flow_is_not_called_exact():
    text = """[branch] y = If(c) <then_branch = t () => (float[2,3,8,8] p) { p = Exp(x) },
                                  else_branch = e () => (float[2,3,8,8] q) { q = Neg(x) }>"""
    model, feeds = one(text, inputs="float[2,3,8,8] x, bool c", outputs="float[2,3,8,8] y",
                       feeds={"x": np.ones((2, 3, 8, 8), np.float32), "c": np.array(True)})  # fmt: skip
    made = measure("emulated-fp16", model, feeds)
    assert made.status == "failed"
    assert "If 'branch' computes in fp32" in made.note


def test_products_within_control_flow_are_not_called_exact_in_tf32():
    text = """[branch] y = If(c) <then_branch = t () => (float[2,3,8,8] p) { p = MatMul(x, x) },
                                  else_branch = e () => (float[2,3,8,8] q) { q = Neg(x) }>"""
    model, _ = one(text, inputs="float[2,3,8,8] x, bool c", outputs="float[2,3,8,8] y")
    feeds = {"x": np.ones((2, 3, 8, 8), np.float32), "c": np.array(True)}
    made = measure("emulated-tf32", model, feeds)
    assert (made.status, "If 'branch' computes in fp32" in made.note) == ("failed", True)
    beside, _ = one(f"[op] h = MatMul(x, w) {text.replace('x', 'h')}", inputs="float[2,3,8,8] x, bool c",
                    outputs="float[2,3,8,8] y", w=np.full((8, 8), 0.1, np.float32))  # fmt: skip
    made = measure("emulated-tf32", beside, feeds)
    assert (made.status, "If 'branch' computes in fp32" in made.note) == ("measured", True)


def test_tf32_changes_nothing_where_nothing_multiplies():
    model, feeds = one("[op] h = Relu(x) [end] y = GlobalAveragePool(h)")
    made = measure("emulated-tf32", model, feeds)
    assert made.status == "measured"
    assert "nothing multiplies" in made.note
    exact = measure("onnxruntime-fp32", model, feeds)
    assert torch.equal(made.outputs[0], exact.outputs[0])


def test_half_graphs_are_refused_by_tf32_too():
    model, _ = one("[op] y = Exp(x)", inputs="float16[2,3] x", outputs="float16[2,3] y")
    for target in ("emulated-tf32", "emulated-fp16"):
        made = measure(target, model, {"x": np.ones((2, 3), np.float16)})
        assert (made.status, "computes in fp32" in made.note) == ("failed", True)


def test_out_of_range_closed_form():
    """An additive mask: 0 * -3.4e38 is NaN where the weight is infinite; the note names the choice."""
    model, feeds = GRAPHS["mask"]
    (exact,) = measure("onnxruntime-fp32", model, feeds).outputs
    clamp, keep, inf = (measure("emulated-fp16", model, feeds, out_of_range=c) for c in ("clamp", "keep", "inf"))
    assert relative(clamp.outputs[0], exact) < 1e-3
    assert relative(keep.outputs[0], exact) < 1e-3
    assert inf.outputs[0].isnan().all()
    assert clamp.note.endswith("1 weight clamped to fp16's range")
    assert keep.note.endswith("kept in fp32 for weights beyond fp16's range: op")
    assert inf.note.endswith("1 weight beyond fp16's range became infinite")
    assert measure("emulated-fp16", *GRAPHS["Conv"]).note == "emulated, every node rounded"


def test_computed_values_overflow_whatever_the_choice():
    model, _ = one("[op] y = Mul(x, k)", k=np.float32(1e4))
    feeds = {"x": np.full((2, 3, 8, 8), 10, np.float32)}
    for choice in ("clamp", "keep", "inf"):
        assert measure("emulated-fp16", model, feeds, out_of_range=choice).outputs[0].isinf().all()


def test_kept_products_compute_in_tf32_where_the_engine_may():
    """TF32 rounds the operands of what is kept; off by default; nothing else changes."""
    rng = np.random.default_rng(0)
    w, v = (rng.standard_normal((8, 8)).astype(np.float32) for _ in range(2))
    model, _ = one(
        "[op] h = MatMul(x, w) [end] y = MatMul(h, v)", inputs="float[n,8] x", outputs="float[n,8] y", w=w, v=v
    )
    x = rng.standard_normal((6, 8)).astype(np.float32)
    kept = {"keep_fp32": ("op", "end")}
    (exact,), (tf32,) = (measure("emulated-fp16", model, {"x": x}, tf32=t, **kept).outputs for t in (False, True))
    np.testing.assert_allclose(exact, x @ w @ v, rtol=0, atol=1e-5)
    x32, w32, v32 = (round_array(array, "tf32") for array in (x, w, v))
    np.testing.assert_allclose(tf32, round_array(x32 @ w32, "tf32") @ v32, rtol=0, atol=1e-5)
    assert 1e-5 < relative(tf32, exact) < 1e-3
    (same,), (reference,) = (measure("emulated-tf32", model, {"x": x}).outputs, (tf32,))
    torch.testing.assert_close(same, reference, rtol=0, atol=1e-5)
    plain, switched = (measure("emulated-fp16", model, {"x": x}, tf32=t).outputs[0] for t in (False, True))
    assert torch.equal(plain, switched)  # nothing is kept: nothing multiplies in fp32


def test_fp16_is_an_interval():
    """fp16 accumulators err more; both are near."""
    torch.manual_seed(0)
    module, x = (
        frozen_copy(nn.Sequential(nn.Conv2d(32, 32, 3), nn.ReLU(), nn.Conv2d(32, 8, 3))),
        torch.randn(4, 32, 12, 12),
    )
    exact = module.double()(x.double()).float()
    subject = Subject(frozen_copy(module), (x,))
    low, high = (
        relative(execute(runtime(t), subject).outputs[0], exact) for t in ("emulated-fp16", "emulated-fp16acc")
    )
    assert 1.5 * low < high < 20 * low
    assert execute(runtime("emulated-fp16acc"), subject).note == "emulated, every node rounded"


@pytest.mark.parametrize("opset", [9, 11, 12])
def test_old_operator_sets_are_emulated_in_bf16(opset):
    """Below 13 no Cast knows bfloat16; the numbers are those of the same graph in operator set 13."""
    text, weights = "[op] h = Mul(x, k) [n] n = Neg(h) [end] y = Exp(n)", {"k": np.float32(1.1)}
    (old, feeds), (new, _) = (one(text, version, **weights) for version in (opset, 13))
    old_made, new_made = (measure("emulated-bf16", model, feeds) for model in (old, new))
    assert torch.equal(old_made.outputs[0], new_made.outputs[0])


def test_scalars_go_in_as_scalars():
    """Also in front: the number of samples is that of the first input that has one."""
    model, _ = one("[op] y = Mul(s, x)", inputs="float s, float[n,3] x", outputs="float[n,3] y")
    feeds = {"s": np.array(2, np.float32), "x": np.ones((5, 3), np.float32)}
    subject = GraphSubject(model, feeds)
    assert [tuple(tensor.shape) for tensor in subject.example] == [(), (5, 3)]
    made = execute(runtime("emulated-fp16"), subject)
    assert made.status == "measured"
    assert made.outputs[0].tolist() == [[2.0] * 3] * 5
