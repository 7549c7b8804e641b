"""Facts about refitting: which graphs share an engine, what is asked of the child, and what becomes of a refusal."""

import importlib
import json
import sys
import textwrap
import types

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from lightning_robust.deployment.engines import (
    BuildSettings,
    EngineError,
    Subject,
    abilities,
    build_engine,
    builder,
    can_run,
    run_engine,
    runtime,
)
from lightning_robust.deployment.engines.child import engine as _engine_child
from lightning_robust.deployment.engines.refit import folded_weights, structure, weight_digests
from lightning_robust.deployment.graph.export import export, frozen_copy
from lightning_robust.deployment.numerics.convert import to_half

from ..models import images
from .builds import no_rtx

PROFILE = {"input": ((1, 3, 16, 16), (4, 3, 16, 16), (8, 3, 16, 16))}
VERBS = "verbs.txt"


class Mixed(nn.Module):
    """A folded and an unfolded BatchNorm, a Resize, attention, a bare scalar: what exporters name in different ways."""

    def __init__(self, width=8, slope=0.1):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.LeakyReLU(slope))
        self.attend = nn.TransformerEncoderLayer(width, 2, 16, dropout=0.0, batch_first=True)
        self.norm = nn.BatchNorm1d(width)
        self.gain = nn.Parameter(torch.ones(()))
        self.head = nn.Linear(width, 4)

    def forward(self, x):
        x = nn.functional.interpolate(self.stem(x), scale_factor=0.5, mode="bilinear") * self.gain
        return self.head(self.norm(self.attend(x.flatten(2).transpose(1, 2)).mean(1)))


def trained(seed, **settings):
    """The exported model after some training, as it were: every weight and every statistic another."""
    module = frozen_copy(Mixed(**settings))
    generator = torch.Generator().manual_seed(seed)
    for tensor in (*module.parameters(), *(b for b in module.buffers() if b.is_floating_point())):
        tensor.data = torch.rand(tensor.shape, generator=generator) + 0.1
    return export(module, (images(4),)).model


@pytest.fixture(scope="module")
def models():
    return trained(0), trained(1), trained(2, slope=0.2), trained(3, width=4)


@pytest.mark.parametrize("convert", [lambda m: m, to_half, lambda m: to_half(m, "bf16")], ids=["fp32", "fp16", "bf16"])
def test_equal_structures_and_no_others_share_a_key(models, convert):
    first, second, other_slope, other_width = (convert(model).SerializeToString() for model in models)
    assert structure(first) == structure(second)
    assert len({structure(model) for model in (first, other_slope, other_width)}) == 3
    old, new = weight_digests(first), weight_digests(second)
    assert old.keys() == new.keys()
    moved = {name for name in old if old[name] != new[name]}
    # stem 2 (its BatchNorm is folded in), attention 4, feed-forward 4, LayerNorms 4, gain 1, head 2, and of the
    # BatchNorm that stands alone 4 in fp32; in half precision its statistics are in its scale and its bias
    assert {"module.gain", "module.head.weight"} <= moved
    statistics = folded_weights(first)
    assert len(statistics) == 4
    assert len(moved) == 17 + len(statistics & moved)
    if "module.norm.running_var" in old:
        assert statistics == {f"module.norm.{w}" for w in ("weight", "bias", "running_mean", "running_var")}
        assert statistics <= moved
    else:
        assert {name.rpartition("/")[2] for name in statistics & moved} == {"scale", "bias"}


def test_precisions_do_not_share_a_key(models):
    assert structure(models[0].SerializeToString()) != structure(to_half(models[0]).SerializeToString())


def test_integers_are_structure(models):
    changed = onnx.ModelProto.FromString(models[0].SerializeToString())
    tensor = next(t for t in changed.graph.initializer if t.data_type == onnx.TensorProto.INT64)
    values = onnx.numpy_helper.to_array(tensor) + 1
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    assert structure(changed.SerializeToString()) != structure(models[0].SerializeToString())


# What is asked of the child


CHILD = f"""
    import json, pathlib, sys
    verb, spec = sys.argv[1], json.load(open(sys.argv[2]))
    here = pathlib.Path(__file__).parent
    with open(here / {VERBS!r}, "a") as log:
        log.write(json.dumps([verb, spec.get("changed"), spec["refit"]]) + "\\n")
    status = (here / "says").read_text() if verb == "refit" and (here / "says").exists() else "done"
    blob = verb.encode() + pathlib.Path(spec["model"]).read_bytes()[-64:]
    open(spec["engine"], "wb").write(blob)
    report = dict(status=status, message="planted", size=len(blob), seconds=0.5)
    if verb == "build":
        report |= dict(layers={{"stem": "FLOAT"}}, flags="REFIT STRONGLY_TYPED" if spec["refit"] else "STRONGLY_TYPED")
    json.dump(report, open(spec["result"], "w"))
"""


