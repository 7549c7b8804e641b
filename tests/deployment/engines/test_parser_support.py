"""Which nodes the parser refuses, and what is said of them."""

import time

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from lightning_robust.deployment.engines import Subject, abilities, parser_support
from lightning_robust.deployment.engines.parser_support import Refusal, refused_nodes, with_refusals
from lightning_robust.deployment.graph.export import Exported, frozen_copy
from lightning_robust.deployment.graph.lint import lint
from lightning_robust.deployment.graph.origin import Origin
from lightning_robust.deployment.parity.localise import localise

from ..reports import measured, report
from .builds import make_model, no_rtx


@pytest.fixture(autouse=True)
def _forget(monkeypatch):
    monkeypatch.setattr(parser_support, "_answers", {})


def planted():
    """x -> Relu -> Det, Resize with antialiasing, an operator of nobody's; the second is found by lint too."""
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], "relu"),
        helper.make_node("Det", ["r"], ["d"], "det"),
        helper.make_node("Resize", ["r", "", "s"], ["b"], "resize", mode="linear", antialias=1),
        helper.make_node("Foo", ["r"], ["f"], "foo", domain="com.example"),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3, 4, 4])
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "dbf"]
    scales = numpy_helper.from_array(np.array([1, 1, 0.5, 0.5], np.float32), "s")
    graph = helper.make_graph(nodes, "g", [x], outputs, [scales])
    opsets = [helper.make_opsetid("", 19), helper.make_opsetid("com.example", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


@no_rtx
@pytest.mark.rtx
def test_names_what_was_planted_and_asks_once(monkeypatch):
    model = planted()
    refused = refused_nodes(model.SerializeToString())
    assert [(node.place, node.operator) for node in refused] == [(1, "Det"), (2, "Resize"), (3, "Foo")]
    assert refused[1].reason == "Antialiasing is not supported currently"

    monkeypatch.setattr(parser_support, "run_child", None)  # a second question would fail
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    changed.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "s"))
    start = time.monotonic()
    assert refused_nodes(changed.SerializeToString()) is refused
    assert time.monotonic() - start < 0.1

    exported = Exported(model, {"det": Origin("head", "head.py:3")}, ("x",), ("d", "b", "f"))
    found = with_refusals(exported, lint(model))
    assert [(finding.rule, finding.node) for finding in found] == [("A1", "resize"), ("A13", "det"), ("A13", "foo")]
    assert str(found[1]).startswith("A13 head (head.py:3): Det that the parser of TensorRT-RTX ")


@no_rtx
@pytest.mark.rtx
def test_a_graph_that_is_taken_has_no_refusals():
    assert refused_nodes(make_model().SerializeToString()) == ()


def test_nothing_is_asked_and_nothing_said_without_the_package(monkeypatch):
    monkeypatch.setattr(abilities, "missing_package", lambda *_: "not here")
    monkeypatch.setattr(parser_support, "run_child", None)
    assert refused_nodes(planted().SerializeToString()) == ()


@pytest.mark.parametrize("script", ["import os; os.abort()", "import time; time.sleep(60)", "raise SystemExit(3)"])
def test_a_child_that_crashes_or_hangs_refuses_nothing(tmp_path, monkeypatch, script):
    path = tmp_path / "child.py"
    path.write_text(script)
    monkeypatch.setattr(abilities, "missing_package", lambda *_: "")
    monkeypatch.setattr(parser_support, "CHILD_SCRIPT", path)
    assert refused_nodes(planted().SerializeToString(), time_limit=1.0) == ()


REASONS = {
    '(antialias == 0) && "Antialiasing is not supported currently."': "Antialiasing is not supported currently",
    '(mode == "a" || mode == "b") && "The mode is not supported!"': "The mode is not supported!",
    "Assertion failed: !trainingMode[0]: TensorRT does not support training mode.": (
        "TensorRT does not support training mode"
    ),
    "Invalid Node - s\nITensor::getDimensions: Error Code 4: API Usage Error (s: `input` and `grid` must be of same "
    "type. In validateTypes at /_src/a.cpp:3)": "`input` and `grid` must be of same type",
    "false": "",
    "": "",
    "Something else.": "Something else",
}


@pytest.mark.parametrize("reason", REASONS)
def test_reasons_are_sentences(monkeypatch, reason):
    result = {"status": "done", "refused": [[0, "Foo", reason], [0, "Foo", "a second reason"]]}
    monkeypatch.setattr(abilities, "missing_package", lambda *_: "")
    monkeypatch.setattr(parser_support, "run_child", lambda *_, **__: (result, ""))
    assert refused_nodes(planted().SerializeToString()) == (Refusal(0, "Foo", REASONS[reason]),)


def test_a_refusal_of_the_whole_graph(monkeypatch):
    monkeypatch.setattr(parser_support, "refused_nodes", lambda model: (Refusal(-1, "", "no strings"),))
    (finding,) = with_refusals(Exported(planted(), {}, (), ()), ())
    assert (finding.node, finding.consequence) == ("g", "There is no engine. Its reason: no strings.")


def test_the_examination_adds_them_to_the_report(monkeypatch):
    """Whatever was measured: here no half precision, which has no layers to look at."""
    monkeypatch.setattr(parser_support, "refused_nodes", lambda model: (Refusal(0, "Gemm", "no"),))
    subject = Subject(frozen_copy(torch.nn.Linear(3, 1)), (torch.ones(4, 3),))
    examined = localise(subject, report(targets={"onnxruntime-fp32": measured(1e-4)}))
    assert [(finding.rule, finding.what.split()[0]) for finding in examined.findings] == [("A13", "Gemm")]
    assert examined.layers is None
