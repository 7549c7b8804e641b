"""The user's own file beside what is built here: its numbers, and what becomes of files that do not fit."""

import copy

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from lightning_robust import measure_parity
from lightning_robust.deployment.engines import BuildSettings, Subject, available, run_module, runtime
from lightning_robust.deployment.engines.deployed import deployed_files
from lightning_robust.deployment.graph.export import ExportError, frozen_copy
from lightning_robust.deployment.numerics.convert import to_half

from ..graphs import graph
from ..models import SmallCNN, images


@pytest.fixture(scope="module")
def subject():
    torch.manual_seed(0)
    return Subject(frozen_copy(SmallCNN()), (images(6),))


def save(model, path):
    onnx.save(model, path)
    return str(path)


def measured(subject, *targets, **settings):
    subject = copy.copy(subject)
    subject.settings = BuildSettings(**settings)
    return measure_parity(subject, available(list(targets), subject.settings)).targets


def plain(target):
    """The distances of a target, but for what storing its outputs costs, which is not known of a file."""
    return {name: value for name, value in target.metrics.items() if name != "storage"}


def outputs(subject, deployed):
    (made,) = available([], BuildSettings(deployed=deployed))
    return made.build(subject).run(subject.example)


def test_our_own_conversion_gives_the_numbers_of_the_emulation(subject, tmp_path):
    file = save(to_half(subject.exported.model), tmp_path / "model.onnx")
    found = measured(subject, "emulated-fp16", deployed=file)
    assert found["deployed-fp16"].metrics == plain(found["emulated-fp16"])
    assert found["deployed-fp16"].note == "model.onnx emulated, every tensor that is fp16 rounded"
    assert 0 < found["deployed-fp16"].metrics["rel_l2"] < 5e-3


def test_an_edited_weight_is_the_distance(subject, tmp_path):
    """The last bias moved by 0.5 moves one of four outputs by 0.5."""
    model = onnx.ModelProto.FromString(subject.exported.model.SerializeToString())
    (bias,) = (each for each in model.graph.initializer if list(each.dims) == [4])
    values = numpy_helper.to_array(bias).copy()
    values[2] += 0.5
    bias.CopyFrom(numpy_helper.from_array(values, bias.name))
    report = measure_parity(
        subject,
        available(["onnxruntime-fp32"], BuildSettings(deployed=save(model, tmp_path / "edited.onnx"))),
    )
    metrics = report.targets["deployed-fp32"].metrics
    assert metrics["max_abs"] == pytest.approx(0.5, abs=1e-5)
    assert metrics["bias"] == pytest.approx(0.125, abs=1e-6)
    exact = run_module(subject.module, subject.example)[0].double()
    spread = (exact - exact.mean()).norm().item()
    (link,) = (link for link in report.chain if link.name == "engine")
    assert (link.source, link.target) == ("onnxruntime-fp32", "deployed-fp32")
    assert link.value == pytest.approx(0.5 * 6**0.5 / spread, rel=1e-4)


def half_io(model):
    """The same graph with fp16 inputs and outputs, as --inputIOFormats=fp16:chw has them, and other names."""
    converted = to_half(model)
    casts = [node for node in converted.graph.node if node.op_type == "Cast"]
    first, last = casts[0], casts[-1]
    for node in converted.graph.node:
        node.input[:] = ["pixels" if name == first.output[0] else name for name in node.input]
    converted.graph.node.remove(first)
    converted.graph.node.remove(last)
    shape = [dim.dim_param or dim.dim_value for dim in converted.graph.input[0].type.tensor_type.shape.dim]
    converted.graph.input[0].CopyFrom(helper.make_tensor_value_info("pixels", TensorProto.FLOAT16, shape))
    converted.graph.output[0].CopyFrom(helper.make_tensor_value_info(last.input[0], TensorProto.FLOAT16, [shape[0], 4]))
    onnx.checker.check_model(converted, full_check=True)
    return converted


def test_half_inputs_and_outputs_under_other_names(subject, tmp_path):
    """Rounding the samples and the outputs is what the casts in the file with fp32 inputs do."""
    plain = save(to_half(subject.exported.model), tmp_path / "plain.onnx")
    file = save(half_io(subject.exported.model), tmp_path / "half.onnx")
    ours, theirs = outputs(subject, file), outputs(subject, plain)
    assert ours[0].dtype == torch.float32
    assert torch.equal(ours[0], theirs[0])
    assert "inputs by their order: pixels is input" in measured(subject, deployed=file)["deployed-fp16"].note


