"""ONNX files that come from anywhere: external data, several inputs, dynamic everything, half, quantised, broken."""

import numpy as np
import onnx
import onnx.parser
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from lightning_robust.deployment.engines import available
from lightning_robust.deployment.graph.export import export, frozen_copy
from lightning_robust.deployment.graph.files import (
    GraphSubject,
    check_inputs,
    load_graph,
    make_inputs,
    read_or_make_inputs,
    remarks,
)
from lightning_robust.deployment.graph.session import Session
from lightning_robust.deployment.numerics.convert import to_half
from lightning_robust.deployment.parity.localise import localise
from lightning_robust.deployment.parity.measure import measure_parity

from ..models import OverflowingNorm, SmallCNN, images
from ..numerics.operators import GRAPHS


@pytest.fixture(scope="module")
def cnn():
    torch.manual_seed(0)
    return export(frozen_copy(SmallCNN()), (images(4),)).model


def value(name, shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def graph(nodes, inputs, outputs, weights=()):
    made = helper.make_graph(nodes, "g", inputs, outputs, list(weights))
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def two_inputs(shape=("batch", 3)):
    node = helper.make_node("Mul", ["a", "b"], ["y"])  # without a name
    return graph([node], [value("a", shape), value("b", shape)], [value("y", shape)])


def parity(model, inputs, targets=("emulated-fp16",)):
    subject = GraphSubject(model, inputs)
    return subject, measure_parity(subject, available(list(targets)))


def test_matches_the_module(cnn, tmp_path):
    """The report of the file equals that of the exported module, but for the reference's own precision."""
    onnx.save(cnn, tmp_path / "cnn.onnx")
    x = images(4)
    subject, report = parity(load_graph(tmp_path / "cnn.onnx"), {"input": x.numpy()})
    assert report.reference == "onnxruntime-fp32"
    torch.manual_seed(0)
    from lightning_robust.deployment.engines import Subject

    with_module = measure_parity(Subject(frozen_copy(SmallCNN()), (x,)), available(["emulated-fp16"]))
    ours, theirs = (r.targets["emulated-fp16"].metrics["rel_l2"] for r in (report, with_module))
    assert ours == pytest.approx(theirs, rel=0.01)
    found = localise(subject, report, tolerance=0.0)
    assert found.keep.error == 0


def test_external_data(cnn, tmp_path):
    path = tmp_path / "cnn.onnx"
    copy = onnx.ModelProto.FromString(cnn.SerializeToString())  # saving empties its weights
    onnx.save(copy, path, save_as_external_data=True, location="cnn.data", size_threshold=0)
    inside = {tensor.name: numpy_helper.to_array(tensor) for tensor in load_graph(path).graph.initializer}
    assert all(np.array_equal(numpy_helper.to_array(tensor), inside[tensor.name]) for tensor in cnn.graph.initializer)
    _, report = parity(load_graph(path), {"input": images(4).numpy()})
    assert report.targets["emulated-fp16"].status == "measured"
    (tmp_path / "cnn.data").unlink()
    with pytest.raises(FileNotFoundError, match=r"Copy its \.data file"):
        load_graph(path)


def test_several_inputs_in_their_order(tmp_path):
    onnx.save(two_inputs(), tmp_path / "two.onnx")
    model = load_graph(tmp_path / "two.onnx")
    assert [node.name for node in model.graph.node] == ["Mul_0"]
    # 0.1 in fp16 is off by 2.4e-4 of itself, 1.0 is exact
    arrays = {"b": np.ones((4, 3), np.float32), "a": np.full((4, 3), 0.1, np.float32)}
    arrays["a"][0] = 0.2
    _, report = parity(model, arrays)
    assert report.targets["emulated-fp16"].metrics["max_abs"] == pytest.approx(
        0.2 - float(np.float16(0.2)), rel=0.01
    ) or (report.targets["emulated-fp16"].metrics["max_abs"] == pytest.approx(float(np.float16(0.2)) - 0.2, rel=0.01))
    with pytest.raises(ValueError, match=r"each of the inputs \['a', 'b'\], but got \['a'\]"):
        GraphSubject(model, {"a": arrays["a"]})


def test_dynamic_everything_wants_the_shape():
    model = two_inputs(("batch", "width"))
    with pytest.raises(ValueError, match=r"has shape \(4, width\)\. .*--shapes="):
        make_inputs(model, 4)
    made = make_inputs(model, 4, {"a": [4, 7], "b": [4, 7]})
    assert {name: array.shape for name, array in made.items()} == {"a": (4, 7), "b": (4, 7)}
    assert parity(model, made)[1].targets["emulated-fp16"].status == "measured"


def test_half_precision_files_are_told_apart(cnn):
    half = to_half(cnn, "fp16")
    assert any("half precision already" in line for line in remarks(half))
    assert remarks(cnn) == []


def test_a_graph_without_fp32_is_not_called_exact():
    """Nothing is left to emulate: a distance of zero would be no measurement."""
    node = helper.make_node("Exp", ["a"], ["y"], "exp")
    half = TensorProto.FLOAT16
    model = graph([node], [value("a", ["batch", 2], half)], [value("y", ["batch", 2], half)])
    _, report = parity(model, make_inputs(model, 4))
    assert report.targets["emulated-fp16"].status == "failed"
    assert "computes in fp32" in report.targets["emulated-fp16"].note


def test_quantised_files_are_measured_and_remarked():
    scale, zero = (
        numpy_helper.from_array(np.array(0.1, np.float32), "s"),
        numpy_helper.from_array(np.array(0, np.int8), "z"),
    )
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], "quantise"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], "dequantise"),
        helper.make_node("Exp", ["d"], ["y"], "exp"),
    ]
    model = graph(nodes, [value("x", ["batch", 3])], [value("y", ["batch", 3])], [scale, zero])
    assert any("quantised (DequantizeLinear, QuantizeLinear)" in line for line in remarks(model))
    subject, report = parity(model, make_inputs(model, 4))
    assert report.targets["emulated-fp16"].status == "measured"
    assert localise(subject, report).layers.complete


