"""BatchNormalizations folded in fp32: against the graph as it was, and where folding is not allowed."""

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

from lightning_robust.deployment.graph.session import Session
from lightning_robust.deployment.numerics.convert import to_half
from lightning_robust.deployment.numerics.emulate import emulate, to_model
from lightning_robust.deployment.numerics.prepare import prepare
from lightning_robust.deployment.numerics.switches import SWITCHES, switchable

from .operators import BATCH_NORM, normal, one, statistics

NORM = f"[norm] y = {BATCH_NORM.format('h')}"
PICTURES = {"x": 300 * normal(2, 4, 6, 6)}
IN = "float[2,4,6,6] x"
CASES = {
    "Conv": one(
        f"[op] h = Conv<group = 2>(x, w, b) {NORM}",
        inputs=IN,
        feeds=PICTURES,
        w=normal(6, 2, 3, 3),
        b=normal(6),
        **statistics(6),
    ),
    "Conv without bias": one(
        f"[op] h = Conv(x, w) {NORM}", inputs=IN, feeds=PICTURES, w=normal(5, 4, 1, 1), **statistics(5)
    ),
    "ConvTranspose": one(
        f"[op] h = ConvTranspose<group = 2, strides = [2, 2]>(x, w, b) {NORM}",
        inputs=IN,
        feeds=PICTURES,
        w=normal(4, 3, 2, 2),
        b=normal(6),
        **statistics(6),
    ),
    "Gemm": one(
        f"[op] h = Gemm<transB = 1, alpha = 0.5, beta = 3.0>(x, w, b) {NORM}",
        inputs="float[7,4] x",
        outputs="float[7,6] y",
        feeds={"x": 300 * normal(7, 4)},
        w=normal(6, 4),
        b=normal(6),
        **statistics(6),
    ),
    "Gemm with a row": one(
        f"[op] h = Gemm(x, w, b) {NORM}",
        11,
        inputs="float[7,4] x",
        outputs="float[7,6] y",
        feeds={"x": 300 * normal(7, 4)},
        w=normal(4, 6),
        b=normal(1, 6),
        **statistics(6),
    ),
    "through Identity": one(
        "u = Identity(w) v = Identity(scale) [op] h = Conv(x, u) [norm] y = BatchNormalization(h, v, shift, mean, var)",
        13,
        inputs=IN,
        feeds=PICTURES,
        w=normal(5, 4, 3, 3),
        **statistics(5),
    ),
}
ALONE = {
    "alone": one(
        f"[norm] y = {BATCH_NORM.format('x')}", inputs=IN, feeds={"x": 1000 * normal(2, 4, 6, 6)}, **statistics(4)
    ),
    "read twice": one(
        f"[op] h = Conv(x, w) {NORM} [other] z = Relu(h)",
        inputs=IN,
        outputs="float[a,b,c,d] y, float[a,b,c,d] z",
        feeds=PICTURES,
        w=normal(5, 4, 3, 3),
        **statistics(5),
    ),
    "an output": one(
        f"[op] h = Conv(x, w) {NORM}",
        inputs=IN,
        outputs="float[a,b,c,d] y, float[a,b,c,d] h",
        feeds=PICTURES,
        w=normal(5, 4, 3, 3),
        **statistics(5),
    ),
    "behind a MatMul": one(
        f"[op] h = MatMul(x, w) {NORM}",
        inputs="float[7,4] x",
        outputs="float[7,6] y",
        feeds={"x": 300 * normal(7, 4)},
        w=normal(4, 6),
        **statistics(6),
    ),
}


def operators(model):
    return [node.op_type for node in model.graph.node]


def relative(values, reference):
    return float(np.linalg.norm(values - reference) / np.linalg.norm(reference))


@pytest.mark.parametrize("name", [*CASES, *ALONE])
def test_folding_changes_nothing_in_fp32(name):
    """1e-5: sums in another order, of terms that partly cancel."""
    model, feeds = {**CASES, **ALONE}[name]
    folded = to_model(prepare(model, "fp16").model)
    assert ("BatchNormalization" in operators(folded)) == (name in ALONE)
    for got, expected in zip(Session(folded).run(feeds), Session(model).run(feeds), strict=True):
        assert relative(got.numpy(), expected.numpy()) < 1e-5
    assert [value.name for value in folded.graph.output] == [value.name for value in model.graph.output]


