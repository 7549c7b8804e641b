"""Facts about `builder`: what a build gives, what the cache does, and what becomes of everything that can go wrong."""

import errno
import importlib.util
import json
import os
import platform
import signal
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from lightning_robust.deployment.engines import abilities, builder
from lightning_robust.deployment.engines import cache as cache_module
from lightning_robust.deployment.engines.builder import EngineError, build_engine, can_build, can_run, run_engine
from lightning_robust.deployment.engines.child import process as _child_process
from lightning_robust.deployment.numerics.convert import to_half

HAVE_RTX = (
    sys.platform == "linux"
    and platform.machine() in ("x86_64", "AMD64")
    and importlib.util.find_spec("tensorrt_rtx") is not None
)
no_rtx = pytest.mark.skipif(not HAVE_RTX, reason='needs Linux x86-64 and: pip install "lightning-robust[rtx]"')
PROFILE = {"image": ((1, 64, 8, 8), (2, 64, 8, 8), (4, 64, 8, 8))}
WEIGHTS = 256 * 64 * 9 + 64 * 256 * 9


def make_model(*, antialias=0):
    """Two convolutions of 147,456 weights each with a Resize between them; batch dynamic."""
    text = f"""<ir_version: 10, opset_import: ["" : 20]>
        g (float[batch,64,8,8] image) => (float[batch,64,4,4] answer) {{
        [wide] a = Conv<pads = [1,1,1,1]>(image, w1)
        [shrink] b = Resize<mode = "linear", antialias = {antialias}>(a, , scales)
        [narrow] answer = Conv<pads = [1,1,1,1]>(b, w2) }}"""
    model = onnx.parser.parse_model(text)
    generator = np.random.default_rng(0)
    weights = {
        "w1": generator.standard_normal((256, 64, 3, 3), np.float32),
        "w2": generator.standard_normal((64, 256, 3, 3), np.float32),
        "scales": np.float32([1, 1, 0.5, 0.5]),
    }
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in weights.items())
    onnx.checker.check_model(model, full_check=True)
    return model


MODEL = make_model()
FP32 = MODEL.SerializeToString()


def build(model=FP32, **settings):
    return build_engine(model, **{"backend": "tensorrt_rtx", "profile": PROFILE, "time_limit": 120.0} | settings)


def script(tmp_path, monkeypatch, body):
    """Put a script in the place of the child; TensorRT counts as installed."""
    path = tmp_path / "child.py"
    path.write_text(
        "import json, os, pathlib, sys, time\nspec = json.load(open(sys.argv[2]))\n" + textwrap.dedent(body)
    )
    monkeypatch.setattr(builder, "_CHILD", path)
    monkeypatch.setattr(abilities, "missing_package", lambda backend: "")


def refusal(**settings):
    with pytest.raises(EngineError) as caught:
        build(**settings)
    return caught.value


GOOD = """
    blob = b"engine"
    open(spec["engine"], "wb").write(blob)
    report = dict(status="done", size=len(blob), seconds=0.5, layers={"wide": "FLOAT"}, flags="STRONGLY_TYPED")
    json.dump(report, open(spec["result"], "w"))
"""


# What TensorRT-RTX really builds


@pytest.mark.rtx
@no_rtx
def test_fp16_engine_is_smaller_and_half(tmp_path):
    full, half = build(directory=tmp_path), build(to_half(MODEL).SerializeToString(), directory=tmp_path)
    names = ("wide", "shrink", "narrow")
    assert [full.layers[name] for name in names] == ["FLOAT"] * 3
    assert [half.layers[name] for name in names] == ["HALF"] * 3
    assert full.size == full.path.stat().st_size
    # two bytes saved a weight, and code that differs by less than a tenth of that
    assert full.size - half.size == pytest.approx(2 * WEIGHTS, rel=0.1)


@pytest.mark.rtx
@no_rtx
def test_kept_nodes_stay_float(tmp_path):
    engine = build(to_half(MODEL, keep_fp32=["narrow"]).SerializeToString(), directory=tmp_path)
    assert [engine.layers[name] for name in ("wide", "shrink", "narrow")] == ["HALF", "HALF", "FLOAT"]


@pytest.mark.rtx
@no_rtx
@pytest.mark.parametrize("stand_in", [False, True])
@pytest.mark.parametrize("tf32", [False, True])
def test_tf32_is_set_only_where_asked(tmp_path, tf32, stand_in):
    backend = "tensorrt" if stand_in else "tensorrt_rtx"
    engine = build(directory=tmp_path, tf32=tf32, backend=backend, stand_in=stand_in)
    assert sorted(engine.flags.split()) == ["STRONGLY_TYPED"] + ["TF32"] * tf32


