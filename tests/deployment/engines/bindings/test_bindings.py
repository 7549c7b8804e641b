"""The child on NVIDIA's own Python bindings of TensorRT 10 and 11, over a stand-in for the libraries and the GPU.

Enumerations, base classes and signatures are the real ones, and so are Polygraphy and the interface of the CUDA
runtime. No kernel of NVIDIA's runs: ONNX Runtime computes what an engine answers, in the memory of the host. What is
shown is that everything up to the kernels is called as it can be called, and that what comes back is taken apart
rightly. Nothing here is a number of an engine.
"""

import json
import subprocess
import sys
import textwrap

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
from onnx import numpy_helper

from lightning_robust.deployment.engines import (
    EngineError,
    build_engine,
    builder,
    can_build,
    load_engine_file,
    run_batches,
)
from lightning_robust.deployment.engines import runs as runs_module
from lightning_robust.deployment.engines.child.process import run_child
from lightning_robust.deployment.numerics.convert import to_half

from .machine import DEVICE

pytestmark = pytest.mark.bindings
newest = pytest.mark.parametrize("version", ["11"], indirect=True)
"""What does not depend on the version of the bindings."""

TEXT = """<ir_version: 10, opset_import: ["" : 20]>
    g (float[n,2] x, int64[n] k, bool[n] m, float s) => (float[n,2] y, int64[n] i, bool[n] b, float16[n,2] h)
    <float[2] w = {1, 2}, float[2] v = {0.5, -1}> {
    [scale] a = Mul(x, w) [move] c = Add(a, v) [gain] y = Mul(c, s) [count] i = Add(k, k) [flip] b = Not(m)
    [half] h = Cast<to = 10>(y) }"""
MODEL = onnx.parser.parse_model(TEXT)
PROFILE = {"x": ((1, 2), (2, 2), (4, 2)), "k": ((1,), (2,), (4,)), "m": ((1,), (2,), (4,))}
LAYERS = {"scale": "FLOAT", "move": "FLOAT", "gain": "FLOAT", "count": "INT64", "flip": "BOOL", "half": "HALF"}


def build(tmp_path, model=MODEL, **settings):
    settings = {"backend": "tensorrt", "profile": PROFILE, "directory": tmp_path / "cache"} | settings
    return build_engine(model.SerializeToString(), **settings)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A folder for engines that several tests only run."""
    return tmp_path_factory.mktemp("shared")


def with_weights(*values):
    """The model with other weights."""
    model = onnx.ModelProto.FromString(MODEL.SerializeToString())
    for tensor, value in zip(model.graph.initializer, values, strict=True):
        tensor.CopyFrom(numpy_helper.from_array(np.float32(value), tensor.name))
    return model


def batch(rows, seed=0):
    """Inputs that lie in memory in another order than C's, as transposed pictures do."""
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((2, rows)).astype(np.float32).T
    s = np.array(3, np.float32)
    return {"x": x, "k": generator.integers(0, 9, rows), "m": generator.random(rows) > 0.5, "s": s}


def answers(model, feed):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feed), strict=True))


def named(calls, *names):
    return [call for call in calls if call[0].split(".")[-1] in names]


# The stand-in itself


