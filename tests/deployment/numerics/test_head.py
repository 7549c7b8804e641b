"""What stands between the last layer and the outputs."""

import numpy as np
import pytest
import torch
from torch import nn

from lightning_robust.deployment.graph.export import export, frozen_copy
from lightning_robust.deployment.numerics.convert import to_half
from lightning_robust.deployment.numerics.emulate import emulate
from lightning_robust.deployment.numerics.head import head_nodes
from lightning_robust.deployment.numerics.sweep import relative_distance

from ..graphs import chain, graph, run


def test_two_outputs_have_heads_of_their_own():
    """A layer on the way to one output ends the head of that output alone; integers have none."""
    model = graph(
        "g (float[2, 2] x) => (float[2, 2] y, float[2, 2] z, int64[2] index) {"
        "[stem] a = MatMul(x, w) [bend] b = Tanh(a) [y_scale] y = Mul(b, two)"
        "[branch] c = MatMul(b, w) [shift] d = Add(c, two) [turn] z = Transpose(d)"
        "[best] index = ArgMax<axis = 1, keepdims = 0>(c) }",
        w=np.ones((2, 2), np.float32),
        two=np.float32(2.0),
    )
    assert head_nodes(model) == ("bend", "y_scale", "shift", "turn")


def test_without_a_layer_everything_is_head():
    assert head_nodes(chain(("Exp", None), ("Mul", 2.0))) == ("n0", "n1")


def test_a_layer_that_is_the_output_has_no_head():
    model = graph(
        "g (float[2, 2] x) => (float[2, 2] y) { [bend] a = Tanh(x) [layer] y = MatMul(a, w) }",
        w=np.ones((2, 2), np.float32),
    )
    assert head_nodes(model) == ()


def test_a_residual_stream_is_no_head():
    """The first sum reaches the output without a product, but leads to one as well."""
    model = graph(
        "g (float[2, 2] x) => (float[2, 2] y) {"
        "[one] a = MatMul(x, w) [sum_one] b = Add(x, a) [two] c = MatMul(b, w) [sum_two] d = Add(b, c)"
        "[norm] y = LayerNormalization(d, s) }",
        w=np.ones((2, 2), np.float32),
        s=np.ones(2, np.float32),
    )
    assert head_nodes(model) == ("sum_two", "norm")


def test_shapes_are_no_head():
    model = graph(
        "g (float[n, 4] x) => (float[n, m] y) {"
        "[layer] a = MatMul(x, w) [size] s = Shape<end = 1>(a) [join] t = Concat<axis = 0>(s, rest)"
        "[bend] b = Tanh(a) [form] y = Reshape(b, t) }",
        w=np.ones((4, 4), np.float32),
        rest=np.array([-1], np.int64),
    )
    assert head_nodes(model) == ("bend", "form")


class SoftArgmax(nn.Module):
    """Where each of eight rows has its maximum, in pixels of a picture of width 960, in three spellings."""

    def __init__(self, spelling):
        super().__init__()
        self.spelling = spelling
        self.layer = nn.Conv2d(3, 8, 3, padding=1)
        self.register_buffer("columns", torch.arange(16) * 60.0)
        self.mean = nn.Conv2d(16, 1, 1, bias=False)
        self.mean.weight.data.copy_(self.columns.reshape(1, 16, 1, 1))

    def forward(self, x):
        weights = self.layer(x).mean(2).mul(20).softmax(-1)
        if self.spelling == "sum":
            return (weights * self.columns).sum(-1)
        if self.spelling == "product":
            return weights @ self.columns
        return self.mean(weights.permute(0, 2, 1)[..., None]).flatten(1)


@pytest.mark.parametrize("spelling", ["sum", "product", "convolution"])
def test_a_mean_under_softmax_weights_belongs_to_the_head(spelling):
    """However it is written; kept in fp32 it costs at least 2.5 times less than in fp16, and a runtime takes it."""
    torch.manual_seed(0)
    x = torch.rand(4, 3, 16, 16)
    model = export(frozen_copy(SoftArgmax(spelling)), (x,)).model
    head = head_nodes(model)
    operators = [node.op_type for node in model.graph.node if node.name in head]
    assert "Softmax" in operators
    assert model.graph.node[-1].name in head
    assert model.graph.node[0].name not in head
    exact = run(model, x)
    half, mixed = (relative_distance([exact], [run(emulate(model, "fp16", keep), x)]) for keep in ((), head))
    assert 0 < 2.5 * mixed < half
    assert relative_distance([exact], [run(to_half(model, "fp16", head), x)]) < half