@pytest.fixture
def child(tmp_path, monkeypatch):
    """A child that only writes down what it was asked for; returns a function that reads it."""
    path = tmp_path / "child.py"
    path.write_text(textwrap.dedent(CHILD))
    monkeypatch.setattr(builder, "_CHILD", path)
    monkeypatch.setattr(abilities, "missing_package", lambda *_: "")
    monkeypatch.setattr(abilities, "library_version", lambda *_: "0")
    monkeypatch.setattr(abilities, "device_name", lambda *_: "NVIDIA Something")

    def asked():
        lines = (tmp_path / VERBS).read_text().splitlines()
        (tmp_path / VERBS).unlink()
        return [json.loads(line) for line in lines]

    return asked


def build(tmp_path, model, **settings):
    return build_engine(
        model.SerializeToString(),
        **{"backend": "tensorrt", "profile": PROFILE, "directory": tmp_path / "cache", "refit": True} | settings,
    )


def test_built_once_and_refitted_afterwards(tmp_path, child, models):
    first = build(tmp_path, models[0])
    assert [(verb, refit) for verb, _, refit in child()] == [("build", True)]
    assert first.flags == "REFIT STRONGLY_TYPED"
    second = build(tmp_path, models[1])
    ((verb, changed, _),) = child()
    assert verb == "refit"
    assert len(changed) == 17  # of the 21 that moved, the parser folds four
    assert "module.head.weight" in changed
    assert not any(name.startswith("module.norm") for name in changed)
    assert second.path.read_bytes().startswith(b"refit")
    assert (second.layers, second.flags) == (first.layers, first.flags)
    again = build(tmp_path, models[1])
    assert (again.cached, again.path) == (True, second.path)
    assert build(tmp_path, models[0]).path == first.path
    assert not (tmp_path / VERBS).exists()
    build(tmp_path, models[2])
    assert [verb for verb, *_ in child()] == ["build"]


def test_a_deployed_engine_is_not_refittable(tmp_path, child, models):
    refittable, plain = build(tmp_path, models[0]), build(tmp_path, models[0], refit=False)
    assert [refit for *_, refit in child()] == [True, False]
    assert refittable.path != plain.path
    assert plain.flags == "STRONGLY_TYPED"


def test_statistics_alone_are_refitted_too(tmp_path, child, models):
    """A change of a running mean changes the engine, though the refitter knows it by another name."""
    build(tmp_path, models[0])
    moved = onnx.ModelProto.FromString(models[0].SerializeToString())
    mean = next(t for t in moved.graph.initializer if t.name == "module.norm.running_mean")
    mean.raw_data = (onnx.numpy_helper.to_array(mean) + 1).tobytes()
    build(tmp_path, moved)
    assert [(verb, changed) for verb, changed, _ in child()] == [("build", None), ("refit", [])]


def test_what_cannot_be_refitted_is_built_anew_with_a_warning(tmp_path, child):
    def build_at(seed, refit=True):
        torch.manual_seed(seed)
        subject = Subject(frozen_copy(Mixed()), (images(4),), BuildSettings(cache=str(tmp_path / "cache"), refit=refit))
        return runtime("tensorrt-fp32").build(subject)

    first = build_at(0)
    assert (first.note, first.warning) == ("refittable", "")
    (tmp_path / "says").write_text("refused")
    second = build_at(1)
    assert [(verb, refit) for verb, _, refit in child()] == [("build", True), ("refit", True), ("build", False)]
    assert second.note == ""
    assert second.warning.startswith(
        "the engine was built anew, for it could not be refitted. The refit did not succeed"
    )
    assert "planted" in second.warning
    build_at(2, refit=False)
    assert [refit for *_, refit in child()] == [False]


def test_nothing_is_refitted_where_nothing_is_run(tmp_path, child, monkeypatch):
    monkeypatch.setattr(abilities, "device_name", lambda *_: "")
    subject = Subject(frozen_copy(Mixed()), (images(4),), BuildSettings(cache=str(tmp_path / "cache"), refit=True))
    built = runtime("tensorrt_rtx-fp32").build(subject)
    assert built.run is None
    assert [refit for *_, refit in child()] == [False]


# What the child does


class Library(types.SimpleNamespace):
    """A TensorRT that writes down who is called with what."""

    def __init__(self, refittable=("w",), fits=True, takes=True):
        self.calls = calls = []

        class Refitter:
            def __init__(self, engine, logger):
                calls.append(("refitter", engine.blob))

            def get_all_weights(self):
                return list(refittable)

            def refit_cuda_engine(self):
                calls.append(("set",))
                return takes

            def get_missing_weights(self):
                return ["v"]

        class Reader:
            num_errors = 1

            def __init__(self, refitter, logger):
                pass

            def refit_from_bytes(self, model):
                calls.append(("read", model))
                return fits

            def get_error(self, index):
                return types.SimpleNamespace(desc=lambda: f"error {index}")

        super().__init__(Refitter=Refitter, OnnxParserRefitter=Reader, __version__="11.4.0")