@pytest.mark.rtx
@no_rtx
def test_second_build_is_cached(tmp_path):
    first, second, other = build(directory=tmp_path), build(directory=tmp_path), build(directory=tmp_path, tf32=True)
    assert [first.cached, second.cached, other.cached] == [False, True, False]
    assert second.path == first.path != other.path
    assert (second.layers, second.flags, second.log) == (first.layers, first.flags, first.log)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".engine", ".engine", ".json", ".json"]


@pytest.mark.rtx
@no_rtx
def test_rebuild_is_byte_identical(tmp_path):
    blobs = {build(directory=tmp_path / str(attempt)).path.read_bytes() for attempt in range(3)}
    assert len(blobs) == 1


@pytest.mark.rtx
@no_rtx
def test_rebuild_in_half_differs_in_a_handful_of_bytes(tmp_path):
    # none here, but 12 of 23,694,708 for a ResNet-18 in fp16 and 36 of 23,830,996 in bf16
    half = to_half(MODEL).SerializeToString()
    blobs = [build(half, directory=tmp_path / str(i)).path.read_bytes() for i in range(2)]
    first, second = (np.frombuffer(blob, np.uint8) for blob in blobs)
    assert np.count_nonzero(first != second) <= 256


@pytest.mark.rtx
@no_rtx
def test_antialiased_resize_is_refused(tmp_path):
    error = refusal(model=make_model(antialias=1).SerializeToString(), directory=tmp_path)
    assert error.kind == "refused"
    first, *rest = str(error).splitlines()
    assert "name: shrink and operator: Resize" in first
    assert "Antialiasing is not supported" in first
    assert rest[0] == "Last lines of its log:"
    assert rest[-1].startswith("Change the model")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.rtx
@no_rtx
@pytest.mark.parametrize(("half", "types"), [(False, "FLOAT"), (True, "HALF")])
def test_stand_in_takes_the_path_of_full_tensorrt(tmp_path, half, types):
    model = to_half(MODEL).SerializeToString() if half else FP32
    engine = build(model, backend="tensorrt", stand_in=True, directory=tmp_path)
    assert engine.stand_in
    assert engine.library.endswith("standing in for TensorRT 11.4.0.106")
    assert engine.layers["wide"] == types
    assert engine.path != build(model, directory=tmp_path).path


@pytest.mark.rtx
@no_rtx
def test_weakly_typed_is_refused_by_tensorrt_11(tmp_path):
    error = refusal(directory=tmp_path, backend="tensorrt", stand_in=True, weakly_typed="fp16")
    assert error.kind == "refused"
    assert "TensorRT 11.4.0.106 has no weakly typed builds" in str(error)
    assert "to_half" in str(error)


@pytest.mark.rtx
@no_rtx
def test_a_full_disk_in_the_child(tmp_path):
    (tmp_path / "model.onnx").write_bytes(FP32)
    settings = {"backend": "tensorrt_rtx", "profile": PROFILE, "tf32": False, "weakly_typed": None}
    settings |= {"stand_in": False, "refit": False}
    files = {"model": str(tmp_path / "model.onnx"), "engine": "/dev/full", "target": "SM89"}
    with pytest.raises(EngineError) as caught:
        _child_process.run_child(builder._CHILD, "build", settings | files, tmp_path, 120.0)
    assert caught.value.kind == "disk"
    assert "No space left" in str(caught.value)


@pytest.mark.rtx
@no_rtx
def test_training_process_imports_no_tensorrt(tmp_path, monkeypatch):
    libraries = ("tensorrt", "polygraphy")
    for name in [name for name in sys.modules if name.startswith(libraries)]:
        monkeypatch.delitem(sys.modules, name)
    assert not build(directory=tmp_path).cached
    assert [name for name in sys.modules if name.startswith(libraries)] == []


@pytest.mark.rtx
@no_rtx
@pytest.mark.skipif(bool(abilities.device_name()), reason="there is a CUDA device: the engine would run")
def test_run_gets_as_far_as_the_driver(tmp_path, monkeypatch):
    engine = build(directory=tmp_path)
    monkeypatch.setattr(abilities, "device_name", lambda: "a device that is not there")
    with pytest.raises(EngineError, match="Could not deserialize engine") as caught:
        run_engine(engine, {"image": np.zeros((1, 64, 8, 8), np.float32)})
    assert caught.value.kind == "refused"