@pytest.mark.parametrize(
    ("array", "match"),
    [
        (np.zeros((4, 3, 16, 16), np.float64), r"as float32 .* but got float64"),
        (
            np.zeros((4, 16, 16, 3), np.float32),
            r"shape \(batch, 3, 16, 16\), but got float32 of shape \(4, 16, 16, 3\)",
        ),
        (np.zeros((3, 16, 16), np.float32), r"but got float32 of shape \(3, 16, 16\)"),
    ],
)
def test_rejects_other_arrays(cnn, array, match):
    with pytest.raises(ValueError, match=match):
        check_inputs(cnn, {"input": array})


def test_rejects_what_is_no_model(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_graph(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("not a model")
    with pytest.raises(ValueError, match=r"cannot be read|valid ONNX"):
        load_graph(tmp_path / "text.onnx")


def test_initialisers_among_the_inputs_are_no_inputs(tmp_path):
    model = two_inputs()
    model.graph.initializer.append(numpy_helper.from_array(np.ones((1, 3), np.float32), "b"))
    model.graph.input[1].CopyFrom(value("b", [1, 3]))
    onnx.save(model, tmp_path / "old.onnx")
    model = load_graph(tmp_path / "old.onnx")
    assert list(make_inputs(model, 2)) == ["a"]
    assert parity(model, make_inputs(model, 2))[1].targets["emulated-fp16"].status == "measured"


def test_an_overflow_is_found_without_the_pytorch_side():
    torch.manual_seed(0)
    model = export(frozen_copy(OverflowingNorm()), (images(4),)).model
    subject, report = parity(model, {"input": images(4).numpy()})
    found = localise(subject, report)
    assert found.layers.first_diverging(5e-3).op == "Pow"
    assert found.keep.met


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_a_fixed_batch_is_measured_on_many_samples(cnn, batch):
    """The same numbers as those of the graph with a dynamic batch, layers too; five samples fill no batches of two."""
    model = onnx.ModelProto()
    model.CopyFrom(cnn)
    for tensor in (*model.graph.input, *model.graph.output):
        tensor.type.tensor_type.shape.dim[0].dim_value = batch
    del model.graph.value_info[:]
    x = images(5).numpy()
    subject, report = parity(model, {"input": x}, ["onnxruntime-fp32", "emulated-fp16"])
    whole, expected = parity(cnn, {"input": x}, ["onnxruntime-fp32", "emulated-fp16"])
    taken = "one sample" if batch == 1 else f"{batch} samples"
    assert [note for note in report.notes if "at a time" in note] == [
        f"The graph takes {taken} at a time, and ran on one batch after the other."
    ]
    for name, target in report.targets.items():
        assert target.status == "measured", target.note
        assert target.metrics["rel_l2"] == pytest.approx(expected.targets[name].metrics["rel_l2"], rel=1e-3, abs=1e-6)
    layers, others = (localise(*args).layers.nodes for args in ((subject, report), (whole, expected)))
    for node, other in zip(layers, others, strict=True):
        assert node.isolated == pytest.approx(other.isolated, rel=1e-2, abs=1e-6)


def test_a_batch_of_the_fixed_size_has_no_note():
    model = two_inputs((4, 3))
    assert GraphSubject(model, make_inputs(model, 4)).notes == ()
    assert {array.shape for array in make_inputs(model, 9).values()} == {(9, 3)}


def test_rejects_different_numbers_of_samples():
    model = two_inputs((2, 3))
    inputs = {name: np.zeros((count, 3), np.float32) for name, count in {"a": 6, "b": 4}.items()}
    with pytest.raises(ValueError, match=r"same number of samples.*'a': 6, 'b': 4"):
        check_inputs(model, inputs)


CONSTANTS = """g (float[n,3] x) => (float[n,3] y) {
    a = Constant<value = float[1,3] {1.1, 1.2, 1.3}>() b = Constant<value_float = 0.5>() [op] h = Mul(x, a)
    s = Constant<value_ints = [0, 3]>() i = Constant<value_int = 1>() [op] g = Mul(h, b)
    [move] f = Reshape(g, s) y = Exp(f) }"""


def test_constants_are_weights_and_names_are_unique(tmp_path):
    """Sweeps took Constant nodes for layers, and two nodes of one name for one."""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 13]> {CONSTANTS}')
    onnx.save(model, tmp_path / "constants.onnx")
    loaded = load_graph(tmp_path / "constants.onnx")
    assert [node.name for node in loaded.graph.node] == ["op", "op_1", "move", "Exp_3"]
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in loaded.graph.initializer}
    assert {name: (array.dtype.name, array.shape) for name, array in arrays.items()} == {
        "a": ("float32", (1, 3)), "b": ("float32", ()), "s": ("int64", (2,)), "i": ("int64", ()),
    }  # fmt: skip
    x = np.random.default_rng(0).random((2, 3)).astype(np.float32)
    (got,) = Session(loaded).run({"x": x})
    np.testing.assert_allclose(got, np.exp(x * np.float32([1.1, 1.2, 1.3]) * np.float32(0.5)), rtol=1e-6)
    subject, report = parity(loaded, {"x": x})
    assert {node.name for node in localise(subject, report).layers.nodes} == {"op", "op_1", "Exp_3"}


