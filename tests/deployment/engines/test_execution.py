import numpy as np
import pytest
import torch
from onnx import parser

from lightning_robust.complaints import one_line
from lightning_robust.deployment.engines import (
    Ability,
    BuildSettings,
    Built,
    EngineError,
    Runtime,
    Subject,
    runtime,
)
from lightning_robust.deployment.engines.base import BulkRunner
from lightning_robust.deployment.engines.execution import execute, run_in_batches
from lightning_robust.deployment.engines.latency import Latency
from lightning_robust.deployment.graph.files import GraphSubject


class Stub(Runtime):
    def __init__(self, built=None, able=True):
        super().__init__("stub", "fp16")
        self.built, self.able = built, able

    def can_build(self, settings=None):
        return Ability(self.able, "" if self.able else "not here")

    def build(self, subject):
        if self.built is None:
            raise ValueError("first line\nsecond")
        if isinstance(self.built, Exception):
            raise self.built
        return self.built


SUBJECT = Subject(torch.nn.Identity(), (torch.arange(5.0)[:, None], torch.tensor(3.0)))


def test_samples_go_in_by_batches_and_come_back_in_order():
    seen = []

    def runner(args):
        seen.append((len(args[0]), float(args[1])))
        return [2 * args[0], args[1]]

    doubled, scalar = run_in_batches(runner, SUBJECT.example, 2)
    assert seen == [(2, 3.0), (2, 3.0), (1, 3.0)]
    assert doubled[:, 0].tolist() == [0, 2, 4, 6, 8]
    assert scalar == 3


def test_a_bulk_runner_is_given_all_samples_at_once():
    seen = []
    runner = BulkRunner(lambda sets: [seen.append([len(args[0]) for args in sets]) or [2 * args[0]] for args in sets])
    (doubled,) = run_in_batches(runner, SUBJECT.example, 2)
    assert seen == [[5]]
    assert doubled[:, 0].tolist() == [0, 2, 4, 6, 8]


@pytest.mark.parametrize(
    ("made", "status", "note"),
    [
        (Stub(able=False), "unavailable", "not here"),
        (Stub(), "failed", "ValueError: first line"),
        (Stub(EngineError("unavailable", "no route")), "unavailable", "EngineError: no route"),
        (Stub(EngineError("crashed", "a signal")), "failed", "EngineError: a signal"),
        (Stub(Built(None, 7, "no device")), "built", "no device"),
        (Stub(Built(lambda args: [args[0] + 1], 7)), "measured", ""),
        (Stub(Built(lambda args: 1 / 0, 7)), "failed", "ZeroDivisionError: division by zero"),
    ],
)
def test_what_becomes_of_a_runtime(made, status, note):
    execution = execute(made, SUBJECT)
    assert (execution.status, execution.note) == (status, note)
    assert (execution.run is not None) == (status == "measured")
    if status == "measured":
        assert execution.outputs[0][:, 0].tolist() == [1, 2, 3, 4, 5]
        assert execution.size == 7


def test_an_error_is_one_line():
    assert one_line(KeyError()) == "KeyError: no message"
    assert len(one_line(ValueError("x" * 1000))) == len("ValueError: ") + 400


def test_latency_is_of_the_deployed_batch_and_measured_when_it_is_asked_for():
    seen = []

    def clock(args):
        seen.append((args[0][:, 0].tolist(), float(args[1])))
        return [0.3, 0.1, 0.2]

    made = Stub(Built(lambda args: [args[0]], layers={"bf16": 2}, clock=clock))
    subject = Subject(SUBJECT.module, SUBJECT.example, BuildSettings(batch=7))
    untimed = execute(made, subject)
    assert (untimed.latency, untimed.layers, seen) == (None, {"bf16": 2}, [])
    assert execute(made, subject, timed=True).latency == Latency(median=0.2, p99=0.3, runs=3, batch=7)
    assert seen == [([0, 1, 2, 3, 4, 0, 1], 3.0)]  # five samples fill a batch of seven


def test_a_graph_of_one_fixed_batch_is_timed_on_it():
    model = parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 20]> g (float[3, 4] x) => (float[3, 4] y) { y = Add(x, x) }'
    )
    subject = GraphSubject(model, {"x": np.ones((5, 4), np.float32)}, BuildSettings(batch=2))
    made = execute(runtime("onnxruntime-fp32"), subject, timed=True)
    assert made.latency.batch == 3
    assert 0 < made.latency.median <= made.latency.p99 < 0.1
    assert made.size == len(model.SerializeToString())


@pytest.mark.parametrize(
    ("target", "timed"), [("torch-fp32", True), ("onnxruntime-fp32", True), ("emulated-fp16", False)]
)
def test_an_emulation_has_no_latency(target, timed):
    subject = Subject(torch.nn.Linear(3, 1).eval(), (torch.rand(4, 3),))
    latency = execute(runtime(target), subject, timed=True).latency
    assert (latency is not None) == timed
    assert latency is None or (latency.runs, latency.batch) == (100, 1)
