"""TensorRT as a runtime where there is no package, or no device."""

import importlib.util
import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from lightning_robust.deployment.engines import BuildSettings, Subject, abilities, builder, runtime
from lightning_robust.deployment.engines.abilities import Ability
from lightning_robust.deployment.graph.export import frozen_copy
from lightning_robust.deployment.graph.files import GraphSubject

from ..models import SmallCNN, images
from ..numerics.operators import GRAPHS


@pytest.mark.parametrize("target", ["tensorrt-fp32", "tensorrt-fp16", "tensorrt_rtx-fp16"])
def test_missing_package_says_what_to_install(monkeypatch, target):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    made = runtime(target)
    extra = "rtx" if "rtx" in target else "tensorrt"
    for able in (made.can_build(), made.can_run()):
        assert not able
        assert f'pip install "lightning-robust[{extra}]"' in able.reason


@pytest.mark.rtx
@pytest.mark.parametrize("target", ["tensorrt_rtx-fp32", "tensorrt_rtx-fp16", "tensorrt_rtx-int8"])
def test_an_engine_is_built_and_not_run_without_a_device(target, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    made = runtime(target)
    if made.can_run():
        pytest.skip("this machine can run the engine")
    torch.manual_seed(0)
    here = Subject(frozen_copy(SmallCNN()), (images(6),), BuildSettings(cache=str(tmp_path)))
    built = made.build(here)
    assert built.run is None
    assert built.size > 4 * 3 * 8 * 9
    assert "not run" in built.note


@pytest.mark.rtx
def test_an_int8_engine_is_int8_where_the_graph_is(tmp_path):
    """By the parser's types: weights, and activations between their Q and their DQ."""
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    torch.manual_seed(0)
    here = Subject(frozen_copy(SmallCNN()), (images(6),), BuildSettings(cache=str(tmp_path)))
    built = runtime("tensorrt_rtx-int8").build(here)
    (entry,) = (json.loads(path.read_text()) for path in tmp_path.glob("*.json"))
    types, graph = Counter(entry["layers"].values()), here.quantised.model.graph
    weights = sum(t.data_type == onnx.TensorProto.INT8 and len(t.dims) > 1 for t in graph.initializer)
    assert weights == len(here.quantised.nodes) > 0
    assert types["INT8"] == weights + sum(node.op_type == "QuantizeLinear" for node in graph.node)
    assert f"{len(here.quantised.nodes)} of {here.quantised.of} products in int8" in built.note


def build_settings(monkeypatch, target, subject):
    """What a target asks the builder for, and its note."""
    asked = {}

    def build_engine(model, **settings):
        asked.update(settings, model=onnx.load_model_from_string(model))
        return builder.Engine(Path("engine"), "tensorrt_rtx", 1, 0.0, False, {}, "", "", "planted")

    monkeypatch.setattr(builder, "build_engine", build_engine)
    monkeypatch.setattr(abilities, "can_run", lambda *_: Ability(False, "no device"))
    return asked, runtime(target).build(subject).note


def test_int8_is_built_of_the_shared_graph_with_the_rest_in_fp16(monkeypatch):
    torch.manual_seed(0)
    here = Subject(frozen_copy(SmallCNN()), (images(6),), BuildSettings(keep_fp32=["head"]))
    asked, note = build_settings(monkeypatch, "tensorrt_rtx-int8", here)
    graph = asked["model"].graph
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for tensor in here.quantised.model.graph.initializer:
        if tensor.name.endswith("_quantized"):
            np.testing.assert_array_equal(weights[tensor.name], numpy_helper.to_array(tensor))
    scales = [weights[node.input[1]].dtype for node in graph.node if node.op_type == "QuantizeLinear"]
    assert scales == [np.float32, np.float16]  # of the input, which is fp32, and of what the kept head reads
    assert {weights[node.input[2]].dtype for node in graph.node if node.op_type == "Conv"} == {np.dtype(np.float16)}
    assert {weights[node.input[2]].dtype for node in graph.node if node.op_type == "Gemm"} == {np.dtype(np.float32)}
    assert "2 of 2 products in int8" in note
    assert "the rest in fp16" in note


@pytest.mark.parametrize("choice", ["clamp", "keep", "inf"])
def test_weights_beyond_the_range_are_built_as_asked_for(monkeypatch, choice):
    model, feeds = GRAPHS["mask"]
    asked, note = build_settings(
        monkeypatch, "tensorrt-fp16", GraphSubject(model, feeds, BuildSettings(out_of_range=choice))
    )
    (weight,) = (t for t in asked["model"].graph.initializer if t.name == "big")
    expected = {"clamp": -65504.0, "keep": float(np.float32(-3.4028235e38)), "inf": -np.inf}[choice]
    assert float(numpy_helper.to_array(weight)) == expected
    words = {"clamp": "1 weight clamped to fp16's range", "keep": "kept in fp32 for weights", "inf": "became infinite"}
    assert note.startswith("not run: no device, ")
    assert words[choice] in note


@pytest.mark.parametrize(
    ("target", "tf32", "asked_for"),
    [
        ("tensorrt-fp16", True, True),
        ("tensorrt-fp16", False, False),
        ("tensorrt-fp32", True, False),
        ("tensorrt-tf32", False, True),
    ],
)
def test_tf32_is_for_what_stays_fp32_in_half_precision(monkeypatch, target, tf32, asked_for):
    model, feeds = GRAPHS["Conv"]
    asked, _ = build_settings(monkeypatch, target, GraphSubject(model, feeds, BuildSettings(tf32=tf32)))
    assert asked["tf32"] == asked_for


def test_the_settings_reach_the_builder(monkeypatch):
    model, feeds = GRAPHS["Conv"]
    settings = BuildSettings(workspace=1.5, device="cuda:2", cache="/somewhere", time_limit=7.0)
    asked, _ = build_settings(monkeypatch, "tensorrt-fp32", GraphSubject(model, feeds, settings))
    assert (asked["workspace"], asked["device"], asked["time_limit"]) == (1.5, 2, 7.0)
    assert asked["directory"] == Path("/somewhere")
    remote = BuildSettings(device="cuda:2", command=["ssh", "orin", "python3"])
    asked, _ = build_settings(monkeypatch, "tensorrt-fp32", GraphSubject(model, feeds, remote))
    assert (asked["device"], asked["command"]) == (0, ["ssh", "orin", "python3"])


@pytest.mark.parametrize("initialised", [False, True])
def test_a_build_has_the_memory_that_the_training_only_caches(monkeypatch, initialised):
    freed = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: initialised)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: freed.append(True))
    model, feeds = GRAPHS["Conv"]
    build_settings(monkeypatch, "tensorrt-fp32", GraphSubject(model, feeds))
    assert freed == [True] * initialised
