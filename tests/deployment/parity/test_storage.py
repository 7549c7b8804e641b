"""What the head costs, on networks whose head is known."""

import dataclasses

import pytest
import torch
from torch import nn

from lightning_robust import measure_parity
from lightning_robust.deployment.engines import BuildSettings, Subject, available
from lightning_robust.deployment.graph.export import frozen_copy
from lightning_robust.deployment.parity import storage
from lightning_robust.deployment.parity.scale import Task
from lightning_robust.deployment.parity.storage import examine_head

TASK = Task(lambda outputs: {"x_px": outputs})


class Scale(nn.Module):
    """Places from 0 to 1 as pixels of a picture."""

    def __init__(self, width):
        super().__init__()
        self.width = width

    def forward(self, places):
        return (torch.sigmoid(places) + 1e-4) * self.width


class Places(nn.Module):
    def __init__(self, width):
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Linear(8, 16)
        self.head = Scale(width)

    def forward(self, x):
        return self.head(self.trunk(x))


def examine(width, **settings):
    subject = Subject(frozen_copy(Places(width)), (torch.rand(16, 8),), BuildSettings(**settings))
    report = measure_parity(subject, available(["emulated-fp16"]), decode=TASK.decode)
    return subject, report, examine_head(subject, report, TASK)


def test_a_head_in_pixels_is_found_with_what_fp32_would_bring():
    """At 959 px the steps of fp16 are half a pixel; the module that scales is named, with its remedy in numbers."""
    subject, before, report = examine(2000.0)
    (finding,) = [finding for finding in report.findings if finding.rule == "B1"]
    again = Subject(subject.module, subject.example, BuildSettings(keep_fp32=["head"]))
    kept = measure_parity(again, available(["emulated-fp16"]), decode=TASK.decode).targets["emulated-fp16"].metrics
    all_half = before.targets["emulated-fp16"].metrics
    assert kept["x_px_p99"] < 0.5 * all_half["x_px_p99"]
    assert kept["storage"] == 0
    assert all_half["storage"] > 0.2
    assert f"-> {kept['x_px_p99']:.2g} x px" in finding.remedy
    assert finding.remedy.endswith("keep_fp32: [head]")
    assert finding.module == "head"
    assert "where fp16 has steps of 1" in finding.what
    assert report.head == ("head",)
    assert "these 3 nodes" in finding.remedy


def test_a_head_that_costs_nothing_is_no_finding():
    _, before, report = examine(1e-3)
    assert before.targets["emulated-fp16"].metrics["storage"] < 1e-6
    _, _, kept = examine(2000.0, keep_fp32=("head",))
    assert [finding for finding in kept.findings if finding.rule == "B1"] == []
    assert report.unit == "x_px_p99"


@pytest.mark.parametrize("targets", [["torch-fp16"], ["onnxruntime-fp32"]])
def test_without_an_emulated_half_precision_nothing_is_examined(targets):
    subject = Subject(frozen_copy(Places(2000.0)), (torch.rand(4, 8),))
    report = measure_parity(subject, available(targets), decode=TASK.decode)
    assert dataclasses.asdict(examine_head(subject, report, TASK)) == dataclasses.asdict(report)


def test_nodes_are_named_where_a_module_holds_others_too():
    """The product and the sum after the layers stand in the model's own forward: they have no module of their own."""

    class Whole(Places):
        def forward(self, x):
            return torch.sigmoid(self.trunk(x)) * 2000.0 + 0.2

    subject = Subject(frozen_copy(Whole(1.0)), (torch.rand(16, 8),))
    report = measure_parity(subject, available(["emulated-fp16"]), decode=TASK.decode)
    examined = examine_head(subject, report, TASK)
    graph = subject.exported.model.graph
    assert [node.op_type for node in graph.node if node.name in examined.head] == ["Sigmoid", "Mul", "Add"]


class Overflowing(nn.Module):
    """The trunk leaves fp16's range; the head only adds one."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.trunk, self.layer = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x):
        return torch.relu(self.layer((1e3 * self.trunk(x)) ** 2)) * 0.5 + 1


@pytest.mark.parametrize("module", [Overflowing(), nn.Sequential(Overflowing(), nn.ReLU(), nn.LogSigmoid())])
def test_a_head_behind_an_overflow_is_not_what_costs_it(module):
    """Infinite with the head in fp32 as without it."""
    subject = Subject(frozen_copy(module), (torch.rand(16, 8),))
    report = measure_parity(subject, available(["emulated-fp16"]))
    assert report.targets["emulated-fp16"].metrics["rel_l2"] == float("inf")
    assert examine_head(subject, report, Task()) is report


class NeverFinite(Places):
    """Places, and an output that is infinite everywhere."""

    def forward(self, x):
        places = super().forward(x)
        return places, torch.log(torch.relu(-places.abs()))


def test_the_largest_output_is_of_those_that_are_finite():
    task = Task(lambda outputs: {"x_px": outputs[0]})
    subject = Subject(frozen_copy(NeverFinite(2000.0)), (torch.rand(16, 8),))
    report = measure_parity(subject, available(["emulated-fp16"]), decode=task.decode)
    (finding,) = [each for each in examine_head(subject, report, task).findings if each.rule == "B1"]
    assert "where fp16 has steps of 1" in finding.what


class Nearly(nn.Module):
    """Outputs that are constant to what fp16 can tell apart, which the report measures by their size."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.trunk, self.layer = nn.Linear(8, 16), nn.Linear(16, 4)
        with torch.no_grad():
            self.layer.weight.mul_(1e-3)

    def forward(self, x):
        return 100 + self.layer(torch.tanh(self.trunk(x)))


def test_the_head_is_measured_on_the_scale_of_the_report():
    """All of the distance is what storing costs, and no head's."""
    subject = Subject(frozen_copy(Nearly()), (torch.rand(16, 8),))
    report = measure_parity(subject, available(["emulated-fp16"]))
    assert report.targets["emulated-fp16"].metrics["rel_l2"] < 1e-3
    found = examine_head(subject, report, Task())
    sentences = [finding.what for finding in found.findings if finding.rule == "B1"]
    assert not any(float(sentence.split()[0]) > 1e-3 for sentence in sentences), sentences


def test_a_distance_that_could_not_be_measured_is_no_finding(monkeypatch):
    """As where the run with the head in half precision fails, and the one with it in fp32 does not."""
    distances = iter([float("nan"), 0.1])
    monkeypatch.setattr(storage, "_distance_of", lambda *given: next(distances))
    subject = Subject(frozen_copy(Places(2000.0)), (torch.rand(16, 8),))
    report = measure_parity(subject, available(["emulated-fp16"]), decode=TASK.decode)
    assert examine_head(subject, report, TASK) is report
