"""What a pass does with the unusual: rare precisions, NaN among distances, one bad picture, no boxes on a side."""

import math

import pytest
import torch
from torch import nn

from lightning_robust.decoding import Boxes
from lightning_robust.deployment.engines import BuildSettings, Subject, available
from lightning_robust.deployment.engines.execution import execute
from lightning_robust.deployment.parity.background import LateResults
from lightning_robust.deployment.parity.baseline import Baseline
from lightning_robust.deployment.parity.intervals import Interval, intervals
from lightning_robust.deployment.parity.links import Link
from lightning_robust.deployment.parity.measure import measure_parity
from lightning_robust.deployment.parity.module import judge_module
from lightning_robust.deployment.parity.readout import Readout
from lightning_robust.deployment.parity.result import ParityReport, TargetResult
from lightning_robust.deployment.parity.scale import Task
from lightning_robust.deployment.pixels.catalogue import perturbations
from lightning_robust.deployment.report.tables import perturbation_rows
from lightning_robust.functional.pixels import PixelSpace

from ..reports import chain_between

LINEAR = nn.Linear(8, 20).eval()
NAMES = ["emulated-tf32", "emulated-fp16", "emulated-fp16acc", "emulated-bf16", "emulated-int8", "torch-fp32"]


def subject(module=LINEAR, *args, samples=16, **settings):
    args = args or (torch.randn(samples, 8, generator=torch.Generator().manual_seed(0)),)
    return Subject(module.eval(), args, BuildSettings(**settings))


@pytest.mark.parametrize("name", NAMES)
def test_every_precision_has_numbers(name):
    """fp16 with fp16 accumulators lies beyond fp16."""
    report = measure_parity(subject(), available([name]))
    target = report.targets[name]
    assert target.status == "measured", target.note
    assert 0 < target.metrics["rel_l2"] < 0.1


def test_a_decoder_computes_in_fp32_behind_every_target():
    """What half precision does to the outputs is measured, and not what it would do to a decoder."""
    seen = []

    def decode(outputs):
        seen.append(outputs.dtype)
        return {"x_px": (outputs.softmax(-1) * 50 * torch.arange(20, dtype=outputs.dtype)).sum(-1)}

    names = ["torch-bf16", "emulated-bf16"]
    report = measure_parity(subject(), available(names), decode=decode)
    assert set(seen) <= {torch.float32, torch.float64}
    ours, theirs = (report.targets[name].metrics["x_px_p99"] for name in names)
    assert ours < 2 * theirs


class Squeezed(nn.Module):
    """Runs on several samples and not on one."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(8, 4)

    def forward(self, x):
        return self.net(x).squeeze().softmax(1)


def test_what_cannot_be_timed_keeps_its_numbers():
    made = execute(*available(["torch-fp32"]), subject(Squeezed()), timed=True)
    assert (made.status, made.latency) == ("measured", None)
    assert made.warning.startswith("it could not be timed on a batch of 1: IndexError: Dimension out of range")


class LogGamma(nn.Module):
    def forward(self, x):
        return torch.lgamma(x.abs() + 1)


def test_a_module_that_has_no_graph_is_judged():
    x = torch.rand(16, 8, generator=torch.Generator().manual_seed(0))
    assert judge_module(LogGamma(), x, {"torch-bf16/rel_l2": 1.0}).status == "within"
    assert judge_module(LogGamma(), x, {"torch-bf16/rel_l2": 1e-9}).status == "beyond"


def test_one_bad_picture_further_on_loses_no_perturbation():
    pictures = torch.rand(48, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    pictures[40] *= 1.3 / pictures[40].amax()
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(784, 2))
    entries = perturbations(["bgr", "nv12"])
    report = measure_parity(
        subject(net, pictures), available(["torch-fp32"]), perturbations=entries, pixels=PixelSpace(0.0, 1.0)
    )
    assert set(report.sensitivity) == {"bgr", "nv12"}
    assert any(note.startswith("Preprocessing was not perturbed on further samples: ") for note in report.notes)


class Weighted(nn.Module):
    """A scalar stands before the pictures."""

    def forward(self, scale, x):
        return scale * x.flatten(1)


def test_a_scalar_may_be_the_first_argument():
    both = torch.tensor(2.0), torch.rand(16, 8, generator=torch.Generator().manual_seed(0))
    report = measure_parity(subject(Weighted(), *both), available(["onnxruntime-fp32", "emulated-fp16"]))
    assert [target.status for target in report.targets.values()] == ["measured", "measured"]


def test_a_link_from_no_box_to_some_has_no_plain_distance():
    """The graph lost both boxes of a picture, and the engine has them again."""

    def boxes(count):
        places = torch.tensor([[0.0, 0, 4, 4], [8, 8, 12, 12]]).expand(1, -1, -1)[:, :count]
        values = Boxes(places, torch.ones(1, count), torch.zeros(1, count, dtype=torch.long))
        return Readout([places], {"boxes": values})

    readouts = {"torch-fp64": boxes(2), "emulated-fp16": boxes(0), "tensorrt-fp16": boxes(2)}
    links = {link.key: link.value for link in chain_between(readouts, "torch-fp64", "boxes_centre_px_p99")}
    assert links["fp16"] == math.inf
    assert "engine/tensorrt-fp16" in links


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_no_interval_where_one_output_has_none(order):
    """It may be the worst; whatever the order of outputs."""
    generator = torch.Generator().manual_seed(0)
    exact = [torch.rand(16, 5, generator=generator) for _ in range(2)]
    exact[1][3, 2] = -math.inf
    deployed = [each + 0.1 * torch.rand(16, 5, generator=generator) for each in exact]
    sides = [Readout([side[place] for place in order], {}) for side in (exact, deployed)]
    assert "rel_l2" not in intervals(*sides, "fp16")


def test_what_is_no_number_stands_first():
    sensitivity = {name: {"rel_l2": v} for name, v in (("bgr", 1.0), ("gamma_09", math.nan), ("crop", 9.0))}
    report = ParityReport({}, sensitivity, (), "rel_l2", "torch-fp64", samples=2, seconds=0.0)
    assert [row[0] for row in perturbation_rows(report)[1]] == ["gamma_09", "crop", "bgr"]


def test_late_numbers_of_another_unit_are_not_put_on_this_scale():
    link = Link("engine", "tensorrt-fp16", "emulated-fp16", 0.5, 0.0, Interval(0.4, 0.6), 2)
    late = LateResults({"tensorrt-fp16": TargetResult("measured", step=3)}, (link,), {"tensorrt-fp16": {}}, "rel_l2")
    report = ParityReport({}, {}, (), "x_px_p99", "torch-fp64", samples=2, seconds=0.0)
    merged = late.merged_into(report)
    assert (merged.chain, merged.target_sensitivity, list(merged.targets)) == ((), {}, ["tensorrt-fp16"])


def test_a_module_may_name_one_part_to_keep():
    module = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    module.keep_fp32 = "2"
    kept, whole = (
        measure_parity(subject(module, torch.rand(16, 8)), available(["emulated-bf16"])).targets["emulated-bf16"]
        for module in (module, nn.Sequential(*module))
    )
    assert kept.status == "measured", kept.note
    assert kept.metrics["rel_l2"] < whole.metrics["rel_l2"]


class InPlace(nn.Module):
    """Normalises its input in place, as many do."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def forward(self, x):
        x -= 0.5
        x /= 0.25
        return self.layer(x)


