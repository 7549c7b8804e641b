"""Runs in a child process: what goes there in batches, what comes back, and who cannot run."""

import numpy as np
import pytest

from lightning_robust.deployment.engines import (
    EngineError,
    abilities,
    can_run,
    load_engine_file,
    run_batches,
    run_engine,
    runs,
)

from .builds import FP32, GOOD, build, no_rtx, script


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


DOUBLE = """
    import numpy as np
    log = pathlib.Path(__file__).with_name("jobs")
    log.write_text((log.read_text() if log.exists() else "") + f"{spec['batches']} {spec['timed_runs']}\\n")
    arrays = np.load(spec["inputs"])
    outputs = [2 * arrays[f"arr_{i}"] for i in range(spec["batches"] * len(spec["names"]))]
    np.savez(spec["outputs"], *outputs)
    names, latencies = [name + "/twice" for name in spec["names"]], [0.5] * spec["timed_runs"]
    json.dump(dict(status="done", names=names, latencies=latencies), open(spec["result"], "w"))
"""


@pytest.fixture
def doubler(tmp_path, monkeypatch):
    """An engine whose child doubles everything; and what its children were told: (batches, timed runs)."""
    script(tmp_path, monkeypatch, GOOD)
    engine = build(directory=tmp_path / "cache")
    script(tmp_path, monkeypatch, DOUBLE)
    monkeypatch.setattr(abilities, "device_name", lambda *_: "NVIDIA Something")

    def told():
        path = tmp_path / "jobs"
        lines = path.read_text().splitlines() if path.exists() else []
        return [tuple(map(int, line.split())) for line in lines]

    return engine, told


@pytest.mark.parametrize(
    ("bytes_a_job", "jobs"),
    [(1 << 30, [(5, 3)]), (80, [(2, 3), (2, 0), (1, 0)]), (79, [(1, 3)] + [(1, 0)] * 4), (0, [(1, 3)] + [(1, 0)] * 4)],
)
def test_batches_are_divided_by_their_bytes_and_come_back_in_order(doubler, monkeypatch, bytes_a_job, jobs):
    """A batch has 3 * 8 + 2 * 8 = 40 bytes. One that is larger than a job is a job of its own."""
    engine, told = doubler
    monkeypatch.setattr(runs, "_JOB", bytes_a_job)
    batches = [{"x": np.full((1, 3), float(i)), "k": np.array([i, -i])} for i in range(5)]
    ran = run_batches(engine, iter(batches), timed_runs=3)
    assert told() == jobs
    assert [{name: value.tolist() for name, value in outputs.items()} for outputs in ran.outputs] == [
        {"x/twice": [[2.0 * i] * 3], "k/twice": [2 * i, -2 * i]} for i in range(5)
    ]
    assert ran.latencies == (0.5, 0.5, 0.5)


def test_a_generator_of_batches_is_never_held_whole(doubler, monkeypatch):
    """Of 6 batches of 40 bytes no more than two and the next are made before the first job starts."""
    engine, told = doubler
    monkeypatch.setattr(runs, "_JOB", 80)
    made = []

    def batches():
        for i in range(6):
            made.append(len(told()))
            yield {"x": np.full(5, float(i))}

    assert len(run_batches(engine, batches()).outputs) == 6
    assert made == [0, 0, 0, 1, 1, 2]


def test_no_batch_is_no_job(doubler):
    engine, _ = doubler
    assert run_batches(engine, []) == runs.EngineRun([])


def test_scalars_and_empty_arrays_travel(doubler):
    engine, _ = doubler
    outputs = run_engine(engine, {"s": np.array(1.5, np.float16), "none": np.zeros((0, 3), bool)})
    assert outputs["s/twice"].shape == ()
    assert outputs["s/twice"].dtype == np.float16
    assert outputs["none/twice"].shape == (0, 3)


@pytest.mark.parametrize("names", ["['y']", "['y', 'z', 'w']", "None"])
def test_outputs_that_are_not_those_that_are_named_are_garbage(doubler, tmp_path, monkeypatch, names):
    engine, _ = doubler
    body = f"""
        import numpy as np
        np.savez(spec["outputs"], *[np.zeros(1)] * 2)
        json.dump(dict(status="done", names={names}), open(spec["result"], "w"))
    """
    script(tmp_path, monkeypatch, body)
    with pytest.raises(EngineError) as caught:
        run_batches(engine, [{"x": np.zeros(1)}] * 3)
    assert caught.value.kind == "garbage"


def test_a_file_is_what_its_child_says_of_it(tmp_path, monkeypatch):
    body = """
        blob = open(spec["engine"], "rb").read()
        tensors = dict(x=dict(mode="INPUT", type="HALF", shape=[-1, 2], profile=[[1, 2]] * 3))
        result = dict(status="done", tensors=tensors, inspector=blob.decode(), version="10.3")
        json.dump(result, open(spec["result"], "w"))
    """
    script(tmp_path, monkeypatch, body)
    monkeypatch.setattr(abilities, "device_name", lambda *_: "NVIDIA Something")
    path = tmp_path / "model.engine"
    path.write_bytes(b"layers")
    engine = load_engine_file(path, "tensorrt")
    assert (engine.path, engine.size, engine.inspector, engine.library) == (path, 6, "layers", "tensorrt 10.3")
    assert engine.tensors["x"]["type"] == "HALF"
    with pytest.raises(EngineError, match="There is no engine") as caught:
        load_engine_file(tmp_path / "other.engine", "tensorrt")
    assert caught.value.kind == "disk"
