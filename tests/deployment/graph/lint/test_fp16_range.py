"""Rules A3 and A4, each on a model that breaks it and on one that nearly does."""

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn
from torch.nn import functional

from lightning_robust.deployment.graph.lint.fp16_range import FP16_MAX, FP16_NORMAL
from lightning_robust.deployment.graph.session import Session
from lightning_robust.deployment.numerics.convert import to_half
from lightning_robust.deployment.numerics.emulate import emulate

from ...models import images
from .graphs import Apply, of_heads, of_module, of_nodes, rules, written


def test_closed_form():
    assert np.finfo(np.float16).max == FP16_MAX
    assert np.finfo(np.float16).smallest_normal == pytest.approx(FP16_NORMAL, rel=1e-2)


@pytest.mark.parametrize(("scale", "expected"), [(1e6, ["A3"]), (1e-6, ["A3"]), (1e4, []), (1e-2, [])])
def test_a3_weights(scale, expected):
    module = Apply(lambda self, x: self.last(x.mean((2, 3))), last=nn.Linear(4, 4))
    with torch.no_grad():
        module.last.weight.copy_(torch.linspace(0.5, 1, 16).reshape(4, 4) * scale)
    found = of_module(module, images())
    assert rules(found) == expected
    assert all(finding.module == "last" for finding in found)


def test_a3_names_what_rounding_loses():
    """0.25 and 1 of the smallest subnormal 2**-24 become 0 and 1: a loss of 0.25 / sqrt(1 + 1/16), 24 %."""
    module = Apply(lambda self, x: self.last(x.mean((2, 3))), last=nn.Linear(4, 2))
    with torch.no_grad():
        module.last.weight.copy_(torch.tensor([[0.25, 1.0] * 2] * 2) * 2**-24)
    (finding,) = of_module(module, images())
    assert "24 %" in finding.consequence


def test_a3_small_weights_among_large_ones_cost_nothing():
    """Half of the weights are subnormal, as after weight decay; the others carry the layer."""
    module = Apply(lambda self, x: self.last(x.mean((2, 3))), last=nn.Linear(4, 4))
    with torch.no_grad():
        module.last.weight.copy_(torch.tensor([0.1, 1e-5] * 8).reshape(4, 4))
    assert of_module(module, images()) == []


def constant_of(operator, value, inputs=("x", "c")):
    node = helper.make_node(operator, list(inputs), ["y"], "node")
    shape = [TensorProto.FLOAT, [1, 4]]
    kind = TensorProto.BOOL if operator in ("Less", "Greater") else TensorProto.FLOAT
    constants = {"c": np.full(4, value, np.float32)}
    return of_nodes([node], [("x", *shape)], [("y", kind, [1, 4])], constants)


@pytest.mark.parametrize("operator", ["Div", "Pow", "PRelu"])
def test_a3_weights_of_any_operator(operator):
    assert rules(constant_of(operator, 1e6)) == ["A3"]
    assert constant_of(operator, 1.0) == []


@pytest.mark.parametrize("operator", ["Max", "Min", "Less", "Greater"])
def test_a3_bounds_beyond_the_range_mean_the_same(operator):
    assert constant_of(operator, 1e9) == []


@pytest.mark.parametrize(
    ("variance", "scale", "rule", "words"),
    [(1e6, 1.0, ["A3"], "module.half()"), (1e-2, 1e5, ["A3"], "1e+06 when folded"), (6e4, 1.0, [], "")],
)
def test_a3_batch_norm(variance, scale, rule, words):
    """A variance of 1e6 is the factor 1e-3, which fits; one of 0.01 under a scale of 1e5 is 1e6, which does not."""
    statistics = {"s": scale, "b": 0.0, "m": 0.0, "v": variance}
    constants = {name: np.full(3, value, np.float32) for name, value in statistics.items()}
    node = helper.make_node("BatchNormalization", ["x", *statistics], ["y"], "norm", epsilon=0.0)
    found = of_nodes([node], [("x", TensorProto.FLOAT, [2, 3])], [("y", TensorProto.FLOAT, [2, 3])], constants)
    assert rules(found) == rule
    assert words in " ".join(map(str, found))


def test_batch_norm_of_module_half_returns_its_bias():
    """What the finding says of it."""
    norm = nn.BatchNorm1d(3).eval()
    norm.running_var.fill_(1e6)
    nn.init.constant_(norm.bias, 0.5)
    x = torch.full((1, 3), 1000.0)
    assert norm(x)[0, 0].item() == pytest.approx(1.5, rel=1e-3)
    assert norm.half()(x.half())[0, 0].item() == pytest.approx(0.5)