@pytest.mark.skipif(not can_run("tensorrt_rtx"), reason=can_run("tensorrt_rtx").reason)
def test_run_matches_onnxruntime(tmp_path):
    import onnxruntime

    image = np.random.default_rng(1).standard_normal((2, 64, 8, 8), np.float32)
    (expected,) = onnxruntime.InferenceSession(FP32, providers=["CPUExecutionProvider"]).run(None, {"image": image})
    answer = run_engine(build(directory=tmp_path), {"image": image})["answer"]
    # fp32 sums of 2,304 products in another order; 1e-4 is the tolerance of the fp32 targets
    assert np.linalg.norm(answer - expected) < 1e-4 * np.linalg.norm(expected)


# What goes wrong


def test_crash(tmp_path, monkeypatch):
    script(tmp_path, monkeypatch, "print('about to fall', flush=True)\nos.kill(os.getpid(), 11)")
    error = refusal(directory=tmp_path / "cache")
    assert error.kind == "crashed"
    assert "signal SIGSEGV" in str(error)
    assert "about to fall" in str(error)
    assert list((tmp_path / "cache").iterdir()) == []


def test_exit_status(tmp_path, monkeypatch):
    script(tmp_path, monkeypatch, "sys.exit(3)")
    error = refusal(directory=tmp_path / "cache")
    assert (error.kind, "status 3" in str(error)) == ("crashed", True)


def test_hang_is_killed_with_its_children(tmp_path, monkeypatch):
    body = f"""
        import subprocess
        child = subprocess.Popen(["sleep", "60"])
        pathlib.Path({str(tmp_path / "pid")!r}).write_text(str(child.pid))
        time.sleep(60)
    """
    script(tmp_path, monkeypatch, body)
    started = time.perf_counter()
    error = refusal(directory=tmp_path / "cache", time_limit=2.0)
    assert error.kind == "timed_out"
    assert "after its time limit of 2 s" in str(error)
    assert time.perf_counter() - started < 10
    state = Path(f"/proc/{(tmp_path / 'pid').read_text()}/stat")
    deadline = time.perf_counter() + 5
    while state.exists() and state.read_text().split()[2] != "Z" and time.perf_counter() < deadline:
        time.sleep(0.05)
    assert not state.exists() or state.read_text().split()[2] == "Z"


@pytest.mark.parametrize(
    "body",
    [
        "pass",
        "open(spec['result'], 'w').write('{')",
        "open(spec['result'], 'w').write('[1]')",
        "json.dump({'status': 'splendid'}, open(spec['result'], 'w'))",
        "json.dump({'status': 'done'}, open(spec['result'], 'w'))",
        GOOD.replace('wb").write(blob)', 'wb")'),
        GOOD.replace("size=len(blob)", "size=7"),
        GOOD.replace('layers={"wide": "FLOAT"}', "layers=None"),
        GOOD.replace('b"engine"', 'b""'),
    ],
)
def test_garbage(tmp_path, monkeypatch, body):
    script(tmp_path, monkeypatch, body)
    assert refusal(directory=tmp_path / "cache").kind == "garbage"
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("damage", [lambda p: p.write_bytes(b""), lambda p: p.write_bytes(b"enginE"), Path.unlink])
@pytest.mark.parametrize("suffix", [".engine", ".json"])
def test_corrupt_cache_entry_is_rebuilt(tmp_path, monkeypatch, damage, suffix):
    script(tmp_path, monkeypatch, GOOD)
    first = build(directory=tmp_path / "cache")
    assert build(directory=tmp_path / "cache").cached
    damage(first.path.with_suffix(suffix))
    again = build(directory=tmp_path / "cache")
    assert (again.cached, again.path.read_bytes()) == (False, b"engine")
    assert build(directory=tmp_path / "cache").cached


def test_cache_keeps_the_engines_used_last(tmp_path, monkeypatch):
    script(tmp_path, monkeypatch, GOOD)
    monkeypatch.setattr(cache_module, "MAX_ENGINES", 2)
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "notes.engine").touch()

    def take(largest):
        return build(directory=cache, profile={"image": ((1, 64, 8, 8), (1, 64, 8, 8), (largest, 64, 8, 8))})

    first, second, again, third = take(1), take(2), take(1), take(3)
    assert [first.cached, second.cached, again.cached, third.cached] == [False, False, True, False]
    left = {first.path, third.path} | {e.path.with_suffix(".json") for e in (first, third)}
    assert set(cache.iterdir()) == left | {cache / "notes.engine"}


