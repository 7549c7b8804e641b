"""What a build gives, and what is refused before one."""

import textwrap

import numpy as np
import pytest

from lightning_robust.deployment.engines import abilities, builder
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


@pytest.mark.parametrize(
    ("index", "visible", "name"),
    [
        (0, None, ""),
        (0, "3,1", ""),
        (1, None, "1"),
        (1, "", "1"),
        (1, "3,1", "1"),
        (0, "3", ""),
        (2, "7, GPU-5e1d ,MIG-0a", "MIG-0a"),
        (1, "7, GPU-5e1d ,MIG-0a", "GPU-5e1d"),
        (4, "0,1", "4"),
    ],
)
def test_a_child_sees_the_device_of_this_process(monkeypatch, index, visible, name):
    """As CUDA counts: the i-th of this process is the i-th that the variable names."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert builder.visible_device(index) == name
    assert builder.visible_device(index, ["ssh", "orin", "python3"]) == (str(index) if index else "")


def test_devices_of_one_kind_share_an_engine(tmp_path, monkeypatch):
    """An engine is for a kind of device; the child sees the one that was asked for."""
    script(tmp_path, monkeypatch, "print(json.dumps(spec['device']))" + textwrap.dedent(GOOD))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(abilities, "device_name", lambda command=(), index=0: ["A100", "T4", "A100"][index])
    first, second, third = (build(directory=tmp_path / "cache", device=index) for index in range(3))
    assert [engine.log.strip() for engine in (first, second)] == ['""', '"1"']
    assert [engine.device for engine in (first, second, third)] == [0, 1, 2]
    assert [engine.cached for engine in (first, second, third)] == [False, False, True]
    assert first.path == third.path != second.path
