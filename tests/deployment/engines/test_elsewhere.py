"""Engines behind a command: what the machine says of itself, builds, runs, keys, and machines that lack something."""

import shutil
import time

import numpy as np
import pytest

from lightning_robust.deployment.engines import (
    BuildSettings,
    EngineError,
    abilities,
    available,
    can_build,
    can_run,
    run_engine,
    runtime,
)
from lightning_robust.deployment.engines.child.process import run_child

from .builds import FP32, GOOD, build, make_model, no_rtx, refusal, script
from .elsewhere import find_interpreters, leftovers, make_environment, make_ssh, make_target, needs_gcc, with_driver

RUN = """
    import numpy as np
    if sys.argv[1] == "build":
        BUILD
    else:
        assert open(spec["engine"], "rb").read() == b"engine"
        with np.load(spec["inputs"]) as stored:
            np.savez(open(spec["outputs"], "wb"), *(2 * stored[name] for name in stored.files))
        json.dump(dict(status="done", names=["twice"], version=sys.version), open(spec["result"], "w"))
""".replace("BUILD", GOOD.replace("\n", "\n    ").strip())


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """A machine with numpy, Polygraphy, and a stand-in for TensorRT-RTX that knows three compute capabilities."""
    folder = tmp_path_factory.mktemp("elsewhere")
    return folder, make_target(folder)


def test_what_a_machine_without_a_device_says(elsewhere):
    _, command = elsewhere
    machine = abilities.ask_machine(command)
    assert machine.packages["numpy"] == np.__version__
    assert (machine.packages["tensorrt"], machine.packages["tensorrt_rtx"]) == ("11.4", "1.9")
    assert machine.required_cuda == {"tensorrt": 13, "tensorrt_rtx": 13}
    assert can_build("tensorrt_rtx", command) == (True, "")
    assert (
        f"none answers behind `{' '.join(command)}`: there is no CUDA driver" in can_build("tensorrt", command).reason
    )
    assert "libcuda.so.1" in can_run("tensorrt_rtx", command).reason
    assert abilities.target_capability("tensorrt_rtx", command) == "SM89"
    assert abilities.library_version("tensorrt", command) == "11.4"


@needs_gcc
def test_what_a_machine_with_devices_says(elsewhere):
    folder, command = elsewhere
    command = with_driver(folder, command, CUDA_DEVICES=2, CAPABILITY=120)
    assert [device["capability"] for device in abilities.ask_machine(command).devices] == ["12.0", "12.0"]
    assert [abilities.device_name(command, index) for index in (0, 1, 2)] == ["Stand-in 0", "Stand-in 1", ""]
    assert can_build("tensorrt_rtx", command) == can_run("tensorrt_rtx", command) == (True, "")
    assert can_build("tensorrt", command) == can_run("tensorrt", command) == (True, "")
    assert abilities.target_capability("tensorrt_rtx", command) == "CURRENT"
    names = [made.name for made in available("auto", BuildSettings(command=command))]
    assert {"tensorrt-fp16", "tensorrt_rtx-fp16"} <= set(names)


UNFIT = {
    "unknown to RTX": (
        {"CAPABILITY": 90},
        "tensorrt_rtx",
        "compute capability 9.0 (Stand-in 0) is not among 7.5, 8.9, 12.0 of TensorRT-RTX 1.9",
    ),
    "known to TensorRT": ({"CAPABILITY": 90}, "tensorrt", ""),
    "an old driver": ({"CUDA_OF_DRIVER": 12020}, "tensorrt", "TensorRT 11.4 was built for CUDA 13, and the driver"),
    "an old driver for RTX": ({"CUDA_OF_DRIVER": 12020}, "tensorrt_rtx", "knows CUDA 12.2"),
    "a newer driver": ({"CUDA_OF_DRIVER": 13010}, "tensorrt", ""),
    "no device": ({"CUDA_ERROR": 100}, "tensorrt", "cuInit gives CUDA_ERROR_NO_DEVICE (100)"),
    "an unknown error": ({"CUDA_ERROR": 803}, "tensorrt", "cuInit gives error 803"),
    "none of them": ({"CUDA_DEVICES": 0}, "tensorrt", "the CUDA driver finds no device"),
}


@needs_gcc
@pytest.mark.parametrize("case", UNFIT)
def test_devices_that_do_not_fit_are_unavailable(elsewhere, case):
    """Before anything is built, in a sentence; and "auto" leaves the target out."""
    folder, command = elsewhere
    settings, backend, words = UNFIT[case]
    command = with_driver(folder, command, **settings)
    able = can_build(backend, command)
    assert (bool(able), words in able.reason) == (not words, True)
    assert bool(can_run(backend, command)) == (not words)
    auto = [made.name for made in available("auto", BuildSettings(command=command))]
    assert (f"{backend}-fp16" in auto) == (not words)
    if words:
        assert refusal(backend=backend, command=command).kind == "unavailable"


