"""Norms written out as parsers do: the same numbers in fp32, and the overflow between the parts in fp16."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from onnx.reference import ReferenceEvaluator
from torch import nn

from lightning_robust.deployment.graph.export import export, frozen_copy
from lightning_robust.deployment.graph.session import Session
from lightning_robust.deployment.numerics.convert import to_half
from lightning_robust.deployment.numerics.emulate import emulate, to_model
from lightning_robust.deployment.numerics.prepare import prepare
from lightning_robust.deployment.numerics.trace import trace_rounding

from .operators import normal, one

PARTS = {
    "ReduceL1": ["Abs", "ReduceSum"],
    "ReduceL2": ["Mul", "ReduceSum", "Sqrt"],
    "ReduceSumSquare": ["Mul", "ReduceSum"],
    "ReduceLogSum": ["ReduceSum", "Log"],
    "ReduceLogSumExp": ["Exp", "ReduceSum", "Log"],
}
X = {"x": np.abs(normal(4, 64)) + 0.1}
SHAPES = {"inputs": "float[4,64] x", "feeds": X}


def operators(model):
    return [node.op_type for node in model.graph.node]


@pytest.mark.parametrize("op", PARTS)
@pytest.mark.parametrize("opset", [11, 13, 18])
@pytest.mark.parametrize("keepdims", [0, 1])
def test_matches_reference(op, opset, keepdims):
    attributes = f"keepdims = {keepdims}" if opset == 18 else f"keepdims = {keepdims}, axes = [1]"
    inputs, weights = ("x, axes", {"axes": np.array([1])}) if opset == 18 else ("x", {})
    shape = "float[4,1] y" if keepdims else "float[4] y"
    model, feeds = one(f"[op] y = {op}<{attributes}>({inputs})", opset, outputs=shape, **SHAPES, **weights)
    written = to_model(prepare(model, "fp16").model)
    assert operators(written) == PARTS[op]
    assert written.graph.node[-1].name == "op"
    got, expected = Session(written).run(feeds)[0].numpy(), ReferenceEvaluator(model).run(None, feeds)[0]
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_all_axes():
    model, feeds = one("[op] y = ReduceL2(x)", 18, outputs="float[1,1] y", **SHAPES)
    assert float(Session(to_model(prepare(model, "fp16").model)).run(feeds)[0]) == pytest.approx(
        float(np.linalg.norm(X["x"])), rel=1e-5
    )


def test_normalisation_of_zeros_is_zero():
    model, _ = one("[op] y = LpNormalization<axis = 1>(x)", outputs="float[4,64] y", **SHAPES)
    x = np.concatenate([X["x"][:3], np.zeros((1, 64), np.float32)])
    got = Session(to_model(prepare(model, "fp16").model)).run({"x": x})[0]
    torch.testing.assert_close(got, F.normalize(torch.from_numpy(x), dim=1), rtol=1e-5, atol=1e-6)


def test_a_square_beyond_fp16_is_seen_and_can_be_kept():
    """64 values of 300: each square is 9e4, beyond 65504; the norm itself is 2400."""
    model, _ = one(
        "[op] h = ReduceL2(x, axes) [end] y = Div(x, h)", outputs="float[4,64] y", **SHAPES, axes=np.array([1])
    )
    feeds = {"x": np.full((4, 64), 300, np.float32)}
    (exact,) = Session(model).run(feeds)
    assert not Session(emulate(model, "fp16")).run(feeds)[0].any()  # 300 / inf
    torch.testing.assert_close(Session(emulate(model, "fp16", ["op"])).run(feeds)[0], exact, rtol=1e-3, atol=0)
    traces = trace_rounding(model, feeds, "fp16")
    assert list(traces) == ["op", "end"]
    assert traces["op"].overflow == 1  # of the squares
    # half the values: squares of 2.25e4 whose sum is beyond
    assert not Session(emulate(model, "fp16")).run({"x": feeds["x"] / 2})[0].any()
    torch.testing.assert_close(Session(emulate(model, "fp16")).run({"x": feeds["x"] / 16})[0], exact, rtol=1e-3, atol=0)


def test_matches_the_norm_that_is_written_by_hand():
    """``F.normalize`` and h * h, sum, root are the same network to the emulation; in torch half the second breaks."""

    class Normalize(nn.Module):
        def forward(self, x):
            return F.normalize(40 * x, dim=1)

    class ByHand(nn.Module):
        def forward(self, x):
            h = 40 * x
            return h / (h * h).sum(1, keepdim=True).sqrt().clamp_min(1e-12)

    x = torch.from_numpy(10 * normal(4, 64))
    fused, hand = (
        Session(emulate(export(frozen_copy(kind()), (x,)).model, "fp16")).run({"input": x.numpy()})[0]
        for kind in (Normalize, ByHand)
    )
    assert torch.equal(fused, hand)
    half = ByHand()(x.half()).float()
    assert torch.equal(half == 0, hand == 0)
    assert (half == 0).all()


def test_what_is_no_norm_of_floats_is_left_alone():
    integers, _ = one("[op] y = ReduceSumSquare(n)", 18, inputs="int64[4] n", outputs="int64[1] y")
    assert operators(to_model(prepare(integers, "fp16").model)) == ["ReduceSumSquare"]
    first, _ = one("[op] y = LpNormalization<p = 1>(x)", outputs="float[4,64] y", **SHAPES)
    assert operators(to_model(prepare(first, "fp16").model)) == ["LpNormalization"]
    identity, _ = one("[op] y = ReduceL2<noop_with_empty_axes = 1>(x)", outputs="float[4,64] y", **SHAPES)
    assert operators(to_model(prepare(identity, "fp16").model)) == ["ReduceL2"]


def test_the_converted_graph_leaves_norms_to_the_parser():
    """TensorRT-RTX casts to fp32 around them; what is written out for it would overflow where it need not."""
    model, _ = one("[op] y = ReduceL2(x)", 18, outputs="float[1,1] y", **SHAPES)
    assert operators(to_half(model)) == ["Cast", "ReduceL2", "Cast"]