def refit(tmp_path, monkeypatch, library, changed=("w",)):
    engine = types.SimpleNamespace(blob=b"old", serialize=lambda: b"new")
    backend = types.SimpleNamespace(get_trt_logger=lambda: None, EngineFromBytes=lambda blob: lambda: engine)
    monkeypatch.setattr(_engine_child, "load_tensorrt", lambda spec: library)
    monkeypatch.setattr(_engine_child.importlib, "import_module", lambda name: backend)
    (tmp_path / "origin").write_bytes(b"old")
    (tmp_path / "model").write_bytes(b"onnx")
    files = {name: str(tmp_path / name) for name in ("origin", "model", "engine")}
    return _engine_child.attempt("refit", {**files, "changed": list(changed)})


def test_child_reads_the_model_then_sets_the_weights(tmp_path, monkeypatch):
    library = Library()
    result = refit(tmp_path, monkeypatch, library)
    assert library.calls == [("refitter", b"old"), ("read", b"onnx"), ("set",)]
    assert (result["status"], result["size"]) == ("done", 3)
    assert (tmp_path / "engine").read_bytes() == b"new"


@pytest.mark.parametrize(
    ("library", "changed", "message"),
    [
        (Library(refittable=["w"]), ["w", "baked"], "these weights are fixed in the engine: baked"),
        (Library(fits=False), ["w"], "the weights do not fit the engine; error 0"),
        (Library(takes=False), ["w"], "the engine took no weights, missing: v"),
    ],
)
def test_child_refuses_what_would_keep_an_old_value(tmp_path, monkeypatch, library, changed, message):
    assert refit(tmp_path, monkeypatch, library, changed) == {"status": "refused", "message": message}
    assert not (tmp_path / "engine").exists()


def test_child_refuses_the_version_that_drops_biases(monkeypatch):
    monkeypatch.setattr(_engine_child, "load_tensorrt", lambda spec: types.SimpleNamespace(__version__="11.3.0.5"))
    result = _engine_child.attempt("build", {"weakly_typed": None, "refit": True})
    assert result["status"] == "refused"
    assert "may drop a bias" in result["message"]


# What TensorRT itself does


@pytest.mark.rtx
@no_rtx
@pytest.mark.skipif(bool(abilities.device_name()), reason="there is a CUDA device: the engine is built")
@pytest.mark.parametrize("stand_in", [False, True])
def test_refittable_engines_need_a_device(tmp_path, models, stand_in):
    """TensorRT-RTX 1.7 takes the flag and the graph, and fails to compile for want of CUDA."""
    with pytest.raises(EngineError) as caught:
        build(tmp_path, models[0], backend="tensorrt" if stand_in else "tensorrt_rtx", stand_in=stand_in)
    assert caught.value.kind == "refused"
    assert "REFIT" in str(caught.value)


@pytest.mark.rtx
@no_rtx
def test_the_installed_library_has_what_the_child_calls():
    library = importlib.import_module("tensorrt_rtx")
    for owner, names in (
        (library.Refitter, ("get_all_weights", "refit_cuda_engine", "get_missing_weights")),
        (library.OnnxParserRefitter, ("refit_from_bytes", "num_errors", "get_error")),
        (library.BuilderFlag, ("REFIT",)),
        (library.ICudaEngine, ("serialize",)),
        (library.ParserError, ("desc",)),
    ):
        assert [name for name in names if not hasattr(owner, name)] == []
    sys.modules.pop("tensorrt_rtx", None)


@pytest.mark.rtx
@no_rtx
def test_a_parsed_network_knows_its_weights_by_the_names_of_the_initialisers(tmp_path, models):
    """What is checked before a refit, read off the network where no engine can be loaded: in a process of its own."""
    script = """
        import json, pathlib, sys
        import polygraphy.config
        polygraphy.config.USE_TENSORRT_RTX = True
        from polygraphy.backend.trt import NetworkFromOnnxBytes
        spec = json.load(open(sys.argv[2]))
        _, network, _ = NetworkFromOnnxBytes(pathlib.Path(spec["model"]).read_bytes(), strongly_typed=True)()
        known = [name for name in spec["names"] if network.mark_weights_refittable(name)]
        json.dump(dict(status="done", known=known), open(spec["result"], "w"))
    """
    (tmp_path / "script.py").write_text(textwrap.dedent(script))
    (tmp_path / "model.onnx").write_bytes(models[0].SerializeToString())
    first, second = (weight_digests(model.SerializeToString()) for model in models[:2])
    moved = {name for name in first if first[name] != second[name]}
    spec = {"model": str(tmp_path / "model.onnx"), "names": sorted(moved)}
    result, _ = builder.run_child(tmp_path / "script.py", "look", spec, tmp_path, 60.0)
    assert moved - set(result["known"]) == folded_weights(models[0].SerializeToString())


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt_rtx"])
def test_refitted_matches_built(tmp_path, models, backend):
    if not can_run(backend):
        pytest.skip(can_run(backend).reason)
    build(tmp_path, models[0], backend=backend)
    refitted, built = (build(tmp_path, models[1], backend=backend, refit=refit) for refit in (True, False))
    x = {"input": images(4).numpy()}
    answers = [next(iter(run_engine(engine, x).values())) for engine in (refitted, built)]
    np.testing.assert_allclose(*answers, rtol=1e-4, atol=1e-4 * np.abs(answers[1]).max())