@needs_gcc
def test_a_library_that_is_too_old(tmp_path):
    command = make_target(tmp_path)
    (known,) = tmp_path.glob("lib/python*/site-packages/tensorrt_cu13-*/METADATA")
    known.write_text("Metadata-Version: 2.1\nName: tensorrt_cu13\nVersion: 8.5.2.2\n")
    reason = can_build("tensorrt", with_driver(tmp_path, command)).reason
    assert reason.startswith("TensorRT 8.5.2.2 behind `")
    assert reason.endswith("has no strongly typed builds. Install version 10 or newer.")


@pytest.mark.parametrize("python", find_interpreters(8, 9, 10) or [None])
def test_the_scripts_on_older_interpreters(tmp_path, python):
    """As far as they come without packages: what is missing is said as on a machine with the newest Python."""
    if python is None:
        pytest.skip("there is no Python of 3.8 to 3.10 here")
    command = [shutil.which("env"), "-i", python]
    assert abilities.ask_machine(command).python in python or python.startswith("/usr")
    assert "has no package" in can_run("tensorrt", command).reason
    spec = {"backend": "tensorrt", "stand_in": False}
    for verb in ("build", "run", "refit", "support", "inspect"):
        with pytest.raises(EngineError, match="ModuleNotFoundError: No module named 'polygraphy'") as caught:
            run_child(abilities.CHILD_SCRIPT, verb, spec, tmp_path, 60.0, command=command)
        assert caught.value.kind == "unavailable"


def test_packages_that_are_not_there(tmp_path):
    command = make_environment(tmp_path)
    reason = can_build("tensorrt", command).reason
    assert "has no package numpy and no polygraphy and no tensorrt. Install it there." in reason
    assert refusal(backend="tensorrt_rtx", command=command).kind == "unavailable"


def test_a_machine_that_does_not_answer_is_asked_again_after_a_minute(tmp_path, monkeypatch):
    command = make_ssh(tmp_path / "ssh", f'echo x >>"{tmp_path}/asked"; echo "no route" >&2; exit 255')
    for _ in range(3):
        assert "ended with status 255 before Python answered: no route" in can_build("tensorrt", command).reason
    assert (tmp_path / "asked").read_text() == "x\n"
    now = time.monotonic()
    monkeypatch.setattr(abilities.time, "monotonic", lambda: now + 61)
    with pytest.raises(EngineError, match="no route"):
        abilities.ask_machine(command)
    assert (tmp_path / "asked").read_text() == "x\nx\n"
    assert runtime("tensorrt-fp16").can_build(BuildSettings(command=command)).reason.startswith("`")


@needs_gcc
def test_an_engine_is_built_and_run_elsewhere(tmp_path, elsewhere, monkeypatch):
    """Its bytes come back, the cache knows where it belongs, and it is run where it was built, through a shell."""
    folder, command = elsewhere
    script(tmp_path, monkeypatch, RUN)
    words = " ".join(with_driver(folder, command)[2:])
    command = [
        *make_ssh(tmp_path / "ssh", f'echo Welcome; exec env -i {words.rpartition(" ")[0]} sh -c "$*"'),
        command[-1],
    ]
    engine = build(directory=tmp_path / "cache", command=command)
    assert (engine.path.read_bytes(), engine.command, engine.cached) == (b"engine", tuple(command), False)
    assert engine.library == "tensorrt_rtx 1.9"
    x = np.arange(4, dtype=np.float32)
    np.testing.assert_array_equal(run_engine(engine, {"image": x})["twice"], 2 * x)
    assert build(directory=tmp_path / "cache", command=command).cached
    assert leftovers(folder) == []

    other = with_driver(folder, elsewhere[1], CAPABILITY=75)  # a device of the same name behind another command
    keys = {engine.path, build(directory=tmp_path / "cache", command=other).path}
    monkeypatch.setattr(abilities, "device_name", lambda *_: "Another device")
    keys.add(build(directory=tmp_path / "cache", command=command).path)
    assert len(keys) == 3


@pytest.mark.rtx
@no_rtx
def test_tensorrt_rtx_elsewhere(tmp_path):
    """The real library and the real script in an environment with numpy and Polygraphy beside it: as built here."""
    command = make_environment(tmp_path / "elsewhere", "numpy", "polygraphy", "tensorrt_rtx")
    here, there = (build(FP32, directory=tmp_path / "cache", command=where) for where in ([], command))
    assert (there.cached, there.path == here.path) == (False, False)
    assert (there.layers, there.flags, there.library) == (here.layers, here.flags, here.library)
    assert there.path.stat().st_size == there.size == pytest.approx(here.size, rel=0.01)
    error = refusal(model=make_model(antialias=1).SerializeToString(), directory=tmp_path, command=command)
    assert (error.kind, "ntialiasing is not supported" in str(error)) == ("refused", True)
    assert leftovers(tmp_path / "elsewhere") == []
    model = tmp_path / "model.onnx"
    model.write_bytes(make_model(antialias=1).SerializeToString())
    spec = {"backend": "tensorrt_rtx", "stand_in": False}
    files = {"reads": {"model": model}, "command": command}
    result, _ = run_child(abilities.CHILD_SCRIPT, "support", spec, tmp_path, 60.0, **files)
    assert [operator for _, operator, _ in result["refused"]] == ["Resize"]
