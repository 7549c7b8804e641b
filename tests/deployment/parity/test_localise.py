"""Layers and keep lists in the unit of a report: what they are found on, checked on, and aimed at."""

import functools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from lightning_robust import measure_parity
from lightning_robust.deployment.engines import Subject, available
from lightning_robust.deployment.graph.export import frozen_copy
from lightning_robust.deployment.graph.files import GraphSubject
from lightning_robust.deployment.numerics.emulate import emulate
from lightning_robust.deployment.parity.distance import compare_outputs
from lightning_robust.deployment.parity.localise import localise
from lightning_robust.deployment.parity.result import ParityReport, TargetResult
from lightning_robust.deployment.report.layers import layer_sentences

from ..graphs import graph, run
from ..models import OutlierViT, OverflowingNorm, SmallCNN, images


def measured(subject, unit="rel_l2", precision="fp16"):
    """A report that a target of this precision is in."""
    return ParityReport({f"emulated-{precision}": TargetResult("measured")}, {}, {}, unit, "torch-fp64", 2, 0.0)


@functools.cache
def subject(kind, count):
    torch.manual_seed(0)
    return Subject(frozen_copy(kind()), (images(count),))


def test_found_on_some_samples_and_checked_on_the_others():
    """Four for the sweep, eight of sixteen for the list, the other eight for what is said of it."""
    vit = subject(OutlierViT, 16)
    report = localise(vit, measured(vit))
    keep, model, x = report.keep, vit.exported.model, vit.example[0]
    assert (report.layers.samples, keep.samples, keep.checked) == (4, 8, 8)
    wide, mixed = run(model, x), run(emulate(model, "fp16", keep.nodes), x)
    found, checked = (compare_outputs([wide[part]], [mixed[part]])["rel_l2"] for part in (slice(8), slice(8, 16)))
    assert keep.found_error == pytest.approx(found, rel=0.1)
    assert keep.error == pytest.approx(checked, rel=0.1)
    assert keep.found_met
    assert 0 < len(keep.nodes) < keep.of


@pytest.mark.parametrize(("count", "parts"), [(2, (1, 1, 1)), (3, (1, 1, 2)), (40, (4, 16, 24))])
def test_parts_of_other_sizes(count, parts):
    vit = subject(OutlierViT, count)
    report = localise(vit, measured(vit))
    assert (report.layers.samples, report.keep.samples, report.keep.checked) == parts


def test_one_sample_is_not_checked_and_that_is_said():
    model = graph("g (float[n, 4] x) => (float[n, 4] y) { [bend] a = Tanh(x) [scale] y = Mul(a, a) }")
    one = GraphSubject(model, {"x": np.linspace(0, 1, 4, dtype=np.float32)[None]})
    report = localise(one, measured(one))
    assert (report.keep.samples, report.keep.checked) == (1, 0)
    assert "on the 1 sample that the list was found on, and was not checked on others" in layer_sentences(report)[-1]


def test_a_graph_of_fixed_batch_is_parted_like_any_other():
    model = graph("g (float[4, 2] x) => (float[4, 2] y) { [bend] a = Tanh(x) [scale] y = Mul(a, a) }")
    fixed = GraphSubject(model, {"x": np.random.default_rng(0).random((4, 2), np.float32)})
    keep = localise(fixed, measured(fixed)).keep
    assert (keep.samples, keep.checked) == (2, 2)


class Bright(nn.Module):
    """Pixels of 0 to 255 times a gain of 3,000: beyond what fp16 holds, and finite again behind the squashing."""

    def __init__(self):
        super().__init__()
        self.layer, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        x = self.layer(255 * x) * 3000
        return self.last((x / 1e5).tanh())


