"""Graphs that state half types: what they say of their precision, and the numbers that an engine computes of them."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.transformers.float16 import convert_float_to_float16

from lightning_robust.deployment.graph.session import Session
from lightning_robust.deployment.numerics.convert import to_half
from lightning_robust.deployment.numerics.emulate import emulate
from lightning_robust.deployment.numerics.typed import emulate_typed, stated_halves, stated_precision

from ..graphs import binary, graph, make, run


@pytest.mark.parametrize("kind", ["cnn", "norm", "vit"])
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_converted_graph_gives_the_numbers_of_the_emulation(kind, precision):
    """Two ways to the same roundings: a plan on the fp32 graph, and the types that the converted graph states."""
    exported, x = make(kind)
    converted = to_half(exported.model, precision)
    ours, theirs = run(emulate_typed(converted), x), run(emulate(exported.model, precision), x)
    assert torch.equal(ours.nan_to_num(), theirs.nan_to_num())
    assert not torch.equal(ours, run(exported.model, x))


@pytest.mark.parametrize("keep_io_types", [True, False])
@pytest.mark.parametrize("kind", ["cnn", "norm", "vit"])
def test_a_file_of_another_converter_gives_the_numbers_of_the_emulation(kind, keep_io_types):
    """ONNX Runtime's own tool converts; ONNX Runtime itself computes the overflow of a norm away, and is no measure."""
    exported, x = make(kind)
    theirs = convert_float_to_float16(
        onnx.ModelProto.FromString(exported.model.SerializeToString()), keep_io_types=keep_io_types
    )
    ours = run(emulate_typed(theirs), x)
    assert torch.equal(ours.nan_to_num(), run(emulate(exported.model, "fp16"), x).nan_to_num())
    if kind == "norm":
        exact, hidden = run(exported.model, x), run(theirs, x if keep_io_types else x.half()).float()
        assert (hidden - exact).norm() < 1e-2 * exact.norm() < 0.1 * (ours - exact).norm()


def test_what_stays_fp32_in_the_file_is_not_rounded():
    exported, x = make("norm")
    names = [node.name for node in exported.model.graph.node if node.op_type in ("Pow", "ReduceMean", "Mul")]
    converted = to_half(exported.model, "fp16", names)
    ours, theirs = run(emulate_typed(converted), x), run(emulate(exported.model, "fp16", names), x)
    assert torch.equal(ours, theirs)
    assert ours.isfinite().all()
    assert not run(emulate_typed(to_half(exported.model, "fp16")), x).equal(ours)


def test_closed_form_of_half_inputs_weights_and_outputs():
    """1.0005 is 1.0009765625 in fp16; its square, 1.0019540786743164, is 1.001953125 there."""
    model = graph("g (float16[n] x) => (float16[n] y) { y = Mul(x, x) }")
    typed = emulate_typed(model)
    assert {value.type.tensor_type.elem_type for value in (*typed.graph.input, *typed.graph.output)} == {
        TensorProto.FLOAT
    }
    (found,) = Session(typed).run({"x": np.array([1.0005, 300.0], np.float32)})
    assert found.tolist() == [1.001953125, np.inf]
    assert Session(model).run({"x": np.array([300.0], np.float16)})[0].isinf()  # an output is rounded by anyone


def test_overflow_in_between_is_seen_that_onnx_runtime_hides():
    model = graph(
        "g (float[n] x) => (float[n] y) { h = Cast<to = 10>(x) s = Mul(h, h) r = Sqrt(s) y = Cast<to = 1>(r) }"
    )
    x = {"x": np.array([300.0], np.float32)}
    assert Session(model).run(x)[0].item() == 300.0
    assert Session(emulate_typed(model)).run(x)[0].item() == np.inf


def test_a_norm_in_half_is_written_out_and_one_in_fp32_is_not():
    """The root of 4 x 300 x 300 is 600, its square 360000 is beyond fp16."""
    half = graph("g (float16[1, 4] x) => (float16[1, 1] y) { y = ReduceL2(x, a) }", a=np.array([1]))
    wide = graph(
        "g (float16[1, 4] x) => (float16[1, 1] y) { w = Cast<to = 1>(x) r = ReduceL2(w, a) y = Cast<to = 10>(r) }",
        a=np.array([1]),
    )
    x = {"x": np.full((1, 4), 300, np.float32)}
    assert Session(emulate_typed(half)).run(x)[0].item() == np.inf
    assert Session(emulate_typed(wide)).run(x)[0].item() == 600.0


def test_constants_fills_and_branches_are_widened():
    """The bits 15360 and 16384 are 1 and 2 in fp16."""
    model = graph(
        """g (float16[2] x, bool flag) => (float16[2] y) {
            one = Constant<value = float16[1] {15360}>()
            shape = Shape(x)
            fill = ConstantOfShape<value = float16[1] {16384}>(shape)
            y = If(flag) <
                then_branch = yes () => (float16[2] a) { b = Mul(x, fill) a = Mul(b, x) },
                else_branch = no () => (float16[2] c) { c = Add(x, one) }
            >
        }"""
    )
    session = Session(emulate_typed(model))
    x = np.array([1.0005, 200.0], np.float32)
    once = np.float16(x).astype(np.float32)
    twice = np.float16(2 * once).astype(np.float32) * once
    with np.errstate(over="ignore"):
        assert session.run({"x": x, "flag": np.array(True)})[0].tolist() == np.float16(twice).tolist()
    assert session.run({"x": x, "flag": np.array(False)})[0].tolist() == np.float16(once + 1).tolist()


@pytest.mark.parametrize(
    ("text", "precision"),
    [
        ("g (float[2] x) => (float[2] y) { y = Relu(x) }", "fp32"),
        ("g (float16[2] x) => (float16[2] y) { y = Relu(x) }", "fp16"),
        ("g (float[2] x) => (float[2] y) { h = Cast<to = 16>(x) y = Cast<to = 1>(h) }", "bf16"),
        ("g (float[2] x, float s) => (float[2] y) { q = QuantizeLinear(x, s) y = DequantizeLinear(q, s) }", "int8"),
        (
            "g (float16[2] x, float16 s) => (float16[2] y) { q = QuantizeLinear(x, s) y = DequantizeLinear(q, s) }",
            "int8",
        ),
    ],
)
def test_precision_of_a_graph(text, precision):
    model = graph(text)
    assert stated_precision(model) == precision
    assert stated_halves(model) == {"fp16": ["fp16"], "bf16": ["bf16"]}.get(precision, ["fp16"] * ("float16" in text))


def test_the_model_is_left_alone():
    model = to_half(binary("Mul", 3.0), "fp16")
    before = model.SerializeToString()
    emulate_typed(model)
    assert model.SerializeToString() == before
    onnx.checker.check_model(emulate_typed(model), full_check=True)


def test_half_scales_of_quantisation():
    """fp16(0.1) = 0.0999755859375; 1.0 is 10 steps of it, and 0.999755859375 rounded to fp16 again."""
    model = helper.make_model(
        helper.make_graph(
            [
                helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], "q"),
                helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], "d"),
            ],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT16, [1])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT16, [1])],
            [
                numpy_helper.from_array(np.float16(0.1), "s"),
                numpy_helper.from_array(np.int8(0), "z"),
            ],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    (found,) = Session(emulate_typed(model)).run({"x": np.array([1.0], np.float32)})
    assert found.item() == np.float16(np.float32(np.float16(0.1)) * 10).item()