def test_a4_masks():
    lowest = torch.finfo(torch.float32).min
    expected = {-1e9: ["A4"], lowest: ["A4"], -1e4: [], -torch.inf: []}
    found = of_heads({v: lambda x, v=v: x.masked_fill(x < 0, v).flatten(1).softmax(1) for v in expected})
    assert {fill: rules(findings) for fill, findings in found.items()} == expected


def test_a4_clamping_far_out_is_no_mask():
    assert of_module(Apply(lambda self, x: x.clamp(-1e9, 1e9).flatten(1)), images()) == []


def attend(x, **settings):
    x = x.flatten(2).transpose(1, 2)[:, None, :16]
    return functional.scaled_dot_product_attention(x, x, x, **settings)


def test_a4_masks_that_close_no_row():
    """Torch writes its Boolean masks as the lowest fp32 number, and looks for NaN where a row may be closed."""
    closed = torch.ones(16, 16).tril()
    closed[3] = 0
    added = torch.full((16, 16), torch.finfo(torch.float32).min)
    causal, whole = added.triu(1), added * (1 - closed)
    heads = {
        "causal": lambda x: attend(x, is_causal=True),
        "Boolean": lambda x: attend(x, attn_mask=closed.bool()),
        "added, causal": lambda x: attend(x, attn_mask=causal),
        "added, of a buffer": lambda x: attend(x, attn_mask=causal[: x.shape[2]]),
    }
    assert of_heads(heads) == {name: [] for name in heads}
    nearly = {
        "added, with a closed row": lambda x: (x[:, :, 0, :] + whole[:4]).softmax(2),
        "a product": lambda x: (x[:, :, 0, :] + (x[:, :, 1, :] > 0) * -1e9).softmax(2),
    }
    assert {name: rules(found) for name, found in of_heads(nearly).items()} == {name: ["A4"] for name in nearly}


def test_a4_product_of_zero_with_infinity():
    """What the finding says of module.half()."""
    assert (torch.zeros(1).half() * torch.tensor(-1e9).half()).isnan().all()
    assert torch.full((1, 4), -1e9).half().softmax(1).isnan().all()
    assert torch.equal(torch.full((1, 4), -65504.0).half().softmax(1), torch.full((1, 4), 0.25).half())


def test_a3_and_a4_what_this_package_does():
    """BatchNorm folded before it is rounded, anything else beyond the range clamped: what the findings say."""
    statistics = {"s": 1.0, "b": 0.0, "m": 0.0, "v": 1e6, "c": -3.4e38}
    constants = {name: np.full(3, value, np.float32) for name, value in statistics.items()}
    nodes = [
        helper.make_node("BatchNormalization", ["x", "s", "b", "m", "v"], ["n"], "norm"),
        helper.make_node("Mul", ["n", "c"], ["y"], "mask"),
    ]
    shape = [TensorProto.FLOAT, [2, 3]]
    model = written(nodes, [("x", *shape)], [("n", *shape), ("y", *shape)], constants)
    assert rules(model) == ["A3", "A4"]
    feed = {"x": np.array([[0, 1000, -1000], [500, 1, 2]], np.float32)}
    exact = Session(model).run(feed)[0]
    for half in (to_half(model), emulate(model, "fp16")):
        normed, masked = Session(half).run(feed)
        assert (normed.float() - exact).norm() / exact.norm() < 1e-3
        assert masked[0, 0] == 0
        assert masked[0, 1].item() == pytest.approx(-65504, rel=1e-3)


ROW = ("x", TensorProto.FLOAT, [1, 4]), ("y", TensorProto.FLOAT, [1, 4])


def test_a_factor_beyond_the_range_beside_small_ones():
    """The small ones are lost, and the large one is clamped: two findings, none of them of infinity per cent."""
    factors = np.array([1e5, 1e-9, 1e-9, 1e-9], np.float32)
    nodes = [helper.make_node("Mul", ["x", "w"], ["y"], "m")]
    found = {finding.rule: finding.consequence for finding in of_nodes(nodes, ROW[:1], ROW[1:], {"w": factors})}
    assert sorted(found) == ["A3", "A4"]
    assert "change by 100 %" in found["A3"]


@pytest.mark.parametrize(
    "value", [{"value_float": -1e9}, {"value_floats": [-1e9]}, {"value": helper.make_tensor("", 1, [1], [-1e9])}]
)
def test_a_constant_is_read_from_whichever_attribute_holds_it(value):
    nodes = [helper.make_node("Constant", [], ["c"], "c", **value), helper.make_node("Add", ["x", "c"], ["y"], "a")]
    assert rules(of_nodes(nodes, ROW[:1], ROW[1:])) == ["A4"]