@pytest.mark.parametrize("name", [*CASES, *ALONE])
def test_variances_beyond_fp16_lose_nothing(name):
    """Variances of 1e7: rounded as they are they would be infinite, and the output 0. Measured: at most 6e-4."""
    model, feeds = {**CASES, **ALONE}[name]
    exact = Session(model).run(feeds)[0].numpy()
    assert relative(Session(emulate(model, "fp16")).run(feeds)[0].numpy(), exact) < 1e-3
    converted = to_half(model)
    assert relative(Session(converted).run(feeds)[0].numpy(), exact) < 1e-3
    assert all(np.isfinite(ir.from_proto(tensor).numpy()).all() for tensor in converted.graph.initializer)


@pytest.mark.parametrize("variance", [1.0, 1e6, 9.8e7])
def test_matches_torch_in_half_precision_on_folded_weights(variance):
    """Torch folds in fp32 and then rounds: the same weights, and within a factor of 2 the same error."""
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)
    norm.running_var.copy_(variance * (1 + torch.rand(6)))
    norm.running_mean.copy_(variance**0.5 * torch.randn(6))
    fused = nn.utils.fuse_conv_bn_eval(conv.eval(), norm.eval())
    arrays = [part.detach().numpy() for part in (conv.weight, conv.bias, norm.weight, norm.bias, norm.running_mean)]
    names = ("w", "b", "scale", "shift", "mean")
    model, _ = one(
        f"[op] h = Conv(x, w, b) {NORM}",
        inputs=IN,
        **dict(zip(names, arrays, strict=True)),
        var=norm.running_var.numpy(),
    )
    x = variance**0.5 * torch.randn(2, 4, 6, 6)
    stored = {t.name: ir.from_proto(t).numpy() for t in to_half(model).graph.initializer}
    assert np.array_equal(stored["op/weight"], fused.weight.detach().half().numpy())
    exact = norm.double()(conv.double()(x.double())).detach()
    ours = Session(emulate(model, "fp16")).run({"x": x.numpy()})[0].double()
    theirs = fused.half()(x.half()).double()
    assert 0.5 < (ours - exact).norm() / (theirs - exact).norm() < 2


def test_a_convolution_and_what_is_folded_into_it_are_one_layer():
    """Naming either keeps both, as they were, bit for bit; a sweep has one switch for both, under both names."""
    model, feeds = CASES["Conv"]
    exact = Session(model).run(feeds)[0]
    for name in ("op", "norm"):
        assert torch.equal(Session(emulate(model, "fp16", [name])).run(feeds)[0], exact)
        kept = to_half(model, "fp16", [name])
        assert operators(kept) == ["Conv", "BatchNormalization"]
        assert torch.equal(Session(kept).run(feeds)[0], exact)
    graph, switches = switchable(model, "fp16")
    assert switches == {"op": 0, "norm": 0}
    on = Session(graph).run({**feeds, SWITCHES: np.array([True])})[0]
    assert torch.equal(on, Session(emulate(model, "fp16")).run(feeds)[0])


def test_a_chain_is_folded_into_the_first():
    model, feeds = one(
        f"[op] h = Conv(x, w) [one] g = {BATCH_NORM.format('h')} [two] y = {BATCH_NORM.format('g')} [end] z = Relu(y)",
        inputs=IN,
        outputs="float[a,b,c,d] z",
        feeds=PICTURES,
        w=normal(5, 4, 1, 1),
        **statistics(5, 4.0),
    )
    graph = prepare(model, "fp16")
    assert operators(to_model(graph.model)) == ["Conv", "Relu"]
    assert graph.layers == {"one": "op", "two": "op"}
    assert relative(Session(to_model(graph.model)).run(feeds)[0].numpy(), Session(model).run(feeds)[0].numpy()) < 1e-5


def test_statistics_that_are_computed_are_left_alone():
    model, _ = one(
        "[s] s = Exp(scale) [norm] y = BatchNormalization(x, s, shift, mean, var)", inputs=IN, **statistics(4)
    )
    assert operators(to_model(prepare(model, "fp16").model)) == ["Exp", "BatchNormalization"]
    training, _ = one(
        "[norm] y, m, v = BatchNormalization<training_mode = 1>(x, scale, shift, mean, var)", inputs=IN, **statistics(4)
    )
    assert {node.inputs[4].name for node in prepare(training, "fp16").graph} == {"var"}
