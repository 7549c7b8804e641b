import torch
from torch import nn

from lightning_robust.deployment.engines import Built, Runtime, Subject, available, targets
from lightning_robust.deployment.graph.export import frozen_copy
from lightning_robust.deployment.parity import measure_parity
from lightning_robust.deployment.parity.localise import localise
from lightning_robust.deployment.parity.measure import ParityPass
from lightning_robust.deployment.parity.scale import Task
from lightning_robust.deployment.parity.trade_off import measure_trade_off


class Chain(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(4, 4) for _ in range(5)))

    def forward(self, x):
        return self.layers(x)


class Planted(Runtime):
    """Each node that is not kept adds a hundredth, and takes a millisecond less than a kept one."""

    def build(self, subject):
        kept = len(subject.fp32_nodes())
        if kept == 4:
            raise ValueError("four are too many")
        error = 0.01 * (5 - kept)
        return Built(lambda args: [subject.module(*args) + error], clock=lambda args: [0.001 * (1 + kept)] * 3)


def test_each_list_has_its_distance_and_its_latency(monkeypatch):
    """With none, one, two and all of five nodes kept; four of them fail and are left out."""
    monkeypatch.setitem(targets.TARGETS, "planted-bf16", Planted)
    torch.manual_seed(0)
    subject = Subject(frozen_copy(Chain()), (torch.randn(8, 4),))
    names = [node.name for node in subject.exported.model.graph.node]
    assert len(names) == 5
    report = measure_trade_off(subject, measure_parity(subject, available(["torch-fp32"])), "planted-bf16", names)
    assert [(point.kept, round(1e3 * point.latency.median)) for point in report.trade_off] == [
        (0, 1),
        (1, 2),
        (2, 3),
        (5, 6),
    ]
    distances = [point.distance for point in report.trade_off]
    assert distances[:3] == sorted(distances[:3], reverse=True)
    assert abs(distances[0] / distances[2] - 5 / 3) < 1e-3
    assert distances[3] < 1e-6


def test_no_list_is_started_when_the_time_is_up():
    subject = Subject(frozen_copy(Chain()), (torch.randn(8, 4),))
    measured = measure_parity(subject, available(["torch-fp32"]))
    report = measure_trade_off(subject, measured, "openvino-fp32", ["a"], time_limit=-1.0)
    assert report.trade_off == ()


def test_the_list_for_int8_is_tried_on_the_engine_that_was_timed():
    """The more of the list is left in fp32, the nearer the outputs; the last point is the list itself."""
    torch.manual_seed(0)
    subject = Subject(frozen_copy(Chain()), (torch.randn(24, 4),))
    task, runtimes = Task(), targets.available(["onnxruntime-int8"])
    report = ParityPass(subject, task, 60.0, timed=True).report(runtimes, (), None)
    found = localise(subject, report, tolerance=0.7 * report.targets["onnxruntime-int8"].metrics["rel_l2"])
    points = found.trade_off
    assert {point.target for point in points} == {"onnxruntime-int8"}
    kept = len(found.int8.keep.nodes)
    assert [point.kept for point in points] == [0, 1, 2, 4][: [0, 1, 2, 4].index(kept) + 1]
    assert points[-1].distance < points[0].distance
    assert localise(subject, measure_parity(subject, runtimes), tolerance=0.1).trade_off == ()  # not timed
