"""Weights that a graph computes from weights, as int8 takes them."""

import numpy as np
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from lightning_robust.deployment.graph.export import export, frozen_copy
from lightning_robust.deployment.graph.session import Session

from ..graphs import graph
from .int8 import channel_scales, draw, quantised

HALF = draw(6, 3).astype(np.float16)


def scales(model):
    return next(numpy_helper.to_array(t) for t in model.graph.initializer if t.name.endswith("folded__int8_scale"))


@pytest.mark.parametrize(
    ("text", "weights", "exact"),
    [
        ("t = Transpose(w) [op] y = MatMul(x, t)", {"w": draw(3, 6)}, draw(3, 6).T),
        ("t = Cast<to = 1>(w) [op] y = MatMul(x, t)", {"w": HALF}, HALF.astype(np.float32)),
        (
            "s = Constant<value_ints = [6, 3]>() r = Reshape(w, s) t = Mul(r, f) [op] y = MatMul(x, t)",
            {"w": draw(18), "f": draw(3)},
            draw(18).reshape(6, 3) * draw(3),
        ),
    ],
)
def test_they_have_a_scale_for_each_channel(text, weights, exact):
    model = graph(f"g (float[n,6] x) => (float[n,3] y) {{ {text} }}", **weights)
    feeds = {"x": draw(8, 6)}
    made = quantised(model, feeds)
    assert made.nodes == ("op",)
    np.testing.assert_allclose(scales(made.model), channel_scales(exact, 1)[0], rtol=1e-6)
    kinds = [node.op_type for node in made.model.graph.node]
    assert sorted(kinds) == ["DequantizeLinear", "DequantizeLinear", "MatMul", "QuantizeLinear"]
    y = Session(made.model, optimise=False).run(feeds)[0].numpy()
    np.testing.assert_allclose(y, feeds["x"] @ exact, atol=0.02 * np.abs(y).max())


def test_what_an_input_or_chance_reaches_is_data():
    model = graph(
        """g (float[n,6] x, float[6,3] v) => (float[n,3] y, float[n,3] z) {
            n = RandomNormalLike<seed = 0.5>(w) r = Add(w, n) [one] y = MatMul(x, r)
            m = Mul(w, v) [two] z = MatMul(x, m)
        }""",
        w=draw(6, 3),
    )
    made = quantised(model, {"x": draw(8, 6), "v": draw(6, 3)})
    assert made.nodes == ("one", "two")
    assert not [t.name for t in made.model.graph.initializer if "folded" in t.name]


def test_a_weight_that_others_read_stays_for_them():
    model = graph(
        "g (float[n,6] x) => (float[n,3] y, float[6,3] t) { t = Transpose(w) [op] y = MatMul(x, t) }", w=draw(3, 6)
    )
    feeds = {"x": draw(8, 6)}
    _, t = Session(quantised(model, feeds).model, optimise=False).run(feeds)
    np.testing.assert_array_equal(t.numpy(), draw(3, 6).T)


def test_weight_normalisation_of_a_module():
    torch.manual_seed(0)
    layer = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 70, 3))
    x = torch.randn(4, 3, 8, 8)
    exported = export(frozen_copy(layer), (x,))
    made = quantised(exported.model, {"input": x.numpy()})
    found = [numpy_helper.to_array(t) for t in made.model.graph.initializer if t.name.endswith("__int8_scale")]
    exact = channel_scales(layer.weight.detach().numpy(), 0).ravel()
    assert any(scale.size == 70 and np.allclose(scale, exact, rtol=1e-4) for scale in found)
