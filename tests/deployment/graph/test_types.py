"""Types of tensors: inferred, declared, and unknown."""

import numpy as np
import onnx.parser
import pytest
from onnx import TensorProto, numpy_helper

from lightning_robust.deployment.graph.export import export, frozen_copy
from lightning_robust.deployment.graph.types import declared_types, element_types, static_size, without_large_weights

from ..models import SmallCNN, images

HEAD = 'ir_version: 10, opset_import: ["" : 20, "plugins" : 1]'


def graph(text, **weights):
    model = onnx.parser.parse_model(f"<{HEAD}> {text}")
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in weights.items())
    return model


def test_closed_form():
    model = graph(
        "g (float[2,3] x) => (float16[2,3] y) { s = Shape(x) m = Greater(x, w) h = Cast<to = 10>(x) y = Abs(h) }",
        w=np.zeros(3, np.float32),
    )
    expected = {"x": "FLOAT", "w": "FLOAT", "s": "INT64", "m": "BOOL", "h": "FLOAT16", "y": "FLOAT16"}
    assert element_types(model) == {name: TensorProto.DataType.Value(kind) for name, kind in expected.items()}
    assert declared_types(model.graph).keys() == {"x", "w", "y"}


def test_every_tensor_of_an_export_is_typed():
    model = export(frozen_copy(SmallCNN()), (images(2),)).model
    before = model.SerializeToString()
    types = element_types(model)
    assert all(types[name] for node in model.graph.node for name in node.output)
    assert model.SerializeToString() == before


def test_outputs_of_unknown_operators_are_not_typed_unless_the_graph_says_so():
    text = "g (float[2] x) => (float[2] y) {} { b = plugins.Warp(x) y = Neg(b) }"
    model = graph(text.replace("{} ", ""))
    assert not element_types(model).get("b")
    assert element_types(graph(text.replace("{}", "<float[2] b>")))["b"] == TensorProto.FLOAT


def test_weights_are_of_the_type_they_are_stored_in():
    """Whatever an annotation says."""
    model = graph("g (float[2] x) => (float[2] y) <float16[2] w> { y = Identity(x) }", w=np.zeros(2, np.float32))
    assert declared_types(model.graph)["w"] == TensorProto.FLOAT


def test_an_invalid_node_leaves_the_declared_types():
    model = graph("g (float[2] x) => (float[2] y) { y = Identity(x) }")
    model.graph.node[0].op_type = "Concat"  # without its axis
    with pytest.raises(onnx.shape_inference.InferenceError):
        onnx.shape_inference.infer_shapes(model, strict_mode=True)
    assert element_types(model) == declared_types(model.graph)


def test_large_weights_are_typed_and_not_copied():
    """The inference sees a matrix of 4 MiB as an input of its shape; a shape of few numbers as it is."""
    model = graph(
        "g (float[N,1024] x) => (float[N,2,512] y) { a = MatMul(x, w) y = Reshape(a, s) }",
        w=np.zeros((1024, 1024), np.float32),
        s=np.array([-1, 2, 512]),
    )
    light = without_large_weights(model)
    assert len(light.SerializeToString()) < 1000
    inferred = onnx.shape_inference.infer_shapes(light, strict_mode=True)
    assert [dim.dim_value for dim in inferred.graph.output[0].type.tensor_type.shape.dim[1:]] == [2, 512]
    assert element_types(model) == {**dict.fromkeys("xway", TensorProto.FLOAT), "s": TensorProto.INT64}


def test_sizes_closed_form():
    dims = onnx.parser.parse_graph("g (float[4, n, 5] x) => (float[4] y) {}").input[0].type.tensor_type.shape.dim
    assert [static_size(dim) for dim in dims] == [4, None, 5]
    dims[0].dim_value = -1
    dims[2].Clear()
    assert [static_size(dim) for dim in dims] == [None, None, None]


def test_operators_of_onnxruntime_are_typed_by_it():
    text = """<ir_version: 10, opset_import: ["" : 15, "com.microsoft" : 1]>
        g (float[2,3] x, int64[2] n) => (float[2,3] y) {
            h = com.microsoft.Gelu(x) y = Exp(h) q, s, z = com.microsoft.Unknown(n) i = Add(n, n) }"""
    model = onnx.parser.parse_model(text)
    assert "h" not in element_types(model) or not element_types(model)["h"]  # it does not load what it does not know
    del model.graph.node[2]
    types = element_types(model)
    assert [types[name] for name in ("h", "y", "i")] == [TensorProto.FLOAT, TensorProto.FLOAT, TensorProto.INT64]


def test_types_that_were_true_before_a_conversion_are_not_believed():
    """A converter made the weight and the cast half, and left the types of the tensors between as they were."""
    text = "g (float[3] x) => (float16[3] y) { h = Cast<to = 10>(x) s = Add(h, w) y = Abs(s) }"
    model = graph(text, w=np.zeros(3, np.float16))
    stale = [onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, [3]) for name in ("h", "s", "w")]
    model.graph.value_info.extend(stale)
    expected = {"x": "FLOAT", "w": "FLOAT16", "h": "FLOAT16", "s": "FLOAT16", "y": "FLOAT16"}
    assert element_types(model) == {name: TensorProto.DataType.Value(kind) for name, kind in expected.items()}
    assert len(model.graph.value_info) == 3