def test_the_stand_in_refuses_what_the_bindings_refuse(machine):
    """An attribute that the class of this version lacks, an argument of another type, a call of another shape."""
    script = """
    import tensorrt, tensorrt_bindings as real
    config = tensorrt.Builder(tensorrt.Logger()).create_builder_config()
    assert type(config).real is real.IBuilderConfig and isinstance(config, real.IBuilderConfig)
    config.set_flag(tensorrt.BuilderFlag.REFIT)

    def refuses(kind, wrong):
        try:
            wrong()
        except kind:
            return True

    assert refuses(AttributeError, lambda: config.set_flags)
    assert refuses(AttributeError, lambda: setattr(config, "max_workspace_size", 1))
    assert refuses(TypeError, lambda: config.set_flag("REFIT"))
    assert refuses(TypeError, lambda: config.set_flag(tensorrt.MemoryPoolType.WORKSPACE))
    assert refuses(TypeError, lambda: config.set_flag())
    assert refuses(TypeError, lambda: config.set_memory_pool_limit(tensorrt.MemoryPoolType.WORKSPACE, 1.5))
    assert refuses(TypeError, lambda: config.set_timing_cache(cache=b"", ignore_mismatch=False))
    assert refuses(TypeError, lambda: setattr(config, "profiling_verbosity", 1))
    assert refuses(TypeError, lambda: tensorrt.Runtime("logger"))
    assert refuses(NotImplementedError, lambda: config.reset)  # there, and not stood in for
    print(real.__version__, *tensorrt.STAND_IN_LACKS)
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True, timeout=60
    )
    number, *lacks = run.stdout.split()
    assert number == machine.library
    assert lacks == {"10": [], "11": ["IBuilderConfig.get_quantization_flag"]}[machine.version]


# Builds


@pytest.mark.parametrize(("tf32", "refit", "workspace"), [(False, True, 1.5), (True, False, None)])
def test_every_flag_reaches_the_builder(machine, tmp_path, tf32, refit, workspace):
    engine = build(tmp_path, tf32=tf32, refit=refit, workspace=workspace)
    calls = machine.calls()
    assert engine.flags.split() == ["STRONGLY_TYPED"] + ["REFIT"] * refit + ["TF32"] * tf32
    assert engine.layers == LAYERS
    assert ["Builder.create_network", {"10": 2, "11": 1}[machine.version]] in calls  # the bit of STRONGLY_TYPED
    limits = [call[1:] for call in named(calls, "set_memory_pool_limit")]
    assert limits == ([["WORKSPACE", 3 << 29]] if workspace else [])
    assert ["IBuilderConfig.profiling_verbosity", "DETAILED"] in calls
    assert [call[1:] for call in named(calls, "set_shape")] == [
        [name, *map(list, shapes)] for name, shapes in (PROFILE | {"s": ((), (), ())}).items()
    ]
    plan = machine.plan(tmp_path / "cache")
    assert plan["flags"] == ["REFIT"] * refit + ["TF32"] * tf32
    assert (engine.size, engine.library) == (engine.path.stat().st_size, f"tensorrt {machine.library}")
    assert [layer["Name"] for layer in json.loads(engine.inspector)["Layers"]] == list(LAYERS)


def test_weakly_typed_is_a_flag_of_ten_and_refused_by_eleven(machine, tmp_path):
    if machine.version == "10":
        engine = build(tmp_path, weakly_typed="fp16")
        assert engine.flags.split() == ["FP16"]
        assert ["Builder.create_network", 0] in machine.calls()
        return
    with pytest.raises(EngineError, match=r"TensorRT 11\.\S+ has no weakly typed builds") as caught:
        build(tmp_path, weakly_typed="fp16")
    assert caught.value.kind == "refused"
    assert named(machine.calls(), "create_network") == []


def test_half_precision_is_in_the_graph(machine, tmp_path):
    engine = build(tmp_path, to_half(MODEL, keep_fp32=["move"]))
    assert engine.flags == "STRONGLY_TYPED"
    assert [engine.layers[name] for name in ("scale", "move", "gain")] == ["HALF", "FLOAT", "HALF"]


def test_a_node_that_the_parser_lacks_is_named(machine, tmp_path):
    text = '<ir_version: 9, opset_import: ["" : 17]> g (float[2,2] x) => (float y) { [area] y = Det(x) }'
    model = onnx.parser.parse_model(text)
    with pytest.raises(EngineError, match="no importer for Det") as caught:
        build(tmp_path, model, profile={})
    assert caught.value.kind == "refused"
    (tmp_path / "model").write_bytes(model.SerializeToString())
    spec, reads = {"backend": "tensorrt", "stand_in": False}, {"model": tmp_path / "model"}
    result, _ = run_child(builder._CHILD, "support", spec, tmp_path, 60.0, reads=reads)
    assert result["refused"] == [[0, "Det", "no importer for Det (node area)"]]


# The timings of earlier builds


def timed(engine):
    (line,) = [line for line in engine.log.splitlines() if line.startswith("[I] timed")]
    return int(line.split()[2])


def test_a_second_build_times_only_what_is_new(machine, tmp_path):
    other = onnx.ModelProto.FromString(MODEL.SerializeToString())
    other.graph.node[0].name = "another"
    assert [timed(build(tmp_path, model)) for model in (MODEL, with_weights([3, 4], [5, 6]), other)] == [6, 0, 1]
    (file,) = (tmp_path / "cache").glob("*.timings")
    assert json.loads(file.read_bytes()[32:])[2] == sorted({*LAYERS, "another"})


@newest
def test_timings_that_the_library_refuses_are_made_anew(machine, tmp_path):
    """As after a change that the file's name does not tell, of the driver for instance."""
    build(tmp_path)
    (file,) = (tmp_path / "cache").glob("*.timings")
    copy = tmp_path / "cache" / "copy"
    for left_over in (b"rubbish", json.dumps(["9.0", DEVICE, ["scale"]]).encode()):
        copy.write_bytes(left_over)
        builder.TimingFile(tmp_path / "cache", f"tensorrt {machine.library}", DEVICE).keep(copy)
        assert timed(build(tmp_path, with_weights([3, len(left_over)], [5, 6]))) == 6
        assert json.loads(file.read_bytes()[32:])[0] == machine.library


