"""What is done to a graph before precisions are chosen: the numbers stay, and so do the names."""

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from lightning_robust.deployment.graph.session import Session
from lightning_robust.deployment.numerics.emulate import to_model
from lightning_robust.deployment.numerics.prepare import prepare

from .operators import GRAPHS, normal, one


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("opset", [None, 22])
def test_changes_nothing_in_fp32(name, opset):
    """Also where the operator set is raised for bf16: Resize-10 keeps its coordinates, Softmax-11 its axes."""
    model, feeds = GRAPHS[name]
    before = model.SerializeToString(deterministic=True)
    prepared = prepare(model, "bf16" if opset else "fp16", convert=bool(opset))
    assert prepared.version == (max(opset, model.opset_import[0].version) if opset else model.opset_import[0].version)
    got, expected = (Session(graph).run(feeds)[0].numpy() for graph in (to_model(prepared.model), model))
    np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-5 * np.abs(expected).max())
    assert model.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("name", GRAPHS)
def test_every_node_belongs_to_a_layer_of_the_original(name):
    model, _ = GRAPHS[name]
    names = {node.name for node in model.graph.node}
    for prepared in (prepare(model, "fp16"), prepare(model, "bf16", convert=True)):
        assert {prepared.layer(node) for node in prepared.graph} <= names
        assert len({node.name for node in prepared.graph}) == len(list(prepared.graph))


def test_tf32_rewrites_nothing():
    for model, _ in GRAPHS.values():
        prepared = prepare(model, "tf32")
        assert [node.op_type for node in prepared.graph] == [node.op_type for node in model.graph.node]


def test_what_the_version_converter_puts_in_belongs_to_the_node_it_serves():
    model, _ = one("[op] h = Softmax<axis = 1>(x) [end] y = Exp(h)", 11)
    prepared = prepare(model, "bf16", convert=True)
    assert {node.op_type: prepared.layer(node) for node in prepared.graph} == {
        "Shape": "op", "Flatten": "op", "Softmax": "op", "Reshape": "end", "Exp": "end",
    }  # fmt: skip
    assert all(map(prepare(model, "bf16", ["op", "end"], convert=True).is_kept, prepared.graph))


def test_large_weights_survive_raising_the_operator_set():
    """They are left out on the way."""
    w, b = normal(64, 3, 7, 7), normal(64)
    model, feeds = one("[op] h = Conv(x, w, b) [end] y = Relu(h)", 12, w=w, b=b)
    prepared = prepare(model, "bf16", convert=True)
    assert [value.name for value in prepared.graph.inputs] == ["x"]
    assert np.array_equal(prepared.graph.initializers["w"].const_value.numpy(), w)
    got, expected = (Session(graph).run(feeds)[0].numpy() for graph in (to_model(prepared.model), model))
    # ONNX Runtime may choose another kernel for another operator set
    assert np.abs(got - expected).max() <= 1e-6 * np.abs(expected).max()


def test_functions_are_inlined():
    text = """<ir_version: 10, opset_import: ["" : 20, "local" : 1]>
        g (float[2] x) => (float[2] y) { [twice] h = local.double(x) [end] y = Exp(h) }
        <domain: "local", opset_import: ["" : 20]> double (a) => (b) { b = Add(a, a) }"""
    assert [node.op_type for node in prepare(onnx.parser.parse_model(text), "fp16").graph] == ["Add", "Exp"]


def test_constants_and_fills_become_weights():
    model, feeds = GRAPHS["constants"]
    prepared = prepare(model, "fp16")
    assert [node.op_type for node in prepared.graph] == ["Expand", "Mul", "Mul"]
    weights = {value.name: value.const_value.numpy().tolist() for value in prepared.graph.initializers.values()}
    assert {name: pytest.approx(value) for name, value in weights.items()} == {
        "a": 1.1, "s": [8], "ConstantOfShape_1/value": 1.3,
    }  # fmt: skip
    assert feeds["x"].shape == (2, 3, 8, 8)


def test_nodes_without_a_name_get_one():
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 20]> g (float[2] x) => (float[2] y) { h = Exp(x) y = Neg(h) }'
    )
    assert [node.name for node in prepare(model, "fp16").graph] == ["Exp_0", "Neg_1"]


def test_tensors_behind_foreign_operators_have_types():
    """ONNX cannot type them; ONNX Runtime, which runs them, can: else everything behind them would stay unrounded."""
    model, _ = GRAPHS["com.microsoft"]
    prepared = prepare(model, "fp16")
    assert all(prepared.is_float(value) for node in prepared.graph for value in node.outputs)


def test_rejects_what_cannot_be_raised(monkeypatch):
    def refuse(*_):
        raise RuntimeError("planted")

    monkeypatch.setattr(onnx.version_converter, "convert_version", refuse)
    model, _ = one("[op] y = Exp(x)", 12)
    with pytest.raises(ValueError, match=r"needs opset 22, but got a model of opset 12 .*planted"):
        prepare(model, "bf16", convert=True)
    assert prepare(model, "bf16").version == 12  # the emulation needs no bfloat16 in the graph


def test_scalars_stay_scalars():
    model, _ = one("a = Constant<value_float = 1.1>() [op] h = Mul(x, a) [end] y = Mul(h, s)", s=np.float32(0.3))
    for convert in (False, True):
        proto = to_model(prepare(model, "bf16", convert=convert).model)
        assert {tensor.name: numpy_helper.to_array(tensor).shape for tensor in proto.graph.initializer} == {
            "a": (),
            "s": (),
        }
