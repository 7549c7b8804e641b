"""What int8 is calibrated on, that it is done once, and what its targets say and refuse."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from lightning_robust.deployment.engines import BuildSettings, Subject, available, runtime
from lightning_robust.deployment.engines import subject as subject_file
from lightning_robust.deployment.engines.execution import execute
from lightning_robust.deployment.graph.export import frozen_copy
from lightning_robust.deployment.graph.files import GraphSubject

from ..graphs import graph
from ..models import SmallCNN, images
from ..numerics.int8 import draw, quantised

INT8 = ["emulated-int8", "onnxruntime-int8"]


def cnn(training=None, method="minmax", **settings):
    torch.manual_seed(0)
    return Subject(frozen_copy(SmallCNN()), (images(6),), BuildSettings(calibration=method, **settings), training)


def measure(target, subject):
    return execute(runtime(target), subject)


def test_the_settings_file_goes_before_training_and_that_before_the_example(tmp_path):
    np.savez(tmp_path / "car.npz", input=5 * images(8).numpy())
    training = (3 * images(7),)
    ranges = {}
    for name, subject in {
        "file": cnn(training, calibration_data=str(tmp_path / "car.npz")),
        "training": cnn(training),
        "example": cnn(),
    }.items():
        ranges[name] = subject.calibrated.ranges["input"]
    assert ranges == {
        "file": float((5 * images(8)).max()),
        "training": float((3 * images(7)).max()),
        "example": float(images(6).max()),
    }


def test_the_note_says_what_it_was_calibrated_on(tmp_path):
    np.savez(tmp_path / "car.npz", input=images(8).numpy())
    file = str(tmp_path / "car.npz")
    assert "on 8 samples of car.npz" in measure("emulated-int8", cnn(calibration_data=file)).note
    assert "by percentile on 7 training samples" in measure(INT8[0], cnn((images(7),), "percentile")).note
    assert "on 6 samples it is measured on" in measure("onnxruntime-int8", cnn()).note


def test_no_more_samples_than_asked_for():
    many = images(9) * torch.arange(1, 10)[:, None, None, None]
    subject = cnn((many,), calibration_samples=4)
    assert subject.calibrated.ranges["input"] == float(many[:4].max())
    assert "on 4 training samples" in subject.calibrated.note


def test_training_samples_in_bf16():
    half = images(7).bfloat16()
    assert cnn((half,)).calibrated.ranges["input"] == float(half.float().max())


@pytest.mark.parametrize("target", INT8)
def test_says_what_really_ran(target):
    made = measure(target, cnn())
    assert made.status == "measured", made.note
    assert "2 of 2 products in int8" in made.note
    assert dict(made.layers) == ({"int8": 2} if target.startswith("onnx") else {})


def test_engines_of_one_graph_agree():
    subject = cnn((images(40, seed=2),))
    made = [measure(name, subject) for name in ("onnxruntime-fp32", *INT8)]
    assert [one.note for one in made if one.status != "measured"] == []
    exact, emulated, executed = (one.outputs[0] for one in made)
    assert (executed - emulated).norm() < 1e-4 * (emulated - exact).norm()


def test_calibrated_and_quantised_once(monkeypatch):
    calls = []
    for name in ("calibrate_graph", "quantise_graph"):
        original = getattr(subject_file, name)
        monkeypatch.setattr(
            subject_file, name, lambda *args, original=original, name=name: calls.append(name) or original(*args)
        )
    subject = cnn()
    for target in INT8:
        measure(target, subject)
    assert calls == ["calibrate_graph", "quantise_graph"]
    assert subject.excluding_only(["head"]).quantised.nodes != subject.quantised.nodes
    assert calls == ["calibrate_graph", "quantise_graph", "quantise_graph"]


def test_a_failure_is_not_repeated(monkeypatch):
    calls = []
    original = subject_file.calibrate_graph
    monkeypatch.setattr(subject_file, "calibrate_graph", lambda *args: calls.append(1) or original(*args))
    subject = cnn((images(4) * float("nan"),))
    notes = {measure(target, subject).note for target in INT8}
    assert calls == [1]
    assert len(notes) == 1
    assert "of input 'input' are NaN or infinite" in notes.pop()


def test_exceptions_are_modules_or_nodes_of_settings_or_module():
    nodes = cnn(exclude_int8=["head"]).excluded_nodes()
    assert [cnn().exported.origins[name].module for name in nodes if name in cnn().exported.origins]
    for subject in (cnn(exclude_int8=["head"]), cnn(exclude_int8=list(nodes))):
        assert len(subject.quantised.nodes) == 1
    own = cnn()
    own.module.exclude_int8 = ["head"]
    assert len(own.quantised.nodes) == 1
    assert len(replace_settings(own, exclude_int8=[]).quantised.nodes) == 2


def replace_settings(subject, **changes):
    return Subject(subject.module, subject.example, replace(subject.settings, **changes))


def test_rejects_unknown_exceptions():
    made = measure("emulated-int8", cnn(exclude_int8=["heat"]))
    assert made.status == "failed"
    assert "Expected nodes or modules in `exclude_int8`, but got 'heat'. Did you mean 'head'" in made.note


@pytest.mark.parametrize("target", INT8)
def test_nothing_in_int8_is_no_measurement(target):
    made = measure(target, cnn(exclude_int8=["stem", "head"]))
    assert made.status == "failed"
    assert "0 of 2 products in int8. Measure the fp32 graph." in made.note
    plain = measure(target, Subject(nn.ReLU(), (torch.rand(4, 3) - 0.5,)))
    assert "0 of 0 products in int8" in plain.note


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({"x": images(4).numpy()}, "Expected an array for each of the inputs"),
        ({"input": images(4).numpy()[:, :2]}, "but got float32 of shape (4, 2, 16, 16)"),
        ({"input": images(4).numpy() * np.float32(np.nan)}, "are NaN"),
        ({"input": images(4).numpy()[:0]}, "Expected numbers in input 'input', but it is empty"),
        ("text", "cannot be read"),
    ],
)
def test_a_wrong_file_is_a_status_and_a_sentence(tmp_path, arrays, match):
    path = tmp_path / "car.npz"
    if isinstance(arrays, str):
        path.write_text(arrays)
    else:
        np.savez(path, **arrays)
    made = measure("onnxruntime-int8", cnn(calibration_data=str(path)))
    assert made.status == "failed"
    assert match in made.note


def test_a_file_that_is_not_there_is_refused_before_anything_is_built(tmp_path):
    with pytest.raises(ValueError, match=r"Expected `calibration_data` to be an .npz file, but there is no .*car.npz"):
        cnn(calibration_data=str(tmp_path / "car.npz"))


def test_a_quantised_file_is_measured_as_it_is():
    model = graph("g (float[n,6] x) => (float[n,3] y) { [op] y = MatMul(x, w) }", w=draw(6, 3))
    feeds = {"x": draw(8, 6)}
    given = quantised(model, feeds).model
    subject = GraphSubject(given, feeds)
    assert subject.quantised.model is given
    for target in INT8:
        made = measure(target, subject)
        assert made.status == "measured", made.note
        assert made.note.removeprefix("emulated, ") == "1 of 1 products in int8, quantised already, taken as it is"


def test_an_int8_file_of_another_operator_set_fails_in_one_sentence():
    model = graph("g (float[n,6] x) => (float[n,3] y) { [op] y = MatMul(x, w) }", w=draw(6, 3))
    given = quantised(model, {"x": draw(8, 6)}).model
    given.opset_import[0].version = 9
    with pytest.raises(Exception, match="QuantizeLinear"):
        GraphSubject(given, {"x": draw(8, 6)})


def test_files_of_fixed_batches_and_several_inputs():
    model = graph(
        "g (float[1,6] x, float[1,6] z) => (float[1,3] y) { [sum] s = Add(x, z) [op] y = MatMul(s, w) }", w=draw(6, 3)
    )
    feeds = {"x": draw(5, 6), "z": 2 * draw(5, 6)}
    onnx.checker.check_model(model)
    made = {target: measure(target, GraphSubject(model, feeds)) for target in INT8}
    exact = (3 * draw(5, 6)) @ draw(6, 3)
    for one in made.values():
        assert one.outputs[0].shape == (5, 3)
        assert 0 < np.abs(one.outputs[0].numpy() - exact).max() < 0.1 * np.abs(exact).max()


def test_auto_leaves_out_int8():
    assert not [made.name for made in available("auto") if made.precision == "int8"]