@newest
def test_another_device_has_other_timings(machine, tmp_path, monkeypatch):
    build(tmp_path)
    machine.become(monkeypatch, device="Another device")
    assert timed(build(tmp_path)) == 6
    assert len([*(tmp_path / "cache").glob("*.timings")]) == 2


# Runs


def test_many_batches_are_one_process_with_one_engine(machine, shared):
    engine, feeds = build(shared), [batch(1 + seed % 4, seed) for seed in range(16)]
    machine.calls()
    ran = run_batches(engine, feeds)
    calls = machine.calls()
    assert len(named(calls, "deserialize_cuda_engine")) == len(named(calls, "create_execution_context")) == 1
    assert len(named(calls, "execute_async_v3")) == 16
    assert named(calls, "torch") == [["torch", False]] * 16  # Polygraphy imports it, for seconds, unless it is kept out
    for feed, outputs in zip(feeds, ran.outputs, strict=True):
        expected = answers(MODEL, feed)
        assert list(outputs) == list(expected)
        for name, value in expected.items():
            assert outputs[name].dtype == value.dtype
            np.testing.assert_array_equal(outputs[name], value)
    assert ran.latencies == ()


@newest
def test_more_than_a_job_are_several_processes(machine, shared, monkeypatch):
    """A batch of one sample is 2 * 4 + 8 + 1 + 4 bytes here."""
    monkeypatch.setattr(runs_module, "_JOB", 21 * 3)
    engine, feeds = build(shared), [batch(1, seed) for seed in range(7)]
    machine.calls()
    outputs = run_batches(engine, feeds, timed_runs=5)
    calls = machine.calls()
    assert len(named(calls, "deserialize_cuda_engine")) == 3
    assert len(named(calls, "execute_async_v3")) == 7 + 5
    assert [float(o["y"][0, 0]) for o in outputs.outputs] == [float(answers(MODEL, f)["y"][0, 0]) for f in feeds]
    assert len(outputs.latencies) == 5
    assert 0 < min(outputs.latencies) <= max(outputs.latencies) < 1


@newest
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": np.zeros(1, np.int32)}, "unexpected dtype"),
        ({"x": np.zeros((1, 3), np.float32)}, "incompatible shape"),
        ({"x": np.zeros((5, 2), np.float32)}, "failed to set shape"),
        ({"z": np.zeros(1)}, "z"),
    ],
)
def test_rejects_inputs_that_the_engine_does_not_take(machine, shared, change, message):
    with pytest.raises(EngineError, match=message) as caught:
        run_batches(build(shared), [batch(1) | change])
    assert caught.value.kind == "refused"
    assert "Pass the inputs by name, in the types and shapes" in str(caught.value)


# Refits


def test_a_refitted_engine_answers_with_the_new_weights(machine, tmp_path):
    changed, feed = with_weights([3, 4], [5, 6]), batch(2)
    first, second = (build(tmp_path, model, refit=True) for model in (MODEL, changed))
    calls = machine.calls()
    assert len(named(calls, "build_serialized_network")) == 1
    assert [call[0] for call in calls if "Refitter" in call[0]] == [
        "Refitter.__init__",
        "Refitter.get_all_weights",
        "OnnxParserRefitter.__init__",
        "OnnxParserRefitter.refit_from_bytes",
        "Refitter.refit_cuda_engine",
    ]
    assert (first.path != second.path, first.flags) == (True, "STRONGLY_TYPED REFIT")
    assert second.inspector == first.inspector != ""
    for engine, model in ((first, MODEL), (second, changed)):
        np.testing.assert_array_equal(run_batches(engine, [feed]).outputs[0]["y"], answers(model, feed)["y"])


# Engines of others