class Cancelling(nn.Module):
    """Adds and takes away 20,000: finite and wrong in fp16."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return self.layer(x) + 20000.0 - 20000.0


@pytest.mark.parametrize("kind", [Bright, OverflowingNorm, Cancelling])
def test_the_aim_is_what_a_sound_model_costs_where_the_whole_graph_is_broken(kind):
    broken = subject(kind, 8)
    report = localise(broken, measured(broken))
    assert report.layers.total > 0.1
    assert report.keep.tolerance == 5e-3
    assert report.keep.error <= 5e-3


def test_the_aim_in_another_unit_is_in_proportion():
    """A model that is 100 % off by some pixels aims at the pixels of half a per cent."""
    broken = subject(Cancelling, 8)

    def decode(outputs):
        return {"x_px": 1000 * outputs}

    report = localise(broken, measured(broken, "x_px_p99"), decode=decode)
    plain = localise(broken, measured(broken)).layers.total
    assert report.keep.tolerance == pytest.approx(report.layers.total * 5e-3 / plain)
    assert report.keep.met


def test_the_aim_in_another_unit_where_values_are_lost_is_what_sound_nodes_cost():
    """The first product overflows to infinity in the outputs themselves."""
    model = graph(
        "g (float[n, 4] x) => (float[n, 4] y) { [big] a = Mul(x, c) [bend] b = Tanh(x) [sum] y = Add(a, b) }",
        c=np.float32(7e4),
    )
    lost = GraphSubject(model, {"x": 1 + np.random.default_rng(0).random((8, 4), np.float32)})
    report = localise(lost, measured(lost, "v_p99"), decode=lambda outputs: {"v": outputs[0]})
    assert report.layers.total == math.inf
    costs = {node.name: node.isolated for node in report.layers.nodes}
    assert report.keep.tolerance == costs["bend"] < 1e-2
    assert report.keep.met


@pytest.mark.parametrize(
    ("limits", "aim"),
    [
        ({"emulated-fp16": 1e-4, "tensorrt-fp16": 2e-4}, 1e-4),
        ({"emulated-fp16/rel_l2": 1e-4}, 1e-4),
        ({"emulated-fp16/max_abs": 1e-9, "emulated-bf16": 1e-9}, None),
        ({"emulated-fp16": 0.9}, None),
    ],
)
def test_the_aim_is_capped_by_the_users_tolerance(limits, aim):
    vit = subject(OutlierViT, 16)
    report = localise(vit, measured(vit), limits=limits)
    assert report.keep.tolerance == min(aim or math.inf, 0.2 * report.layers.total, 0.9 if aim is None else aim)


def test_a_tolerance_of_nothing_keeps_everything():
    norm = subject(OverflowingNorm, 4)
    keep = localise(norm, measured(norm), tolerance=0.0).keep
    assert (keep.error, keep.met) == (0.0, True)
    assert len(keep.nodes) == keep.of


def test_without_time_nothing_is_listed_and_that_is_said():
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Conv2d(3 if i == 0 else 8, 8, 3, 1, 1), nn.SiLU()) for i in range(12)]
    deep = Subject(frozen_copy(nn.Sequential(*blocks)), (torch.randn(2, 3, 16, 16),))
    report = localise(deep, measure_parity(deep, available(["emulated-fp16"])), time_limit=0)
    assert all(node.isolated is None and not node.exact for node in report.layers.nodes)
    assert report.keep.nodes == ()
    assert layer_sentences(report) == [
        "No node was measured before time was up, so that there is no list of what to keep in fp32.",
        "Time was up: 36 of 36 nodes were not measured, and are in no list.",
    ]


def test_rejects_outputs_that_are_not_finite_and_graphs_of_integers():
    model = graph("g (float[n, 2] x) => (float[n, 2] y) { [log] y = Log(x) }")
    diverged = GraphSubject(model, {"x": -np.ones((4, 2), np.float32)})
    with pytest.raises(ValueError, match="infinite or NaN throughout"):
        localise(diverged, measured(diverged))
    integers = graph("g (int64[n, 2] x) => (int64[n, 2] y) { [sum] y = Add(x, x) }")
    whole = GraphSubject(integers, {"x": np.ones((4, 2), np.int64)})
    with pytest.raises(ValueError, match="none does"):
        localise(whole, measured(whole))


def test_without_a_half_precision_nothing_is_added():
    vit = subject(OutlierViT, 16)
    report = measured(vit, precision="fp32")
    assert localise(vit, report) == report


def test_a_fixed_batch_of_one_is_parted_like_any_other():
    model = graph("g (float[1, 2] x) => (float[1, 2] y) { [bend] a = Tanh(x) [scale] y = Mul(a, a) }")
    fixed = GraphSubject(model, {"x": np.random.default_rng(0).random((12, 2), np.float32)})
    report = localise(fixed, measured(fixed))
    assert (report.layers.samples, report.keep.samples, report.keep.checked) == (4, 6, 6)


def test_int8_is_examined_beside_half_precision_and_its_list_is_honoured():
    """The report's distance of the list is that of the subject whose settings exclude it."""
    cnn = subject(SmallCNN, 16)
    both = {"emulated-fp16": TargetResult("measured"), "emulated-int8": TargetResult("measured")}
    report = localise(cnn, replace(measured(cnn), targets=both), tolerance=0.0105)
    assert (report.layers.precision, report.int8.layers.precision) == ("fp16", "int8")
    keep = report.int8.keep
    assert (keep.of, len(keep.nodes), keep.samples, keep.checked, keep.tolerance) == (2, 1, 8, 8, 0.0105)
    excluding, x = cnn.excluding_only(keep.nodes), cnn.example[0][8:]
    expected = compare_outputs([run(cnn.exported.model, x)], [run(excluding.quantised.model, x)])["rel_l2"]
    assert keep.error == pytest.approx(expected, rel=1e-3)
    assert keep.total == pytest.approx(
        compare_outputs([run(cnn.exported.model, x)], [run(cnn.quantised.model, x)])["rel_l2"], rel=1e-3
    )


def test_int8_alone_and_int8_that_cannot_be_examined():
    cnn = subject(SmallCNN, 16)
    alone = localise(cnn, measured(cnn, precision="int8"))
    assert alone.layers is None
    assert alone.int8.keep.tolerance == pytest.approx(0.2 * alone.int8.layers.total)
    plain = graph("g (float[n, 4] x) => (float[n, 4] y) { [bend] y = Tanh(x) }")
    none = GraphSubject(plain, {"x": np.ones((4, 4), np.float32)})
    report = localise(none, measured(none, precision="int8"))
    assert report.int8 is None
    assert "Layers in int8 were not measured: Expected products to quantise" in report.notes[-1]


class Offset(nn.Module):
    """Small numbers about one: to fp16 they are nearly constant."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        with torch.no_grad():
            self.layers[2].weight.mul_(1e-3)
            self.layers[2].bias.fill_(1.0)

    def forward(self, x):
        return self.layers(x)


def test_nodes_are_measured_on_the_scale_of_the_report():
    """The whole graph costs in the sweep what it costs in the report, and keeping nothing is enough."""
    made = Subject(Offset().eval(), (torch.randn(16, 8, generator=torch.Generator().manual_seed(1)),))
    pass_ = measure_parity(made, available(["emulated-fp16"]))
    found = localise(made, pass_, samples=16, limits={"emulated-fp16": 5e-3})
    assert pass_.targets["emulated-fp16"].metrics["rel_l2"] < 1e-3
    assert found.layers.total == pytest.approx(pass_.targets["emulated-fp16"].metrics["rel_l2"], rel=0.3)
