"""What can be built and run with and without packages and a device."""

import importlib
import importlib.util

import pytest

from lightning_robust.deployment.engines import abilities, can_build, can_run

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
