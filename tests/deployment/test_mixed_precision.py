"""Files in mixed precision: what is claimed of them is what stands in them."""

import functools
import json
import math
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from lightning_robust.deployment import mixed_precision
from lightning_robust.deployment.engines import BuildSettings, Subject
from lightning_robust.deployment.graph.export import frozen_copy
from lightning_robust.deployment.graph.files import GraphSubject
from lightning_robust.deployment.mixed_precision import convert_mixed
from lightning_robust.deployment.numerics.convert import to_half
from lightning_robust.deployment.numerics.emulate import emulate
from lightning_robust.deployment.parity.distance import compare_outputs
from lightning_robust.deployment.parity.scale import Task

from .graphs import graph, run
from .models import OverflowingNorm, SmallCNN, images


@functools.cache
def subject(kind=OverflowingNorm, count=16):
    torch.manual_seed(0)
    return Subject(frozen_copy(kind()), (images(count),))


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_the_file_meets_the_budget_as_an_independent_measurement_says(precision, tmp_path):
    """The distance is that of the emulation with the list, on the samples that the list was not found on."""
    budget = {"fp16": 2e-3, "bf16": 2e-2}[precision]
    found = convert_mixed(subject(), precision, budget, tmp_path / "norm.onnx")
    x, model = subject().example[0][8:], subject().exported.model
    expected = compare_outputs([run(model, x)], [run(emulate(model, precision, found.keep.nodes), x)])["rel_l2"]
    assert found.distance == pytest.approx(expected, rel=0.02)
    assert found.distance <= budget
    assert found.met
    assert found.agrees
    assert found.measured.samples == 8
    assert (found.path, found.size) == (tmp_path / "norm.onnx", (tmp_path / "norm.onnx").stat().st_size)
    onnx.checker.check_model(str(found.path), full_check=True)


def test_a_file_that_is_not_what_the_list_says_is_found_out(tmp_path, monkeypatch):
    """What is judged is the file: one that lost its list on the way overflows."""
    other = to_half(subject().exported.model, "fp16")
    monkeypatch.setattr(mixed_precision.Conversion, "build", lambda self: other)
    found = convert_mixed(subject(), "fp16", 2e-3, tmp_path / "norm.onnx")
    assert found.keep.met
    assert found.distance > 0.5
    assert not found.met
    assert not found.agrees


def test_a_budget_that_nothing_meets(tmp_path):
    """Everything in fp32 would be exact, but that multiplies in TF32."""
    tf32 = replace(subject(), settings=BuildSettings(tf32=True))
    found = convert_mixed(tf32, "bf16", 1e-9, tmp_path / "norm.onnx")
    assert not found.met
    assert found.distance > 1e-5
    assert found.distance == pytest.approx(found.keep.error, rel=0.05, abs=1e-9)
    assert found.distance < found.keep.total


def test_what_the_user_excludes_stays_fp32_and_is_not_in_the_list(tmp_path):
    settings = BuildSettings(keep_fp32=["conv"])
    excluding = replace(subject(), settings=settings)
    found = convert_mixed(excluding, "fp16", 2e-3, tmp_path / "norm.onnx")
    assert found.excluded == excluding.fp32_nodes() != ()
    kinds = {value.name: value.type.tensor_type.elem_type for value in onnx.load(found.path).graph.value_info}
    conv = next(node for node in onnx.load(found.path).graph.node if node.name == found.excluded[0])
    assert kinds[conv.output[0]] == onnx.TensorProto.FLOAT


def test_tf32_is_measured_and_not_forbidden_in_the_command(tmp_path):
    """Everything is kept: what is left is TF32, of 10 bits of mantissa, or nothing."""
    names = [node.name for node in subject(SmallCNN).exported.model.graph.node]
    distances = {}
    for tf32 in (False, True):
        asked = replace(subject(SmallCNN), settings=BuildSettings(keep_fp32=names[:-1], tf32=tf32))
        found = convert_mixed(asked, "fp16", 1e-5, tmp_path / "cnn.onnx")
        distances[tf32] = found.distance
        assert ("--noTF32" in found.command) == (not tf32)
        assert found.agrees
    assert distances[False] < 1e-5 < distances[True]


