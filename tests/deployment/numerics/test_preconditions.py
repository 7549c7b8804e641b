"""What cannot be emulated or converted is refused by both, by name."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lightning_robust.deployment.numerics.convert import to_half
from lightning_robust.deployment.numerics.emulate import emulate
from lightning_robust.deployment.numerics.preconditions import check_graph, check_names
from lightning_robust.deployment.numerics.switches import switchable

from ..graphs import graph

CHANGES = pytest.mark.parametrize("change", [emulate, to_half, switchable])


@CHANGES
def test_rejects_external_weights(change):
    model = graph("g (float[2] x) => (float[2] y) { y = Mul(x, w) }", w=np.float32([1, 2]))
    onnx.external_data_helper.set_external_data(model.graph.initializer[0], "w.bin")
    with pytest.raises(ValueError, match="inside the model, but 'w' lies in a file"):
        change(model, "fp16")


@CHANGES
def test_rejects_sparse_weights(change):
    model = graph("g (float[2] x) => (float[2] y) { y = Mul(x, x) }")
    values = numpy_helper.from_array(np.ones(1, np.float32), "w")
    indices = numpy_helper.from_array(np.array([0]), "i")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [2]))
    with pytest.raises(ValueError, match="dense weights, but 'w' is sparse"):
        change(model, "fp16")


def test_rejects_unknown_names():
    model = graph("g (float[2] x) => (float[2] y) { [relu] y = Relu(x) }")
    with pytest.raises(ValueError, match=r"nodes of the graph, but got 'relo'\. Did you mean 'relu'"):
        check_names(model.graph, ["relu", "relo"])


def test_takes_the_rest():
    model = graph("g (float[2] x, int64[2] n) => (float[2] y) { [relu] y = Relu(x) }")
    check_graph(model.graph)
    check_names(model.graph, ["relu"])
    assert model.graph.input[1].type.tensor_type.elem_type == TensorProto.INT64