def test_functions_are_inlined(tmp_path):
    text = """<ir_version: 10, opset_import: ["" : 20, "local" : 1]>
        g (float[n,2] x) => (float[n,2] y) { [twice] h = local.double(x) [end] y = Exp(h) }
        <domain: "local", opset_import: ["" : 20]> double (a) => (b) { b = Add(a, a) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "function.onnx")
    loaded = load_graph(tmp_path / "function.onnx")
    assert [node.op_type for node in loaded.graph.node] == ["Add", "Exp"]
    assert not loaded.functions
    assert all(node.name for node in loaded.graph.node)


def test_files_older_than_ir_version_4(tmp_path):
    """Their initialisers have to be inputs, which they then no longer are: the version goes up with them."""
    model = two_inputs()
    model.ir_version = 3
    model.opset_import[0].version = 8
    model.graph.initializer.append(numpy_helper.from_array(np.full((1, 3), 1.1, np.float32), "b"))
    model.graph.input[1].CopyFrom(value("b", [1, 3]))
    onnx.save(model, tmp_path / "old.onnx")
    loaded = load_graph(tmp_path / "old.onnx")
    for target in ("emulated-fp16", "emulated-bf16"):
        assert parity(loaded, make_inputs(loaded, 2), [target])[1].targets[target].status == "measured"
    for precision in ("fp16", "bf16"):
        onnx.checker.check_model(to_half(loaded, precision), full_check=True)


def test_scalar_inputs_stay_scalars():
    model = graph(
        [helper.make_node("Mul", ["s", "x"], ["y"], "m")],
        [value("s", []), value("x", ["n", 3])],
        [value("y", ["n", 3])],
    )
    made = make_inputs(model, 4)
    assert {name: array.shape for name, array in made.items()} == {"s": (), "x": (4, 3)}
    _, report = parity(model, made, ["emulated-fp16", "emulated-bf16"])
    assert {result.status for result in report.targets.values()} == {"measured"}


def test_control_flow_is_remarked():
    model, feeds = GRAPHS["Loop"]
    assert any("branches or loops: loop (Loop)" in line for line in remarks(model))
    _, report = parity(model, feeds)
    assert report.targets["emulated-fp16"].status == "measured"
    assert "Loop 'loop' computes in fp32" in report.targets["emulated-fp16"].note


def test_nodes_in_any_order_are_sorted(tmp_path):
    """ONNX Runtime's and TensorRT's readers sort them; ONNX Runtime's own converter to fp16 leaves them unsorted."""
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 20]> g (float[2] x) => (float[2] y) { a = Exp(x) b = Neg(a) y = Abs(b) }'
    )
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes[::-1])
    onnx.save(model, tmp_path / "unsorted.onnx")
    loaded = load_graph(tmp_path / "unsorted.onnx")
    assert [node.op_type for node in loaded.graph.node] == ["Exp", "Neg", "Abs"]
    x = np.array([0.0, 1.0], np.float32)
    assert np.allclose(Session(loaded).run({"x": x})[0].numpy(), np.exp(x))


