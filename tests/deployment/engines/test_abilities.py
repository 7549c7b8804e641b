"""What can be built and run with and without packages and a device."""

import importlib
import importlib.util

import pytest

from lightning_robust.deployment.engines import BuildSettings, abilities, can_build, can_run, runtime

from .builds import refusal


@pytest.mark.parametrize(("backend", "extra"), [("tensorrt", "tensorrt"), ("tensorrt_rtx", "rtx")])
def test_missing_package_names_the_command(tmp_path, monkeypatch, backend, extra):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for able in (can_build(backend), can_run(backend)):
        assert not able
        assert f'pip install "lightning-robust[{extra}]"' in able.reason
    error = refusal(directory=tmp_path, backend=backend)
    assert (error.kind, f'"lightning-robust[{extra}]"' in str(error)) == ("unavailable", True)


def test_abilities_without_a_device(monkeypatch):
    monkeypatch.setattr(abilities, "missing_package", lambda *_: "")
    monkeypatch.setattr(abilities, "device_name", lambda *_: "")
    assert can_build("tensorrt_rtx") == (True, "")
    assert not can_build("tensorrt")
    assert "TensorRT needs a CUDA device to build" in can_build("tensorrt").reason
    for backend in ("tensorrt", "tensorrt_rtx"):
        assert not can_run(backend)
        assert f"running a {backend} engine needs a CUDA device" in can_run(backend).reason
    monkeypatch.setattr(abilities, "device_name", lambda *_: "NVIDIA Something")
    assert can_build("tensorrt") == can_run("tensorrt") == can_run("tensorrt_rtx") == (True, "")


def test_rejects_unknown_backends():
    with pytest.raises(ValueError, match="but got 'openvino'"):
        can_build("openvino")


def test_it_is_the_device_of_the_trainer_that_has_to_do(monkeypatch):
    """A machine with an H100, which TensorRT-RTX lacks, and an L4; a third device is not there."""
    devices = [{"name": "H100", "capability": "9.0"}, {"name": "L4", "capability": "8.9"}]
    known = {"tensorrt_rtx": ["8.6", "8.9"]}
    machine = abilities.Machine("3.11", {"tensorrt_rtx": "1.7"}, devices, "13.0", "", {"tensorrt_rtx": 13}, known)
    monkeypatch.setattr(abilities, "missing_package", lambda *_: "")
    monkeypatch.setattr(abilities, "ask_machine", lambda *_: machine)
    runs = [can_run("tensorrt_rtx", (), device) for device in range(3)]
    assert [bool(able) for able in runs] == [False, True, False]
    assert "compute capability 9.0 (H100) is not among 8.6, 8.9" in runs[0].reason
    settings = [BuildSettings(device=f"cuda:{index}") for index in range(2)]
    assert [bool(runtime("tensorrt_rtx-fp16").can_build(each)) for each in settings] == [False, True]
    assert [bool(can_build("tensorrt", (), device)) for device in range(3)] == [True, True, False]
