"""TensorRT as a target of a parity pass, from the module to its outputs, over the stand-in that answers like fp32."""

import numpy as np
import pytest
import torch

from lightning_robust.deployment.engines import BuildSettings, Subject, runtime
from lightning_robust.deployment.engines.execution import execute
from lightning_robust.deployment.graph.export import frozen_copy
from lightning_robust.deployment.parity.measure import measure_parity
from lightning_robust.deployment.pixels.catalogue import perturbations
from lightning_robust.functional.pixels import PixelSpace

from ...models import SmallCNN, images

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
    """bf16 is built, and refused when it runs: ONNX Runtime has no kernels for it, and the stand-in no others."""
    execute(runtime(target), subject(tmp_path, tf32=tf32))
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