def test_a_file_says_what_it_takes_and_gives(machine, tmp_path):
    """An engine with fp16 inputs, as cars have; what is given in fp32 is cast."""
    text = """<ir_version: 10, opset_import: ["" : 20]> g (float16[n,2] x) => (float16[n,2] y)
        { [double] y = Add(x, x) }"""
    built = build(tmp_path, onnx.parser.parse_model(text), profile={"x": ((4, 2),) * 3})
    path = built.path.rename(tmp_path / "model.engine")
    engine = load_engine_file(path, "tensorrt")
    assert engine.tensors == {
        "x": {"mode": "INPUT", "type": "HALF", "shape": [-1, 2], "profile": [[4, 2]] * 3},
        "y": {"mode": "OUTPUT", "type": "HALF", "shape": [-1, 2]},
    }
    assert engine.library == f"tensorrt {machine.library}"
    assert [layer["Name"] for layer in json.loads(engine.inspector)["Layers"]] == ["double"]
    x = np.random.default_rng(0).standard_normal((4, 2), np.float32)
    answer = run_batches(engine, [{"x": x}]).outputs[0]["y"]
    np.testing.assert_array_equal(answer, 2 * x.astype(np.float16))


def test_an_engine_of_another_version_is_refused(machine, tmp_path, monkeypatch, stubs):
    engine = build(tmp_path)
    head, _, model = engine.path.read_bytes().partition(b"\n")
    engine.path.write_bytes(json.dumps(json.loads(head) | {"library": "10.3.0"}).encode() + b"\n" + model)
    for load in (lambda: run_batches(engine, [batch(1)]), lambda: load_engine_file(engine.path, "tensorrt")):
        with pytest.raises(EngineError) as caught:
            load()
        assert caught.value.kind == "refused"
        first = str(caught.value).splitlines()[0]
        assert f"tensorrt {machine.library} on {DEVICE} does not load the engine, which another version" in first
        assert "Version tag does not match" in first  # the library's own reason


@newest
def test_an_engine_for_another_device_is_refused(machine, shared, monkeypatch):
    engine = build(shared)
    machine.become(monkeypatch, device="Another device")
    with pytest.raises(EngineError, match="on Another device does not load the engine") as caught:
        run_batches(engine, [batch(1)])
    assert caught.value.kind == "refused"


@newest
@pytest.mark.parametrize("content", [b"", b"no engine", None])
def test_rejects_files_that_are_no_engines(machine, tmp_path, content):
    path = tmp_path / "model.engine"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(EngineError) as caught:
        load_engine_file(path, "tensorrt")
    assert caught.value.kind == ("disk" if content is None else "refused")


# Machines that cannot


@newest
@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        ({"STAND_IN_DEVICE": ""}, r"the library does not start \(cuInit gives CUDA_ERROR_NO_DEVICE \(100\)\)"),
        ({"STAND_IN_CUDA_ERROR": "35"}, r"the driver is too old for the CUDA runtime \(the driver knows CUDA 13.0\)"),
        ({"STAND_IN_CUDA_ERROR": "100"}, "there is no device"),
    ],
)
def test_an_old_driver_or_a_lost_device_is_unavailable(machine, shared, monkeypatch, trouble, words):
    engine = build(shared)
    for name, value in trouble.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(EngineError, match=words) as caught:
        run_batches(engine, [batch(1)])
    assert caught.value.kind == "unavailable"
    assert "Install a driver for the CUDA of this TensorRT" in str(caught.value)


def test_a_builder_without_a_device_is_unavailable(machine, tmp_path, monkeypatch):
    """The bindings raise TypeError where the library makes no Builder, which is no crash."""
    assert can_build("tensorrt")
    monkeypatch.setenv("STAND_IN_DEVICE", "")
    with pytest.raises(EngineError, match="no CUDA device can be used") as caught:
        build(tmp_path)
    assert caught.value.kind == "unavailable"


def test_an_old_driver_is_seen_before_a_build(machine, monkeypatch):
    machine.become(monkeypatch, driver="12020")
    expected = {
        "10": "",
        "11": f"TensorRT {machine.library} was built for CUDA 13, and the driver here knows CUDA 12.2.",
    }
    assert can_build("tensorrt").reason.startswith(expected[machine.version])
    assert bool(can_build("tensorrt")) == (machine.version == "10")


@newest
def test_a_full_device_is_refused_with_cudas_number(machine, shared, monkeypatch):
    engine = build(shared)
    monkeypatch.setenv("STAND_IN_CUDA_ERROR", "2")
    with pytest.raises(EngineError, match="CUDA Error: 2") as caught:
        run_batches(engine, [batch(1)])
    assert caught.value.kind == "refused"