def test_a_file_for_one_sample_takes_all_of_them(subject, tmp_path):
    model = to_half(subject.exported.model)
    whole = outputs(subject, save(model, tmp_path / "dynamic.onnx"))[0]
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    del model.graph.value_info[:]
    single = outputs(subject, save(model, tmp_path / "static.onnx"))[0]
    torch.testing.assert_close(single, whole, rtol=0, atol=2e-3 * whole.abs().max().item())
    assert len(single) == 6


QUANTISED = """g (float[n, 2] input) => (float[n, 2] output) {
    z = Constant<value = int8 {0}>() q = QuantizeLinear(input, s, z) output = DequantizeLinear(q, s, z) }"""


def test_a_quantised_file_is_executed(tmp_path):
    """Steps of 0.25 up to 127: what is not a multiple is rounded to the nearest even one."""
    model = graph(QUANTISED, s=np.float32(0.25))
    subject = Subject(torch.nn.Hardtanh(-1000, 1000), (torch.tensor([[0.3, 1.0], [-0.6, 100.0]]),))
    file = save(model, tmp_path / "model.onnx")
    assert outputs(subject, file)[0].tolist() == [[0.25, 1.0], [-0.5, 31.75]]
    found = measured(subject, deployed=file)["deployed-int8"]
    assert (found.status, found.note, found.layers) == ("measured", "model.onnx executed by ONNX Runtime", {})


def test_a_module_that_cannot_be_exported_has_its_file(subject, tmp_path):
    def refuse(*_, **__):
        raise ExportError("planted")

    file = save(half_io(subject.exported.model), tmp_path / "half.onnx")
    alone = Subject(subject.module, subject.example, exporter=refuse)
    assert torch.equal(outputs(alone, file)[0], outputs(subject, file)[0])
    found = measured(alone, "onnxruntime-fp32", deployed=file)
    assert found["deployed-fp16"].status == "measured"
    assert (found["onnxruntime-fp32"].status, "planted" in found["onnxruntime-fp32"].note) == ("failed", True)


def test_tf32_in_what_stays_fp32(subject, tmp_path):
    """The last layer kept fp32 in the file: with TF32 allowed it errs as the emulation with the same list does."""
    last = subject.exported.model.graph.node[-1].name
    file = save(to_half(subject.exported.model, keep_fp32=[last]), tmp_path / "mixed.onnx")
    for tf32 in (False, True):
        found = measured(subject, "emulated-fp16", deployed=file, tf32=tf32, keep_fp32=[last])
        assert found["deployed-fp16"].metrics == plain(found["emulated-fp16"])
    assert found["deployed-fp16"].metrics != measured(subject, deployed=file)["deployed-fp16"].metrics


def test_a_quantised_file_runs_in_integers_and_gives_the_numbers_of_the_same_graph(subject, tmp_path):
    """What our own int8 target runs, saved and read back; a scale of zero is refused by name."""
    model = onnx.ModelProto.FromString(subject.quantised.model.SerializeToString())
    found = measured(subject, "onnxruntime-int8", deployed=save(model, tmp_path / "model.onnx"))
    ours, theirs = found["deployed-int8"], found["onnxruntime-int8"]
    assert ours.metrics == theirs.metrics
    assert ours.layers == theirs.layers == {"int8": 2}
    assert 1e-4 < ours.metrics["rel_l2"] < 0.1
    scale = next(node.input[1] for node in model.graph.node if node.op_type == "QuantizeLinear")
    (tensor,) = (each for each in model.graph.initializer if each.name == scale)
    tensor.CopyFrom(numpy_helper.from_array(np.zeros_like(numpy_helper.to_array(tensor)), scale))
    broken = measured(subject, deployed=save(model, tmp_path / "broken.onnx"))["deployed-int8"]
    assert broken.status == "failed"
    assert "Expected positive scales, but a scale of QuantizeLinear" in broken.note


def test_names_of_files(tmp_path):
    half = save(to_half(graph("g (float[2] x) => (float[2] y) { y = Relu(x) }")), tmp_path / "best.onnx")
    assert deployed_files(half) == {"deployed-fp16": half}
    assert deployed_files([half, "gone_int8.onnx", "car_fp16.engine"]) == {
        "deployed-fp16": half,
        "deployed-int8": "gone_int8.onnx",
        "tensorrt-fp16": "car_fp16.engine",
    }
    assert deployed_files(None) == {}
    assert deployed_files({"deployed-bf16": "x.onnx"}) == {"deployed-bf16": "x.onnx"}
    with pytest.raises(ValueError, match="Expected one file for a target"):
        deployed_files([half, "b_fp16.onnx"])
    with pytest.raises(ValueError, match="Expected a target that takes a file"):
        available([], BuildSettings(deployed={"emulated-fp16": half}))


