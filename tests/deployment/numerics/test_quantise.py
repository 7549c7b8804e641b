"""Q/DQ graphs: scales and results against numpy and ONNX Runtime's own tool, exceptions, and graphs that have Q/DQ."""

import logging

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from lightning_robust.deployment.graph.export import export, frozen_copy
from lightning_robust.deployment.graph.session import Session
from lightning_robust.deployment.numerics.quantise import is_quantised, operands, quantise_products, take_quantised

from ..graphs import graph, make
from .int8 import channel_scales, draw, quantised, to_int8
from .operators import BATCH_NORM, GRAPHS, statistics

CHAIN = "g (float[n,6] x) => (float[n,3] y) { [one] h = MatMul(x, a) [act] r = Relu(h) [two] y = MatMul(r, b) }"


def chain():
    return graph(CHAIN, a=draw(6, 5), b=draw(5, 3)), {"x": draw(8, 6)}


def weights(model):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def dequantised(model, node, index):
    """(integers, scale, axis) of what a node reads through a DequantizeLinear; integers None where computed."""
    producers = {name: other for other in model.graph.node for name in other.output}
    made = producers[{n.name: n for n in model.graph.node}[node].input[index]]
    assert made.op_type == "DequantizeLinear"
    found = weights(model)
    assert not found[made.input[2]].any()  # the zero point
    axis = next((a.i for a in made.attribute if a.name == "axis"), None)
    return found.get(made.input[0]), found[made.input[1]], axis


def outputs(model, feeds, **settings):
    return [tensor.numpy() for tensor in Session(model, **settings).run(feeds)]


def test_scales_closed_form():
    model, feeds = chain()
    made = quantised(model, feeds).model
    onnx.checker.check_model(made, full_check=True)
    hidden = np.maximum(feeds["x"] @ weights(model)["a"], 0)
    for node, values, weight in (("one", feeds["x"], "a"), ("two", hidden, "b")):
        _, scale, _ = dequantised(made, node, 0)
        np.testing.assert_allclose(scale, np.abs(values).max() / 127, rtol=1e-6)
        integers, scales, axis = dequantised(made, node, 1)
        exact = channel_scales(weights(model)[weight], 1)
        assert axis == 1
        np.testing.assert_allclose(scales, exact[0], rtol=1e-6)
        np.testing.assert_array_equal(integers, to_int8(weights(model)[weight], scales))


def test_the_graph_computes_what_numpy_computes():
    model, feeds = chain()
    made = quantised(model, feeds).model
    x = feeds["x"]
    for node in ("one", "two"):
        _, scale, _ = dequantised(made, node, 0)
        integers, scales, _ = dequantised(made, node, 1)
        total = to_int8(x, scale).astype(np.int32) @ integers.astype(np.int32)
        x = np.maximum(total * (scale * scales), 0) if node == "one" else total * (scale * scales)
    np.testing.assert_allclose(outputs(made, feeds, optimise=False)[0], x, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["cnn", "norm", "vit"])
