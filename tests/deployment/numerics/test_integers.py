"""Products in integers: bit for bit against numpy's int32, and what is left to floats."""

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from lightning_robust.deployment.graph.session import Session
from lightning_robust.deployment.numerics.integers import count_products, in_integers

from ..graphs import graph, make
from .int8 import HAS_VNNI, conv2d, draw, quantised, to_int8


def executed(model, feeds):
    """Outputs in integers, and the products by precision as ONNX Runtime says."""
    session = Session(in_integers(model), record=True)
    return [tensor.numpy() for tensor in session.run(feeds)], count_products(session.executed)


def parameters(model):
    """Scale of x, and integers and scales of w, in a graph with one product."""
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return found["x__int8_scale"], found["w__int8_quantized"], found["w__int8_scale"]


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("stride", [1, 2])
def test_convolution_is_exact_until_the_scale(groups, stride):
    model = graph(
        f"""g (float[n,4,7,7] x) => (float[n,8,a,b] y) {{
            [op] y = Conv<group = {groups}, pads = [1, 1, 1, 1], strides = [{stride}, {stride}]>(x, w, c)
        }}""",
        w=draw(8, 4 // groups, 3, 3),
        c=draw(8),
    )
    feeds = {"x": draw(3, 4, 7, 7)}
    made = quantised(model, feeds).model
    (y,), layers = executed(made, feeds)
    scale, w, scales = parameters(made)
    total = conv2d(to_int8(feeds["x"], scale), w, stride=stride, groups=groups).astype(np.float32)
    exact = total * (scale * scales).reshape(-1, 1, 1) + draw(8).reshape(-1, 1, 1)
    np.testing.assert_array_equal(y, exact)
    assert layers == {"int8": 1}


@pytest.mark.parametrize(
    "text",
    [
        """<ir_version: 10, opset_import: ["" : 20]>
        g (float[n,2] x) => (float[n,1] y) <float s = {0.1}, int8 z = {0}, int8[2,1] w = {3, -4}> {
            q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)
            v = DequantizeLinear(w, s)  y = MatMul(d, v) }""",
        """<ir_version: 10, opset_import: ["" : 21]>
        g (float[n,2] x) => (float[n,1] y) <float s = {0.1}, int8 z = {0}, int8[2,1] w = {3, -4}> {
            q = QuantizeLinear<output_dtype = 3>(x, s)  d = DequantizeLinear(q, s)
            v = DequantizeLinear(w, s, z)  y = MatMul(d, v) }""",
        """<ir_version: 10, opset_import: ["" : 20]>
        g (float[n,2] x) => (float[n,1] y) <float s = {0.1}, uint8[2,1] w = {3, 4}> {
            q = QuantizeLinear(x, s)  d = DequantizeLinear(q, s)  v = DequantizeLinear(w, s)  y = MatMul(d, v) }""",
    ],
    ids=["signed weights", "signed activations", "unsigned"],
)
def test_a_zero_point_that_is_left_out_is_zero_in_its_own_type(text):
    model = onnx.parser.parse_model(text)
    feeds = {"x": np.array([[1, 2], [3, -1]], np.float32)}
    (y,), layers = executed(model, feeds)
    assert layers == {"int8": 1}
    np.testing.assert_allclose(y, Session(model).run(feeds)[0].numpy(), rtol=1e-6)


@pytest.mark.parametrize("flips", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_gemm_is_exact_until_the_scale(flips):
    w, x = draw(6, 3), draw(8, 6)
    model = graph(
        f"""g (float[a,b] x) => (float[n,3] y) {{
            [op] y = Gemm<alpha = 0.5, beta = 3.0, transA = {flips[0]}, transB = {flips[1]}>(x, w, c)
        }}""",
        w=w.T.copy() if flips[1] else w,
        c=draw(3),
    )
    feeds = {"x": x.T.copy() if flips[0] else x}
    made = quantised(model, feeds).model
    (y,), layers = executed(made, feeds)
    scale, integers, scales = parameters(made)
    integers = integers.T if flips[1] else integers
    total = to_int8(x, scale).astype(np.int32) @ integers.astype(np.int32)
    exact = total.astype(np.float32) * (np.float32(0.5) * scale * scales) + np.float32(3) * draw(3)
    np.testing.assert_allclose(y, exact, rtol=3e-7, atol=1e-6)  # ONNX Runtime fuses the sum: the last place of fp32
    assert layers == {"int8": 1}


@pytest.mark.parametrize(
    "text", ["y = MatMul(x, w)", "y = MatMul(w, x)", "[t] t = Transpose<perm = [0, 2, 1]>(x) [op] y = MatMul(t, x)"]
)
def test_products_of_any_two_match_the_emulation(text):
    model = graph(f"g (float[n,6,6] x) => (float[n,6,6] y) {{ {text} }}", **({"w": draw(6, 6)} if "w" in text else {}))
    feeds = {"x": draw(5, 6, 6)}
    made = quantised(model, feeds).model
    (y,), layers = executed(made, feeds)
    emulated = Session(made, optimise=False).run(feeds)[0].numpy()
    np.testing.assert_allclose(y, emulated, rtol=1e-5, atol=1e-5 * np.abs(emulated).max())
    assert layers == {"int8": 1}


@pytest.mark.parametrize("rank", [1, 3])
def test_convolutions_of_other_ranks(rank):
    space = ",".join("5" * rank)
    model = graph(
        f"g (float[n,4,{space}] x) => (float[n,6,{','.join('abc'[:rank])}] y) {{ [op] y = Conv(x, w, c) }}",
        w=draw(6, 4, *[3] * rank),
        c=draw(6),
    )
    feeds = {"x": draw(3, 4, *[5] * rank)}
    made = quantised(model, feeds).model
    (y,), layers = executed(made, feeds)
    emulated = Session(made, optimise=False).run(feeds)[0].numpy()
    np.testing.assert_allclose(y, emulated, rtol=1e-5, atol=1e-5)
    assert layers == {"int8": 1}


@pytest.mark.parametrize("kind", ["cnn", "norm", "vit"])
def test_networks_match_the_emulation_a_thousand_times_closer_than_int8_is_to_fp32(kind):
    exported, x = make(kind)
    feeds = {"input": x.numpy()}
    made = quantised(exported.model, feeds)
    (y,), layers = executed(made.model, feeds)
    emulated, exact = Session(made.model, optimise=False).run(feeds)[0], Session(exported.model).run(feeds)[0]
    assert layers == {"int8": made.of}
    assert np.linalg.norm(y - emulated.numpy()) < 1e-3 * float((emulated - exact).norm())


def test_saturating_kernels_are_not_used():
    """255 x 127 twice exceeds int16, in which CPUs without VNNI add pairs of uint8 x int8."""
    model = graph("g (float[n,64] x) => (float[n,4] y) { [op] y = MatMul(x, w) }", w=np.ones((64, 4), np.float32))
    feeds = {"x": np.ones((2, 64), np.float32)}
    made = quantised(model, feeds).model
    (y,), _ = executed(made, feeds)
    np.testing.assert_allclose(y, 64.0, rtol=1e-6)
    kinds = {t.name: t.data_type for t in in_integers(made).graph.initializer}
    assert onnx.TensorProto.INT8 not in kinds.values()


ASYMMETRIC = """<ir_version: 10, opset_import: ["" : 20]>
g (float[n,2] x) => (float[n,2] y)
<float s = {0.5}, uint8 z = {7}, float[2] t = {0.25, 0.5}, int8[2] k = {3, 3}, int8[2,2] w = {1, -2, 3, 4},
float[2] c = {1, 2}> {
    q = QuantizeLinear(x, s, z)
    d = DequantizeLinear(q, s, z)
    v = DequantizeLinear<axis = AXIS>(w, t, k)
    h = MatMul(d, v)
    y = Add(h, c)
}"""


def test_zero_points_closed_form():
    """(x - 7) / 2 times w - 3: of x = 1, -2 that is (2 - 0) and (-4), quantised 9 and 3."""
    model = onnx.parser.parse_model(ASYMMETRIC.replace("AXIS", "1"))
    x = np.array([[1.0, -2.0]], np.float32)
    (y,), layers = executed(model, {"x": x})
    w = (np.array([[1, -2], [3, 4]]) - 3) * [0.25, 0.5]
    np.testing.assert_array_equal(y, x @ w + [1, 2])
    assert layers == {"int8": 1}


@pytest.mark.parametrize(("old", "new"), [("AXIS", "0"), ("{3, 3}", "{3, 4}")])
def test_what_no_sum_allows_stays_float(old, new):
    """A scale for each row of w, which the sum runs over; zero points that differ. The numbers are right."""
    model = onnx.parser.parse_model(ASYMMETRIC.replace(old, new).replace("AXIS", "1"))
    x = np.array([[1.0, -2.0]], np.float32)
    (y,), layers = executed(model, {"x": x})
    assert layers == {"fp32": 1}
    np.testing.assert_allclose(y, Session(model, optimise=False).run({"x": x})[0].numpy(), rtol=1e-6)


def test_transposed_convolutions_stay_float_and_are_counted_so():
    model = graph(
        "g (float[n,4,5,5] x) => (float[n,6,a,b] y) { [up] h = ConvTranspose(x, w) [op] y = Conv(h, v) }",
        w=draw(4, 6, 3, 3),
        v=draw(6, 6, 1, 1),
    )
    feeds = {"x": draw(2, 4, 5, 5)}
    made = quantised(model, feeds)
    assert made.nodes == ("up", "op")
    assert executed(made.model, feeds)[1] == {"int8": 1, "fp32": 1}


def test_fp32_graphs_are_as_they_were():
    exported, x = make("cnn")
    (y,), layers = executed(exported.model, {"input": x.numpy()})
    assert "int8" not in layers
    np.testing.assert_array_equal(y, Session(exported.model).run({"input": x.numpy()})[0].numpy())


@pytest.mark.parametrize("kind", ["QDQ", "QOperator"])
def test_what_the_tool_of_onnx_runtime_makes_by_its_defaults(kind, tmp_path):
    """Asymmetric uint8, int32 biases, Q/DQ around every node, or operators on integers: as good in integers as not."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    exported, x = make("cnn")
    feeds = {"input": x.numpy()}

    class Once(CalibrationDataReader):
        def __init__(self):
            self.left = [feeds]

        def get_next(self):
            return self.left.pop() if self.left else None

    model = onnx.ModelProto()
    model.CopyFrom(exported.model)
    path, settings = tmp_path / "theirs.onnx", {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    quantize_static(model, path, Once(), quant_format=QuantFormat[kind], per_channel=True, **settings)
    theirs = onnx.load(path)
    if kind == "QOperator" and not HAS_VNNI:
        pytest.skip("without VNNI the operators themselves saturate, which they are compared with")
    (y,), layers = executed(theirs, feeds)
    emulated, exact = Session(theirs, optimise=False).run(feeds)[0], Session(exported.model).run(feeds)[0]
    assert layers == {"int8": 2}
    assert float((emulated - exact).norm()) < 0.1 * float(exact.norm())
    assert np.linalg.norm(y - emulated.numpy()) < 0.2 * float((emulated - exact).norm())


def test_quantisation_of_the_other_domain():
    """Files of older tools have Q/DQ of com.microsoft."""
    text = ASYMMETRIC.replace("AXIS", "1").replace('["" : 20]', '["" : 20, "com.microsoft" : 1]')
    for name in ("QuantizeLinear", "DequantizeLinear"):
        text = text.replace(f" {name}", f" com.microsoft.{name}")
    model = onnx.parser.parse_model(text)
    (y,), layers = executed(model, {"x": np.array([[1.0, -2.0]], np.float32)})
    assert layers == {"int8": 1}
    np.testing.assert_array_equal(y, [[1.0, -2.0]] @ ((np.array([[1, -2], [3, 4]]) - 3) * [0.25, 0.5]) + [1, 2])


def test_an_older_operator_set():
    """Opset 10 has Q/DQ with one scale."""
    model = onnx.parser.parse_model(
        """<ir_version: 5, opset_import: ["" : 10]>
        g (float[n,2] x) => (float[n,2] y) <float s = {0.5}, int8 z = {0}, int8[2,2] w = {1, -2, 3, 4}> {
            q = QuantizeLinear(x, s, z)
            d = DequantizeLinear(q, s, z)
            v = DequantizeLinear(w, s, z)
            y = MatMul(d, v)
        }"""
    )
    (y,), layers = executed(model, {"x": np.array([[1.0, -2.0]], np.float32)})
    assert layers == {"int8": 1}
    np.testing.assert_array_equal(y, [[-2.5, -5.0]])