def test_rejects_a_circle(tmp_path):
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 20]> g (float[1] x) => (float[1] y) {a = Add(x, b) b = Neg(a) y = Abs(b)}'
    )
    onnx.save(model, tmp_path / "circle.onnx")
    with pytest.raises(ValueError, match="topologically sorted"):
        load_graph(tmp_path / "circle.onnx")


def test_bytes_are_noise_too_and_zeros_are_named(tmp_path):
    inputs = "uint8[n, 3, 8, 8] x, int64[n] at, float[n, 2] v"
    model = f'<ir_version: 10, opset_import: ["" : 20]> g ({inputs}) => (float[n, 2] y) {{ y = Add(v, v) }}'
    graph = onnx.parser.parse_model(model)
    arrays, (said,) = read_or_make_inputs(graph, None, 4)
    assert len(np.unique(arrays["x"])) > 200
    assert said.startswith("The inputs are noise (at zeros): ")
    floats = "g (float[n, 2] v) => (float[n, 2] y) { y = Neg(v) }"
    floats = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> {floats}')
    assert read_or_make_inputs(floats, None, 4)[1][0].startswith("The inputs are noise: ")

    np.savez(tmp_path / "inputs.npz", **arrays)
    read, notes = read_or_make_inputs(graph, str(tmp_path / "inputs.npz"), 4)
    assert notes == []
    np.testing.assert_array_equal(read["x"], arrays["x"])


def test_an_output_without_a_shape_is_no_fault(tmp_path):
    """ONNX Runtime runs it; the checker asks for a shape."""
    text = '<ir_version: 10, opset_import: ["" : 20]> g (float[n, 3] x) => (float[n, 3] y) { y = Mul(x, x) }'
    model = onnx.parser.parse_model(text)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    onnx.save(model, tmp_path / "net.onnx")
    graph = load_graph(tmp_path / "net.onnx")
    assert Session(graph).run({"x": np.full((2, 3), 3, np.float32)})[0].tolist() == [[9.0] * 3] * 2