def test_matches_the_tool_of_onnx_runtime(kind, tmp_path):
    """`quantize_static` on plain networks, with the options that mean the same: outputs to the last bits of fp32."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    exported, x = make(kind)
    feeds = {"input": x.numpy()}

    class Once(CalibrationDataReader):
        def __init__(self):
            self.left = [feeds]

        def get_next(self):
            return self.left.pop() if self.left else None

    products = ["Conv", "Gemm", "MatMul"]
    model = onnx.ModelProto()
    model.CopyFrom(exported.model)  # it moves the weights of what it is given into files
    quantize_static(
        model,
        tmp_path / "theirs.onnx",
        Once(),
        op_types_to_quantize=products,
        per_channel=True,
        activation_type=QuantType.QInt8,
        extra_options={
            "ActivationSymmetric": True,
            "QuantizeBias": False,
            "OpTypesToExcludeOutputQuantization": products,
        },
    )
    theirs = outputs(onnx.load(tmp_path / "theirs.onnx"), feeds, optimise=False)[0]
    ours = outputs(quantised(exported.model, feeds).model, feeds, optimise=False)[0]
    exact = outputs(exported.model, feeds)[0]
    assert np.linalg.norm(ours - theirs) < 1e-3 * np.linalg.norm(theirs - exact)


def test_nodes_keep_names_and_the_model_is_not_changed():
    model, feeds = chain()
    before = model.SerializeToString()
    made = quantised(model, feeds)
    assert model.SerializeToString() == before
    assert [node.name for node in made.model.graph.node if node.op_type in ("MatMul", "Relu")] == ["one", "act", "two"]
    assert made.nodes == ("one", "two")
    assert made.notes == ("2 of 2 products in int8",)
    assert made.model.graph.output == model.graph.output
    assert quantised(model, feeds).model.SerializeToString() == made.model.SerializeToString()


def test_an_excluded_node_reads_what_it_read_and_others_do_not():
    """Both products read x: the one that is left out is exact, bit for bit."""
    model = graph(
        "g (float[n,6] x) => (float[n,3] y, float[n,3] z) { [one] y = MatMul(x, a) [two] z = MatMul(x, a) }",
        a=draw(6, 3),
    )
    feeds = {"x": draw(8, 6)}
    made = quantised(model, feeds, exclude=["two"])
    assert made.nodes == ("one",)
    assert made.of == 2
    assert [list(node.input) for node in made.model.graph.node if node.name == "two"] == [["x", "a"]]
    exact, (y, z) = outputs(model, feeds), outputs(made.model, feeds, optimise=False)
    np.testing.assert_array_equal(z, exact[1])
    assert np.abs(y - exact[0]).max() > 1e-4


def test_a_tensor_is_quantised_for_products_alone():
    """x is an output and summed too; h is both what a product makes and what another reads."""
    model = graph(
        """g (float[n,4] x) => (float[n,4] h, float[n,4] y) {
            [one] h = MatMul(x, a) [two] k = MatMul(h, a) [sum] t = Add(h, x) [out] y = Add(t, k)
        }""",
        a=draw(4, 4),
    )
    made = quantised(model, {"x": draw(8, 4)}).model
    inputs = {node.name: list(node.input) for node in made.graph.node}
    assert inputs["sum"] == ["h", "x"]
    assert [value.name for value in made.graph.output] == ["h", "y"]
    np.testing.assert_allclose(outputs(made, {"x": draw(8, 4)}, optimise=False)[0], draw(8, 4) @ draw(4, 4), atol=0.1)


@pytest.mark.parametrize(
    ("text", "rank", "shape", "axis"),
    [
        ("[op] y = Conv(x, w)", 4, (6, 4, 3, 3), 0),
        ("[op] y = Conv<group = 2>(x, w)", 4, (6, 2, 3, 3), 0),
        ("[op] y = ConvTranspose(x, w)", 4, (4, 6, 3, 3), 1),
        ("[op] y = MatMul(x, w)", 4, (2, 4, 8, 5), 3),
        ("[op] y = MatMul(w, x)", 4, (5, 8), None),
        ("[op] y = MatMul(x, w)", 3, (8,), None),
        ("[f] f = Flatten(x) [op] y = Gemm(f, w)", 2, (256, 5), 1),
        ("[f] f = Flatten(x) [op] y = Gemm<transB = 1>(f, w)", 2, (5, 256), 0),
    ],
)
def test_a_weight_has_a_scale_for_each_output_channel(text, rank, shape, axis):
    w = draw(*shape)
    model = graph(f"g (float[2,4,8,8] x) => (float[{','.join('abcd'[:rank])}] y) {{ {text} }}", w=w)
    made = quantised(model, {"x": draw(2, 4, 8, 8)}).model
    integers, scale, found = dequantised(made, "op", 0 if "(w, x)" in text else 1)
    exact = np.abs(w).max() / np.float32(127) if axis is None else channel_scales(w, axis)
    assert axis is None or found == axis
    np.testing.assert_allclose(scale, exact if axis is None else exact.ravel(), rtol=1e-6)
    np.testing.assert_array_equal(integers, to_int8(w, exact))


def test_one_weight_along_two_axes():
    """Tied: columns are the channels of one product, rows those of the other; the sum of a product has one scale."""
    model = graph(
        "g (float[n,6] x) => (float[n,6] y) { [one] h = Gemm(x, w) [two] y = Gemm<transB = 1>(h, w) }", w=draw(6, 4)
    )
    made = quantised(model, {"x": draw(8, 6)}).model
    np.testing.assert_allclose(dequantised(made, "one", 1)[1], channel_scales(draw(6, 4), 1)[0], rtol=1e-6)
    np.testing.assert_allclose(dequantised(made, "two", 1)[1], channel_scales(draw(6, 4), 0)[:, 0], rtol=1e-6)


def test_batchnorms_are_folded_before_weights_are_rounded():
    model = graph(
        f"g (float[n,4,6,6] x) => (float[n,5,6,6] y) {{ [op] h = Conv(x, w) [norm] y = {BATCH_NORM.format('h')} }}",
        w=draw(5, 4, 1, 1),
        **statistics(5),
    )
    feeds = {"x": draw(4, 4, 6, 6)}
    made = quantised(model, feeds).model
    assert [node.name for node in made.graph.node if node.op_type in ("Conv", "BatchNormalization")] == ["op"]
    found = weights(model)
    factor = found["scale"] / np.sqrt(found["var"] + 1e-5)
    folded = found["w"] * factor[:, None, None, None]
    np.testing.assert_allclose(dequantised(made, "op", 1)[1], np.abs(folded).max((1, 2, 3)) / 127, rtol=1e-5)
    kept = quantised(model, feeds, exclude=["norm"])
    assert kept.nodes == ()
    assert kept.of == 1


def test_alpha_and_beta_of_a_gemm_are_kept():
    model = graph(
        "g (float[n,6] x) => (float[n,3] y) { [op] y = Gemm<alpha = 0.5, beta = 3.0>(x, w, c) }",
        w=draw(6, 3),
        c=draw(3),
    )
    feeds = {"x": draw(8, 6)}
    y = outputs(quantised(model, feeds).model, feeds, optimise=False)[0]
    np.testing.assert_allclose(y, 0.5 * feeds["x"] @ draw(6, 3) + 3 * draw(3), atol=0.05)


def test_several_inputs_and_integers():
    model = graph(
        """g (int64[n,5] ids, float[n,5,4] x) => (float[n,5,3] y) {
            [look] e = Gather(table, ids) [sum] s = Add(e, x) [op] y = MatMul(s, w)
        }""",
        table=draw(9, 4),
        w=draw(4, 3),
    )
    feeds = {"ids": np.random.default_rng(0).integers(0, 9, (7, 5)), "x": draw(7, 5, 4)}
    made = quantised(model, feeds)
    assert made.nodes == ("op",)
    _, scale, _ = dequantised(made.model, "op", 0)
    np.testing.assert_allclose(scale, np.abs(draw(9, 4)[feeds["ids"]] + feeds["x"]).max() / 127, rtol=1e-6)


def test_an_older_operator_set_is_raised():
    model = graph(CHAIN, opset=9, a=draw(6, 5), b=draw(5, 3))
    made = quantised(model, {"x": draw(8, 6)})
    assert made.model.opset_import[0].version == 13
    newer = quantised(*chain()).model
    for ours, theirs in zip(outputs(made.model, {"x": draw(8, 6)}), outputs(newer, {"x": draw(8, 6)}), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)


def test_what_cannot_be_quantised_is_named_and_the_rest_is():
    wrong = draw(5, 3)
    wrong[0, 0] = np.nan
    model = graph(
        """g (float[n,6] x) => (float[n,5] y, float[n,3] v, float[n,3] s, float[n,3] u) {
            [good] h = MatMul(x, a) [same] y = Identity(h) [bad_weight] v = MatMul(h, wrong)
            [log] l = Log(h) [bad_input] s = MatMul(l, b) [nought] o = Sub(h, h) [dead] u = MatMul(o, b)
        }""",
        a=draw(6, 5),
        b=draw(5, 3),
        wrong=wrong,
    )
    made = quantised(model, {"x": draw(8, 6)})
    assert made.nodes == ("good",)
    assert made.notes == (
        "1 of 4 products in int8",
        "left in fp32, for their weights are not finite: bad_weight",
        "left in fp32, for what they read is not finite on the calibration data: bad_input",
        "left in fp32, for what they read is zero on the calibration data: dead",
    )
    onnx.checker.check_model(made.model)


def test_products_in_a_branch_are_named_as_what_stays_fp32():
    model, feeds = GRAPHS["If"]
    made = quantised(model, feeds)
    inside = sum(inner.op_type == "MatMul" for n in model.graph.node for a in n.attribute for inner in a.g.node)
    outside = sum(node.op_type == "MatMul" for node in model.graph.node)
    assert (len(made.nodes), made.of) == (outside, outside + inside)
    assert bool(inside) == any("they lie in a branch or a loop" in note for note in made.notes)


def test_a_channel_of_zeros_stays_zero():
    w = draw(6, 3)
    w[:, 1] = 0
    model = graph("g (float[n,6] x) => (float[n,3] y) { [op] y = MatMul(x, w) }", w=w)
    y = outputs(quantised(model, {"x": draw(8, 6)}).model, {"x": draw(8, 6)}, optimise=False)[0]
    assert not y[:, 1].any()
    assert np.isfinite(y).all()


def test_rejects_unknown_names():
    model, feeds = chain()
    with pytest.raises(ValueError, match=r"but got 'ones'.*'one'"):
        quantised(model, feeds, exclude=["ones"])


def test_leaves_no_handler_and_no_line(capfd, caplog):
    """The quantiser writes to the root logger where a Gemm's bias is computed."""
    model = graph(
        "g (float[n,6] x) => (float[n,3] y) { [c] c = ReduceMax<keepdims = 1>(x, ax) [op] y = Gemm(x, w, c) }",
        w=draw(6, 3),
        ax=np.array([1]),
    )
    before = list(logging.getLogger().handlers), list(logging.getLogger().filters)
    quantised(model, {"x": draw(8, 6)})
    assert (list(logging.getLogger().handlers), list(logging.getLogger().filters)) == before
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_a_quantised_graph_is_taken_byte_for_byte():
    model = quantised(*chain(), exclude=["two"]).model
    assert is_quantised(model)
    assert not is_quantised(chain()[0])
    before = model.SerializeToString()
    taken = take_quantised(model)
    assert taken.model.SerializeToString() == before
    assert taken.notes == ("1 of 2 products in int8", "quantised already, taken as it is")
    assert taken.nodes == ("one",)


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
def test_rejects_scales_that_mean_nothing(value):
    model = quantised(*chain()).model
    for tensor in model.graph.initializer:
        if tensor.name == "b__int8_scale":
            scale = numpy_helper.to_array(tensor).copy()
            scale[1] = value
            tensor.CopyFrom(numpy_helper.from_array(scale, tensor.name))
    with pytest.raises(ValueError, match=rf"a scale of DequantizeLinear 'b__int8_DequantizeLinear' is {value}"):
        take_quantised(model)


def test_names_of_a_module_survive_an_export():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2))
    x = torch.randn(4, 3, 8, 8)
    exported = export(frozen_copy(module), (x,))
    made = quantised(exported.model, {"input": x.numpy()})
    assert {exported.origins[name].module for name in made.nodes} == {
        "1",
        "4",
    }  # the convolution is folded into the norm


def test_operands_are_what_products_read():
    model, _ = chain()
    assert operands(model)[1] == ("x", "r")
    assert (
        quantise_products(model, {"x": 1.0, "r": 1.0}, ["one", "two"]).model.SerializeToString()
        == model.SerializeToString()
    )
