import numpy as np
import pytest
from onnx import checker, numpy_helper

from lightning_robust.deployment.engines.openvino_int8 import with_unsigned_activations
from lightning_robust.deployment.graph.session import Session

from ..graphs import graph
from ..numerics.int8 import draw, quantised

CONV = "g (float[n,4,7,7] x, float[n,4,7,7] z) => (float[n,5,a,b] y) { c = Concat<axis = 1>(x, z) y = Conv(c, w) }"
FEEDS = {"x": draw(2, 4, 7, 7), "z": draw(2, 7, 4, 7).transpose(0, 2, 1, 3).copy()}


def outputs(model, feeds):
    return Session(model, optimise=False).run(feeds)[0].numpy()


def test_the_unsigned_graph_computes_the_same_bits():
    model = quantised(graph(CONV, w=draw(5, 8, 3, 3)), FEEDS).model
    given, joined = with_unsigned_activations(model)
    checker.check_model(given)
    np.testing.assert_array_equal(outputs(given, FEEDS), outputs(model, FEEDS))
    assert joined == 1
    types = {tensor.name: tensor.data_type for tensor in given.graph.initializer}
    zeros = {types[node.input[2]] for node in given.graph.node if node.op_type == "QuantizeLinear"}
    assert zeros == {given.graph.initializer[0].UINT8}


@pytest.mark.parametrize("zero", [-128, -5, 0, 127])
def test_every_zero_point_moves_with_the_grid(zero):
    model = graph(
        "g (float[n,3] x) => (float[n,2,1] y)"
        "{ q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) r = Unsqueeze(d, two) y = Conv(r, w) }",
        s=np.array(0.02, np.float32),
        z=np.array(zero, np.int8),
        two=np.array([2]),
        w=draw(2, 3, 1),
    )
    feeds = {"x": 3 * draw(40, 3)}
    model.graph.node[-1].input[0] = "r"
    given, joined = with_unsigned_activations(model)
    assert joined == 0  # the convolution reads what is unsqueezed, so that the pair stays as it is
    assert given.graph.node == model.graph.node
    direct = graph(
        "g (float[n,3,4] x) => (float[n,2,4] y)"
        "{ q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) y = Conv(d, w) }",
        s=np.array(0.02, np.float32),
        z=np.array(zero, np.int8),
        w=draw(2, 3, 1),
    )
    given, _ = with_unsigned_activations(direct)
    feeds = {"x": 3 * draw(40, 3, 4)}
    np.testing.assert_array_equal(outputs(given, feeds), outputs(direct, feeds))
    (point,) = (
        numpy_helper.to_array(each) for each in given.graph.initializer if each.name.endswith("unsigned_zero_point")
    )
    assert (point.dtype, int(point)) == (np.uint8, zero + 128)


def test_what_no_convolution_reads_stays_as_it_is():
    model = quantised(
        graph("g (float[n,6] x) => (float[n,3] y) { [op] y = MatMul(x, w) }", w=draw(6, 3)), {"x": draw(8, 6)}
    )
    given, joined = with_unsigned_activations(model.model)
    assert (list(given.graph.node), joined) == (list(model.model.graph.node), 0)