class Far(nn.Module):
    """Columns of up to 960 pixels, where numbers of fp16 are half a pixel apart."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return torch.sigmoid(self.layer(x)) * 960


def test_a_budget_in_the_units_of_the_task(tmp_path):
    """Half of a step of 0.5 px is lost by storing the columns in fp16; 0.05 px keep the scaling in fp32."""
    torch.manual_seed(0)
    far = Subject(frozen_copy(Far()), (torch.rand(12, 4),))
    found = convert_mixed(far, "fp16", 0.3, tmp_path / "far.onnx", task=Task(lambda y: {"x_px": y}))
    assert found.keep.unit == "x_px_p99"
    assert 0.1 < found.keep.total <= 1.0
    strict = convert_mixed(far, "fp16", 0.1, tmp_path / "far.onnx", task=Task(lambda y: {"x_px": y}))
    assert strict.met
    assert strict.keep.nodes


def test_int8_is_a_qdq_file_that_onnxruntime_executes(tmp_path):
    """As far from fp32 as the graph that is quantised with the list, on the samples that the list was not found on."""
    cnn = subject(SmallCNN)
    found = convert_mixed(cnn, "int8", 0.0105, tmp_path / "cnn.onnx")
    x, listed = cnn.example[0][8:], cnn.excluding_only(found.keep.nodes).quantised
    assert 0 < len(found.keep.nodes) < found.keep.of == 2
    written = onnx.load(found.path)
    assert [n.op_type for n in written.graph.node] == [n.op_type for n in listed.model.graph.node]
    exact = run(cnn.exported.model, x)
    expected = compare_outputs([exact], [run(listed.model, x)])["rel_l2"]
    assert found.distance == pytest.approx(expected, rel=1e-3)
    assert found.executed_distance == pytest.approx(expected, rel=0.01)
    assert found.met == (expected <= 0.0105)
    assert found.distance < found.keep.total
    assert found.agrees
    assert any(note == "products that ONNX Runtime executed: 1 in fp32, 1 in int8" for note in found.notes)


def test_int8_is_written_with_fp16_beside_it_too(tmp_path):
    """Weights of what is not quantised are fp16 there; it is further from fp32 than int8 alone by what fp16 adds."""
    cnn = subject(SmallCNN)
    found = convert_mixed(cnn, "int8", 0.0105, tmp_path / "cnn.onnx")
    assert found.beside_fp16.path == tmp_path / "cnn_fp16.onnx"
    kinds = {tensor.data_type for tensor in onnx.load(found.beside_fp16.path).graph.initializer}
    assert onnx.TensorProto.INT8 in kinds
    assert onnx.TensorProto.FLOAT16 in kinds
    distance = found.beside_fp16.measured.metrics["rel_l2"]
    half = convert_mixed(cnn, "fp16", 0.5, tmp_path / "half.onnx").distance
    assert abs(distance - found.distance) <= 2 * half
    assert distance != found.distance


def test_what_is_excluded_from_int8(tmp_path):
    cnn = subject(SmallCNN)
    (conv,) = (node.name for node in cnn.exported.model.graph.node if node.op_type == "Conv")
    excluding = cnn.excluding_only([conv])
    found = convert_mixed(excluding, "int8", 0.02, tmp_path / "cnn.onnx")
    assert (found.excluded, found.keep.nodes, found.keep.of) == ((conv,), (conv,), 2)
    assert found.distance == pytest.approx(found.keep.total, rel=1e-3)


def test_a_branch_is_kept_and_named(tmp_path):
    model = graph(
        "g (float[n, 4] x, bool b) => (float[n, 4] y) { [bend] a = Tanh(x)"
        "[choose] y = If (b) <then_branch = t () => (float[n, 4] u) { [up] u = Exp(a) },"
        " else_branch = e () => (float[n, 4] v) { [down] v = Neg(a) }> }"
    )
    x = np.linspace(-1, 1, 16, dtype=np.float32).reshape(4, 4)
    found = convert_mixed(GraphSubject(model, {"x": x, "b": np.array(True)}), "fp16", 1e-2, tmp_path / "branch.onnx")
    assert found.met
    assert found.distance > 0
    assert any("If 'choose' computes in fp32" in note for note in found.notes)


@pytest.mark.parametrize("budget", [0.0, -1.0, math.nan, math.inf])
def test_rejects_a_budget_that_is_none(budget, tmp_path):
    with pytest.raises(ValueError, match="Expected `budget` to be a positive number, but got"):
        convert_mixed(subject(), "fp16", budget, tmp_path / "norm.onnx")


def test_json(tmp_path):
    found = convert_mixed(subject(), "fp16", 2e-3, tmp_path / "norm.onnx")
    found.write_json(tmp_path / "precision.json", provenance={"model": "norm"})
    content = json.loads((tmp_path / "precision.json").read_text())
    assert content["met"] is True
    assert content["distance"] == found.distance
    assert content["keep"]["nodes"] == list(found.keep.nodes)
    assert content["measured"]["samples" if isinstance(content["measured"], dict) else 2] == 8
    assert content["provenance"] == {"model": "norm"}