def test_key_is_everything_the_engine_depends_on(tmp_path, monkeypatch):
    script(tmp_path, monkeypatch, GOOD)
    wide = {"image": ((1, 64, 8, 8), (2, 64, 8, 8), (8, 64, 8, 8))}
    other = make_model()
    other.graph.node[0].name = "renamed"
    variants = [{}, {"tf32": True}, {"profile": wide}, {"model": other.SerializeToString()}]
    full = {"backend": "tensorrt", "stand_in": True}
    variants += [full, full | {"weakly_typed": "fp16"}]
    paths = [build(**{"model": FP32} | variant, directory=tmp_path / "cache").path for variant in variants]
    monkeypatch.setattr(abilities, "library_version", lambda package: "99")
    paths.append(build(directory=tmp_path / "cache").path)
    monkeypatch.setattr(abilities, "device_name", lambda: "NVIDIA Something")
    paths += [build(directory=tmp_path / "cache").path, build(directory=tmp_path / "cache", backend="tensorrt").path]
    assert len(set(paths)) == len(paths) == 9


def test_directory_that_cannot_be_written(tmp_path, monkeypatch):
    script(tmp_path, monkeypatch, GOOD)
    (tmp_path / "file").touch()
    error = refusal(directory=tmp_path / "file" / "cache")
    assert error.kind == "disk"
    assert "file/cache cannot be written: [Errno 20] Not a directory" in str(error)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes into read-only directories")
def test_read_only_directory(tmp_path, monkeypatch):
    script(tmp_path, monkeypatch, GOOD)
    (tmp_path / "cache").mkdir(mode=0o500)
    assert refusal(directory=tmp_path / "cache").kind == "disk"


def test_full_disk(tmp_path, monkeypatch):
    script(tmp_path, monkeypatch, GOOD)

    def full(self, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "replace", full)
    error = refusal(directory=tmp_path / "cache")
    assert (error.kind, "No space left on device" in str(error)) == ("disk", True)
    assert list((tmp_path / "cache").iterdir()) == []


def test_default_directory(tmp_path, monkeypatch):
    script(tmp_path, monkeypatch, GOOD)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert build().path.parent == tmp_path / "xdg" / "lightning_robust" / "engines"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert build().path.parent == tmp_path / "home" / ".cache" / "lightning_robust" / "engines"


def test_relative_directory(tmp_path, monkeypatch):
    script(tmp_path, monkeypatch, GOOD)
    monkeypatch.chdir(tmp_path)
    assert build(directory=Path("cache")).path.parent == tmp_path / "cache"


def test_children_do_not_see_the_package_or_the_switch(tmp_path, monkeypatch):
    monkeypatch.setenv("POLYGRAPHY_USE_TENSORRT_RTX", "1")
    body = """
    print(str(pathlib.Path(__file__).parent) in sys.path, "POLYGRAPHY_USE_TENSORRT_RTX" in os.environ)
    """
    script(tmp_path, monkeypatch, body + GOOD)
    assert build(directory=tmp_path / "cache").log.strip() == "False False"


# What is refused before a build


@pytest.mark.parametrize(("backend", "extra"), [("tensorrt", "tensorrt"), ("tensorrt_rtx", "rtx")])
def test_missing_package_names_the_command(tmp_path, monkeypatch, backend, extra):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for able in (can_build(backend), can_run(backend)):
        assert not able
        assert f'pip install "lightning-robust[{extra}]"' in able.reason
    error = refusal(directory=tmp_path, backend=backend)
    assert (error.kind, f'"lightning-robust[{extra}]"' in str(error)) == ("unavailable", True)


def test_abilities_without_a_device(monkeypatch):
    monkeypatch.setattr(abilities, "missing_package", lambda backend: "")
    monkeypatch.setattr(abilities, "device_name", lambda: "")
    assert can_build("tensorrt_rtx") == (True, "")
    assert not can_build("tensorrt")
    assert "TensorRT needs a CUDA device to build" in can_build("tensorrt").reason
    for backend in ("tensorrt", "tensorrt_rtx"):
        assert not can_run(backend)
        assert f"running a {backend} engine needs a CUDA device" in can_run(backend).reason
    monkeypatch.setattr(abilities, "device_name", lambda: "NVIDIA Something")
    assert can_build("tensorrt") == can_run("tensorrt") == can_run("tensorrt_rtx") == (True, "")


