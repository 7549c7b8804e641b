"""Scales of Q/DQ in fp16: nothing between a product and its DequantizeLinear, and the same numbers."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from lightning_robust.deployment.graph.session import Session
from lightning_robust.deployment.numerics.convert import to_half
from lightning_robust.deployment.numerics.half_scales import with_half_scales

from ..graphs import graph
from .int8 import draw, quantised


def two_products(factor=1.0, opset=20):
    model = graph(
        "g (float[n,6] x) => (float[n,3] y) { [one] h = MatMul(x, a) [act] r = Relu(h) [two] y = MatMul(r, b) }",
        opset=opset,
        a=draw(6, 5),
        b=(factor * draw(5, 3)).astype(np.float32),
    )
    return to_half(quantised(model, {"x": draw(8, 6)}).model), {"x": draw(8, 6)}


def producer(model, node, index):
    name = {n.name: n for n in model.graph.node}[node].input[index]
    return next(n.op_type for n in model.graph.node if name in n.output)


def test_products_read_what_is_dequantised():
    model, _ = two_products()
    assert {producer(model, node, index) for node in ("one", "two") for index in (0, 1)} == {"Cast"}
    made = with_half_scales(model)
    onnx.checker.check_model(made, full_check=True)
    assert {producer(made, node, index) for node in ("one", "two") for index in (0, 1)} == {"DequantizeLinear"}
    assert [node.op_type for node in made.graph.node].count("Cast") == 1  # of the output
    assert model.SerializeToString() == two_products()[0].SerializeToString()


def test_scales_are_the_nearest_of_fp16():
    model, _ = two_products()
    old = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    new = {t.name: numpy_helper.to_array(t) for t in with_half_scales(model).graph.initializer}
    halves = {name: values for name, values in new.items() if name.endswith("scale_fp16")}
    assert len(halves) == 4
    for name, values in halves.items():
        exact = old[name.removesuffix("_fp16")]
        np.testing.assert_array_equal(values, exact.astype(np.float16))
        assert np.abs(values / exact - 1).max() <= 2**-11


def test_the_numbers_are_those_of_int8():
    """A scale that moves by 2^-11 moves a value by a step of int8 at most, and few do."""
    model, feeds = two_products()
    before, after = (Session(one).run(feeds)[0].numpy() for one in (model, with_half_scales(model)))
    assert np.abs(after - before).max() < 0.02 * np.abs(before).max()
    assert np.abs(after - before).mean() < 3e-3 * np.abs(before).max()


@pytest.mark.parametrize("factor", [1e-6, 1e7])
def test_a_scale_that_fp16_does_not_hold_stays(factor):
    model, _ = two_products(factor)
    made = with_half_scales(model)
    assert producer(made, "two", 1) == "Cast"
    assert {producer(made, "two", 0), producer(made, "one", 0), producer(made, "one", 1)} == {"DequantizeLinear"}
    kinds = {t.name: t.data_type for t in made.graph.initializer}
    assert kinds["b__int8_scale"] == TensorProto.FLOAT


def test_below_opset_19_nothing_changes():
    model, _ = two_products(opset=17)
    assert with_half_scales(model) is model
