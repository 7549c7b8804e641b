"""TensorRT as a target of a parity pass, from the module to its outputs, over the stand-in that answers like fp32."""

import shutil
import sys

import numpy as np
import onnx
import pytest
import torch

from lightning_robust.deployment.engines import BuildSettings, Subject, available, build_engine, runtime
from lightning_robust.deployment.engines.execution import execute
from lightning_robust.deployment.graph.export import frozen_copy
from lightning_robust.deployment.parity.measure import measure_parity
from lightning_robust.deployment.pixels.catalogue import perturbations
from lightning_robust.deployment.replay.frames import open_recording
from lightning_robust.deployment.replay.measure import replay
from lightning_robust.functional.pixels import PixelSpace

from ...models import SmallCNN, images
from ...recordings import Stripes, save_pictures, stripes

pytestmark = pytest.mark.bindings
newest = pytest.mark.parametrize("version", ["11"], indirect=True)


def subject(tmp_path, samples=16, **settings):
    torch.manual_seed(0)
    return Subject(
        frozen_copy(SmallCNN()), (images(samples),), BuildSettings(cache=str(tmp_path / "cache"), **settings)
    )


def count(calls, method):
    return sum(call[0].endswith(f".{method}") for call in calls)


def distance(outputs, here):
    expected = here.module(*here.example)
    return float((outputs[0].float() - expected).norm() / expected.norm())


def test_sixteen_samples_at_batch_one_are_one_process(machine, tmp_path):
    here = subject(tmp_path)
    execution = execute(runtime("tensorrt-fp32"), here, timed=True)
    calls = machine.calls()
    assert (execution.status, execution.note) == ("measured", "")
    assert 0 < distance(execution.outputs, here) < 1e-6  # sums of 72 products in fp32 in another order
    assert count(calls, "execute_async_v3") == 16 + 1 + 100
    # one process to build and look at the layers, one to run, one to time
    assert count(calls, "build_serialized_network") == 1
    assert count(calls, "deserialize_cuda_engine") == 3
    shapes = [call[2:] for call in calls if call[0] == "IOptimizationProfile.set_shape"]
    assert shapes == [[[1, 3, 16, 16]] * 3]
    assert (execution.latency.runs, execution.latency.batch) == (100, 1)
    assert 0 < execution.latency.median <= execution.latency.p99 < 1


@newest
def test_fp16_comes_back(machine, tmp_path):
    here = subject(tmp_path, samples=2)
    outputs = execute(runtime("tensorrt-fp16"), here).outputs
    assert 2**-14 < distance(outputs, here) < 5e-3  # of a few roundings by 2^-11


@newest
def test_int8_is_built_from_the_graph_that_all_int8_engines_take(machine, tmp_path):
    here = subject(tmp_path, samples=6)
    execution, emulated = (execute(runtime(f"{name}-int8"), here) for name in ("tensorrt", "emulated"))
    assert execution.note == f"{emulated.note.removeprefix('emulated, ')}, the rest in fp16"
    plan = machine.plan(tmp_path / "cache")
    assert plan["flags"] == []  # strongly typed: the graph alone says what is int8
    assert {"QuantizeLinear", "DequantizeLinear"} <= set(plan["operators"])
    # the same graph by the same library, fused or not: roundings to int8 that fall to the other side
    assert 1e-4 < distance(execution.outputs, here) < 5e-2
    apart = float((execution.outputs[0] - emulated.outputs[0]).norm() / emulated.outputs[0].norm())
    assert apart <= 2 * distance(emulated.outputs, here)


@newest
def test_the_last_batch_is_filled_up(machine, tmp_path):
    here = subject(tmp_path, samples=5, batch=3)
    outputs = execute(runtime("tensorrt-fp32"), here).outputs
    calls = machine.calls()
    assert count(calls, "execute_async_v3") == 2
    assert [call[2] for call in calls if call[0] == "IExecutionContext.set_input_shape"] == [[3, 3, 16, 16]]
    assert len(outputs[0]) == 5
    assert distance(outputs, here) < 1e-6