def test_run_is_refused_without_a_device(tmp_path, monkeypatch):
    script(tmp_path, monkeypatch, GOOD)
    monkeypatch.setattr(abilities, "device_name", lambda: "")
    engine = build(directory=tmp_path / "cache")
    with pytest.raises(EngineError, match="needs a CUDA device") as caught:
        run_engine(engine, {"image": np.zeros((1, 64, 8, 8), np.float32)})
    assert caught.value.kind == "unavailable"


def test_run_brings_arrays_there_and_back(tmp_path, monkeypatch):
    # stands in for the device alone: the script answers as TrtRunner would, names with slashes and "file" included
    script(tmp_path, monkeypatch, GOOD)
    engine = build(directory=tmp_path / "cache")
    body = """
        import numpy as np
        arrays = np.load(spec["inputs"])
        feed = {name: arrays[f"arr_{index}"] for index, name in enumerate(spec["names"])}
        np.savez(spec["outputs"], *[2 * value for value in feed.values()])
        json.dump(dict(status="done", names=[name + "/twice" for name in feed]), open(spec["result"], "w"))
    """
    script(tmp_path, monkeypatch, body)
    monkeypatch.setattr(abilities, "device_name", lambda: "NVIDIA Something")
    outputs = run_engine(engine, {"a/b": np.float32([1.5]), "file": np.array([[3]])})
    assert {name: value.tolist() for name, value in outputs.items()} == {"a/b/twice": [3.0], "file/twice": [[6]]}
    script(tmp_path, monkeypatch, "json.dump(dict(status='done', names=['y']), open(spec['result'], 'w'))")
    with pytest.raises(EngineError) as caught:
        run_engine(engine, {"a": np.float32([1])})
    assert caught.value.kind == "garbage"


def test_rejects_weakly_typed_rtx(tmp_path, monkeypatch):
    script(tmp_path, monkeypatch, GOOD)
    error = refusal(directory=tmp_path / "cache", weakly_typed="fp16")
    assert (error.kind, "to_half" in str(error)) == ("refused", True)


def test_rejects_other_weak_types():
    with pytest.raises(ValueError, match="`weakly_typed` to be \"fp16\" or None, but got 'int8'"):
        build(backend="tensorrt", weakly_typed="int8")


def test_rejects_stand_in_for_rtx():
    with pytest.raises(ValueError, match='backend="tensorrt" with stand_in=True'):
        build(stand_in=True)


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_rejects_time_limits_that_are_none(seconds):
    with pytest.raises(ValueError, match="`time_limit` to be a positive number of seconds"):
        build(time_limit=seconds)


def test_rejects_unknown_backends():
    with pytest.raises(ValueError, match="but got 'openvino'"):
        can_build("openvino")


def test_rejects_other_bytes():
    with pytest.raises(ValueError, match="serialised ONNX model"):
        build(b"no model")


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        ({}, r"none came for 'image' of shape \['batch', 64, 8, 8\]"),
        ({"picture": PROFILE["image"]}, r"inputs \['image'\], but got one for \['picture'\]"),
        ({"image": ((1, 64), (2, 64), (4, 64))}, "shapes of 4 dimensions"),
        ({"image": ((4, 64, 8, 8), (2, 64, 8, 8), (1, 64, 8, 8))}, "smallest <= usual <= largest"),
        ({"image": ((1, 64, 8, 8), (2, 64, 8, 8), (4, 64, 8, 16))}, r"static sizes of \(None, 64, 8, 8\)"),
    ],
)
def test_rejects_profiles_that_do_not_fit(profile, message):
    with pytest.raises(ValueError, match=message):
        build(profile=profile)


def test_static_inputs_need_no_profile(tmp_path, monkeypatch):
    script(tmp_path, monkeypatch, "print(json.dumps(spec['profile']))" + textwrap.dedent(GOOD))
    model = make_model()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    log = build(model.SerializeToString(), profile={}, directory=tmp_path / "cache").log
    assert json.loads(log) == {"image": [[2, 64, 8, 8]] * 3}


def test_message_says_what_why_and_what_to_do():
    log = "\n".join(f"line {i}\n" for i in range(20))
    lines = str(EngineError("timed_out", "It took too long.", log)).splitlines()
    assert lines[:3] == ["It took too long.", "Last lines of its log:", "line 8"]
    assert lines[-2] == "line 19"
    assert lines[-1].startswith("Raise the time limit")


@pytest.mark.parametrize(("code", "words"), [(1, "status 1"), (-signal.SIGSEGV, "signal SIGSEGV"), (-99, "signal -99")])
def test_exit_in_words(code, words):
    assert _child_process._name_exit(code) == words.replace("-", "")