class HandsOn(nn.Module):
    """Returns one of its inputs beside what it computes."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def forward(self, x, speed):
        return {"steer": self.layer(x), "speed": speed}


class Spectrum(nn.Module):
    """A complex output, which a graph has as pairs of numbers."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x):
        return torch.fft.fft(self.layer(x))


GRAPH = ["torch-fp32", "onnxruntime-fp32", "emulated-fp16"]


@pytest.mark.parametrize("module", [InPlace(), HandsOn(), Spectrum()], ids=lambda module: type(module).__name__)
def test_what_a_module_does_with_its_inputs_and_outputs_is_no_distance(module):
    x = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
    before = x.clone()
    inputs = (x, torch.rand(16, 1)) if isinstance(module, HandsOn) else (x,)
    report = measure_parity(subject(module, *inputs), available(GRAPH))
    distances = {name: target.metrics.get("rel_l2", math.inf) for name, target in report.targets.items()}
    assert distances["torch-fp32"] < 1e-5, report
    assert distances["onnxruntime-fp32"] < 1e-5
    assert 1e-5 < distances["emulated-fp16"] < 5e-3
    assert torch.equal(x, before)


class Noisy(nn.Linear):
    def forward(self, x):
        return super().forward(x) + 0.1 * torch.randn_like(x[:, :20])


class Counting(nn.Linear):
    runs = 0

    def forward(self, x):
        self.runs += 1
        return super().forward(x) * self.runs


@pytest.mark.parametrize("module", [Noisy, Counting])
def test_chance_and_memory_are_told(module):
    report = measure_parity(subject(module(20, 20), torch.rand(16, 20)), available(["torch-fp32"]))
    assert any("Two runs on the same samples differ" in note for note in report.notes)
    calm = measure_parity(subject(nn.Linear(20, 20), torch.rand(16, 20)), available(["torch-fp32"]))
    assert not any("Two runs" in note for note in calm.notes)


class Growing(Counting):
    """One row more in each run, as a tracker's boxes."""

    def forward(self, x):
        outputs = super().forward(x)
        return torch.cat([outputs, *[outputs[:1]] * self.runs])


class Crowd(nn.Linear):
    """Asks for more samples than a second look takes."""

    def forward(self, x):
        if len(x) < 16:
            raise ValueError("not enough samples")
        return super().forward(x)


def test_a_second_look_ends_no_pass():
    """Outputs of another shape are told as any others that change, and a module that refuses so few is measured."""
    baseline = Baseline(subject(Growing(20, 20), torch.rand(16, 20)), Task())
    assert any("Two runs on the same samples differ" in note for note in baseline.notes)
    report = measure_parity(subject(Crowd(20, 20), torch.rand(16, 20)), available(["torch-fp32"]))
    assert report.targets["torch-fp32"].status == "measured"
    assert report.notes == ()


class Half(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def forward(self, x):
        return self.layer(x.half()).float()


def test_a_cast_to_a_type_of_its_own_is_told_with_a_remedy():
    with pytest.raises(ValueError, match=r"runs in fp32 on 16 samples at once, but got .*x\.to\(self\.weight\.dtype\)"):
        measure_parity(subject(Half()), available(["torch-fp32"]))


def test_one_sample_is_measured_on_a_graph_for_one():
    report = measure_parity(subject(samples=1), available(GRAPH))
    assert [target.status for target in report.targets.values()] == ["measured"] * 3
    assert any("Exported for one sample, since only one was given" in note for note in report.notes)


def test_low_precisions_are_of_one_scale():
    """Columns of 500 px that spread by 34: bf16 is eight times as far off as fp16, and not nearer."""
    module = nn.Linear(8, 4)
    with torch.no_grad():
        module.weight.mul_(60)
        module.bias.fill_(500)
    report = measure_parity(subject(module), available(["torch-fp16", "torch-bf16"]))
    fp16, bf16 = (report.targets[name].metrics["rel_l2"] for name in ("torch-fp16", "torch-bf16"))
    assert 4 < bf16 / fp16 < 16