def test_files_that_do_not_fit_have_a_status_and_a_sentence(subject, tmp_path):
    """Each leaves the other targets alone."""
    (tmp_path / "garbage_fp16.onnx").write_bytes(b"\x08\x07nonsense")
    two = graph("g (float16[n, 3, 16, 16] a, float16[n] b) => (float16[n, 3, 16, 16] y) { y = Relu(a) }")
    shape = graph("g (float16[n, 3, 16, 16] a) => (float16[n, 3, 16, 16] y) { y = Relu(a) }")
    last = graph("g (float16[n, 16, 16, 3] a) => (float16[n, 16, 16, 3] y) { y = Relu(a) }")
    files = {
        str(tmp_path / "none_fp16.onnx"): ("unavailable", "there is no file at"),
        str(tmp_path / "garbage_fp16.onnx"): ("failed", "Expected"),
        save(two, tmp_path / "two.onnx"): ("failed", "Expected the inputs ['input'], but the file has ['a', 'b']"),
        save(shape, tmp_path / "shape.onnx"): ("failed", "of shape (?, 4), but the file gives (6, 3, 16, 16)"),
        save(last, tmp_path / "last.onnx"): ("failed", "Its channels come last"),
    }
    for file, (status, words) in files.items():
        found = measured(subject, "onnxruntime-fp32", deployed=file)
        assert found["deployed-fp16"].status == status
        assert words in found["deployed-fp16"].note
        assert found["onnxruntime-fp32"].status == "measured"
    wrong = {"deployed-fp16": save(subject.exported.model, tmp_path / "wide.onnx")}
    note = measured(subject, deployed=wrong)["deployed-fp16"].note
    assert "Expected a file in fp16, but" in note
    assert "is in fp32. Name the target after that." in note


def test_infinite_weights_are_named(subject, tmp_path):
    model = to_half(subject.exported.model)
    (bias,) = (each for each in model.graph.initializer if list(each.dims) == [4])
    bias.CopyFrom(numpy_helper.from_array(np.array([0, np.inf, 0, 0], np.float16), bias.name))
    found = measured(subject, deployed=save(model, tmp_path / "broken.onnx"))["deployed-fp16"]
    assert found.status == "measured"
    assert found.metrics["nonfinite"] == 0.25
    assert f"its weight {bias.name} is infinite or NaN" in found.note
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float16:
            tensor.CopyFrom(numpy_helper.from_array(np.full_like(values, np.inf), tensor.name))
    found = measured(subject, "onnxruntime-fp32", deployed=save(model, tmp_path / "broken.onnx"))
    assert found["deployed-fp16"].metrics["nonfinite"] == 1.0
    assert "and 3 more are infinite or NaN" in found["deployed-fp16"].note
    assert found["onnxruntime-fp32"].status == "measured"


@pytest.mark.rtx
def test_tensorrt_builds_the_engine_of_the_file(subject, tmp_path):
    """With half inputs and outputs under other names; a file in another precision than its target is refused."""
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    file = save(half_io(subject.exported.model), tmp_path / "half.onnx")
    cache = {"cache": str(tmp_path / "cache")}
    found = measured(subject, deployed={"tensorrt_rtx-fp16": file}, **cache)["tensorrt_rtx-fp16"]
    assert found.status in ("built", "measured")
    assert "built from half.onnx, inputs by their order: pixels is input" in found.note
    assert found.size > 1000
    wrong = measured(subject, deployed={"tensorrt_rtx-fp32": file}, **cache)["tensorrt_rtx-fp32"]
    assert (wrong.status, "is in fp16. Name the target" in wrong.note) == ("failed", True)


def test_an_engine_without_a_device_is_unavailable(subject, tmp_path):
    (tmp_path / "car_fp16.engine").write_bytes(b"engine")
    found = measured(subject, "onnxruntime-fp32", deployed=str(tmp_path / "car_fp16.engine"))
    if runtime("tensorrt-fp16").can_run():
        pytest.skip("this machine can run engines")
    assert found["tensorrt-fp16"].status == "unavailable"
    assert "tensorrt" in found["tensorrt-fp16"].note
    assert found["onnxruntime-fp32"].status == "measured"
