"""What a build gives, and what is refused before one."""

import numpy as np
import pytest

from lightning_robust.deployment.engines import EngineError, abilities, can_run, run_engine
from lightning_robust.deployment.numerics.convert import to_half

from .builds import FP32, GOOD, MODEL, WEIGHTS, build, make_model, no_rtx, refusal, script


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
@pytest.mark.skipif(bool(abilities.device_name()), reason="there is a CUDA device: the engine would run")
def test_run_gets_as_far_as_the_driver(tmp_path, monkeypatch):
    engine = build(directory=tmp_path)
    monkeypatch.setattr(abilities, "device_name", lambda *_: "a device that is not there")
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


def test_run_is_refused_without_a_device(tmp_path, monkeypatch):
    script(tmp_path, monkeypatch, GOOD)
    monkeypatch.setattr(abilities, "device_name", lambda *_: "")
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
    monkeypatch.setattr(abilities, "device_name", lambda *_: "NVIDIA Something")
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