@newest
@pytest.mark.parametrize(
    ("target", "tf32", "flag"),
    [("tensorrt-tf32", False, True), ("tensorrt-fp32", True, False), ("tensorrt-bf16", True, True)],
)
def test_tf32_is_a_target_and_a_choice_for_what_stays_fp32(machine, tmp_path, target, tf32, flag):
    runtime(target).build(subject(tmp_path, tf32=tf32))
    calls = machine.calls()
    assert (["IBuilderConfig.set_flag", "TF32"] in calls) == flag
    assert (["IBuilderConfig.clear_flag", "TF32"] in calls) != flag


@newest
def test_the_settings_reach_the_builder_and_the_device_the_child(machine, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5e1d")
    execution = execute(runtime("tensorrt-fp32"), subject(tmp_path, device="cuda:1", workspace=0.5))
    calls = machine.calls()
    assert execution.status == "measured"
    assert [call[1] for call in calls if call[0] == "device"] == ["GPU-5e1d"] * 2
    assert ["IBuilderConfig.set_memory_pool_limit", "WORKSPACE", 1 << 29] in calls


@newest
def test_a_recording_is_one_process(machine, tmp_path):
    frames = stripes(range(6, 28, 2), [40, 44] * 5 + [40])
    recording = open_recording(save_pictures(tmp_path / "frames", frames), batch_size=4)
    settings = BuildSettings(cache=str(tmp_path / "cache"))
    report = replay(Stripes(), recording, [runtime("tensorrt-fp32")], settings=settings)
    calls = machine.calls()
    assert count(calls, "execute_async_v3") == len(report.frames) == 11
    assert count(calls, "deserialize_cuda_engine") == 2  # the build's look at the layers, and the frames
    (result,) = report.runtimes.values()
    assert result.status == "measured"
    torch.testing.assert_close(result.columns, report.reference.columns, rtol=1e-5, atol=1e-4)


class TwoInputs(torch.nn.Module):
    """Of three arguments it reads two."""

    def forward(self, image, unused, gain):
        return {"mean": (image * gain[:, None]).mean(1), "picture": 2 * image}


@newest
def test_arguments_that_the_module_does_not_use_are_not_the_engines(machine, tmp_path):
    rows = torch.arange(15.0).reshape(5, 3), torch.zeros(5, 7), torch.arange(5.0)
    here = Subject(TwoInputs(), rows, BuildSettings(cache=str(tmp_path), batch=2))
    execution = execute(runtime("tensorrt-fp32"), here)
    assert execution.note == ""
    mean, picture = execution.outputs
    torch.testing.assert_close(mean, (3 * torch.arange(5.0) + 1) * torch.arange(5.0))
    torch.testing.assert_close(picture, 2 * rows[0])


def engine_file(tmp_path, rename=None, batches=(1, 1, 1), half=False):
    """The small network as an engine that was built elsewhere: with other names, other batches, fp16 at its ends."""
    model = onnx.ModelProto.FromString(subject(tmp_path).exported.model.SerializeToString())
    graph = model.graph
    if half:
        graph.CopyFrom(half_ends(graph))
    old = graph.input[0].name
    for node in graph.node:
        node.input[:] = [rename or old if name == old else name for name in node.input]
    graph.input[0].name = rename or old
    profile = {graph.input[0].name: tuple((batch, 3, 16, 16) for batch in batches)}
    settings = {"backend": "tensorrt", "profile": profile, "directory": tmp_path / "elsewhere"}
    return str(build_engine(model.SerializeToString(), **settings).path.rename(tmp_path / "model.plan"))


def half_ends(graph):
    """The graph with fp16 inputs and outputs."""
    first, last = graph.input[0].name, graph.output[0].name
    nodes = [onnx.helper.make_node("Cast", ["in16"], [first], "up", to=onnx.TensorProto.FLOAT), *graph.node]
    nodes += [onnx.helper.make_node("Cast", [last], ["out16"], "down", to=onnx.TensorProto.FLOAT16)]
    changed = onnx.GraphProto()
    changed.CopyFrom(graph)
    del changed.node[:]
    changed.node.extend(nodes)
    for value, name in ((changed.input[0], "in16"), (changed.output[0], "out16")):
        value.name = name
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    return changed


@newest
@pytest.mark.parametrize(
    ("file", "batch", "took", "note"),
    [
        ({"batches": (4, 4, 4)}, 1, 4, ""),
        ({"batches": (2, 8, 16)}, 1, 8, ""),
        ({"batches": (2, 8, 16)}, 3, 3, ""),
        ({"rename": "pixels"}, 1, 1, ", inputs by their order: pixels is input"),
    ],
)
def test_an_engine_that_is_deployed_is_measured(machine, tmp_path, file, batch, took, note):
    path = engine_file(tmp_path, **file)
    machine.calls()
    here = subject(tmp_path, samples=9, batch=batch, deployed={"tensorrt-fp16": path})
    (made,) = available([], here.settings)
    execution = execute(made, here)
    assert (made.name, execution.status) == ("tensorrt-fp16", "measured")
    assert execution.note == f"model.plan in batches of {took}{note}"
    assert count(machine.calls(), "execute_async_v3") == -(-9 // took)
    assert distance(execution.outputs, here) < 1e-6


@newest
def test_a_deployed_engine_with_fp16_ends(machine, tmp_path):
    path = engine_file(tmp_path, half=True)
    here = subject(tmp_path, samples=2, deployed={"tensorrt-fp16": path})
    outputs = execute(available([], here.settings)[0], here).outputs
    assert outputs[0].dtype == torch.float16
    assert 2**-14 < distance(outputs, here) < 2e-3  # of one rounding by 2^-11 at each end


@pytest.mark.parametrize("content", [None, b"no engine"])
@newest
def test_rejects_a_file_that_is_no_engine(machine, tmp_path, content):
    path = tmp_path / "model.plan"
    if content is not None:
        path.write_bytes(content)
    here = subject(tmp_path, samples=2, deployed={"tensorrt-fp16": str(path)})
    execution = execute(available([], here.settings)[0], here)
    assert execution.status == ("unavailable" if content is None else "failed")
    assert ("there is no file at" if content is None else "does not load the engine") in execution.note


@newest
def test_a_prefix_starts_it_on_another_machine(machine, tmp_path):
    """The parts of the script, the model, the timings and the inputs travel; the engine and the timings come back."""
    command = [shutil.which("env"), sys.executable]
    here = subject(tmp_path, samples=2, command=command)
    execution = execute(runtime("tensorrt-fp32"), here)
    assert execution.status == "measured"
    assert distance(execution.outputs, here) < 1e-6
    assert len([*(tmp_path / "cache").glob("*.timings")]) == 1


@newest
def test_all_perturbations_are_one_process(machine, tmp_path):
    here, entries = subject(tmp_path), perturbations(["bgr", "gamma"])
    pixels = PixelSpace((0.0,) * 3, (1.0,) * 3)
    report = measure_parity(
        here, [runtime("tensorrt-fp32")], perturbations=entries, pixels=pixels, perturb_targets=True, time_limit=600
    )
    calls = machine.calls()
    assert len(entries) == 4
    assert report.target_sensitivity["tensorrt-fp32"].keys() == report.sensitivity.keys() > {"bgr"}
    assert count(calls, "deserialize_cuda_engine") == 3  # the build's look at the layers, the samples, all the others
    moved = {name: metrics[report.unit] for name, metrics in report.sensitivity.items()}
    on_engine = report.target_sensitivity["tensorrt-fp32"]
    np.testing.assert_allclose([on_engine[name] for name in moved], [*moved.values()], rtol=0.2, atol=1e-4)
