import pytest
import torch
from torch import nn

from lightning_robust import measure_parity
from lightning_robust.deployment.engines import Built, Runtime, Subject, available
from lightning_robust.deployment.engines import subject as subject_module
from lightning_robust.deployment.engines.execution import STATUS_CODES
from lightning_robust.deployment.graph.export import frozen_copy
from lightning_robust.deployment.pixels import geometry
from lightning_robust.deployment.pixels.catalogue import CATALOGUE, perturbations
from lightning_robust.deployment.report.tables import family_sentences, finding_rows, summary
from lightning_robust.functional import PixelSpace

from ..models import OverflowingNorm, SmallCNN, images


class Doubling(nn.Module):
    """Mean pixel of each channel, so that what a perturbation does has a closed form."""

    def forward(self, pictures):
        return pictures.mean((2, 3))


def test_sensitivity_closed_form():
    """Swapping channels moves the channel means by what they differ; a gain of 1.1 by a tenth (no pixel clips)."""
    x = (images(4) * 0.5 * 255).round() / 255
    report = measure_parity(
        Subject(Doubling(), (x,)),
        available(["torch-fp16"]),
        decode=lambda outputs: {"level": outputs * 255},
        perturbations=perturbations(["bgr", "brightness"]),
        pixels=PixelSpace(),
    )
    means = x.mean((2, 3)) * 255
    assert report.sensitivity["bgr"]["level_max"] == pytest.approx((means - means.flip(1)).abs().max().item(), rel=1e-4)
    assert report.sensitivity["brightness"]["level_bias"] == pytest.approx(means.mean().item() * 0.1, rel=0.01)
    assert report.unit == "level_p99"
    fp16 = report.targets["torch-fp16"].metrics["level_p99"]
    assert report.sensitivity["bgr"]["times_fp16"] == report.sensitivity["bgr"]["level_p99"] / fp16


def test_normalisation_is_undone_and_redone():
    """A network that undoes the normalisation itself sees the same pixels whatever mean and std were."""

    class Undo(nn.Module):
        def __init__(self, mean, std):
            super().__init__()
            self.mean, self.std = mean, std

        def forward(self, x):
            return (x * self.std + self.mean).mean((2, 3))

    moved = []
    for mean, std in ((0.0, 1.0), (0.4, 0.2)):
        subject = Subject(Undo(mean, std), ((images(4) - mean) / std,))
        report = measure_parity(subject, [], perturbations=perturbations(["color_range"]), pixels=PixelSpace(mean, std))
        moved.append(report.sensitivity["color_range"]["rel_l2"])
    assert moved[0] == pytest.approx(moved[1], rel=1e-4)


def test_perturbed_targets_closed_form():
    """Halved outputs move by half as much; a target that fails on them loses only that; off, nothing is logged."""

    class Half(Runtime):
        def build(self, subject):
            return Built(lambda args: [args[0].mean((2, 3)) / 2])

    class Once(Runtime):
        def build(self, subject):
            answers = iter([[subject.example[0].mean((2, 3))]])
            return Built(lambda args: next(answers))

    subject = Subject(Doubling(), ((images(4) * 0.5 * 255).round() / 255,))
    settings = {"perturbations": perturbations(["bgr", "brightness"]), "pixels": PixelSpace()}
    settings["decode"] = lambda outputs: {"level": outputs * 255}
    runtimes = [Half("half", "fp32"), Once("once", "fp32")]
    report = measure_parity(subject, runtimes, perturb_targets=True, **settings)
    for name in ("bgr", "brightness"):
        pytorch, half = report.sensitivity[name]["level_p99"], report.target_sensitivity["half-fp32"][name]
        assert half == pytest.approx(pytorch / 2, rel=1e-5)
        assert report.scalars()[f"sensitivity/{name}/half-fp32/level_p99"] == half
    assert report.target_sensitivity["once-fp32"] == {}
    assert report.targets["once-fp32"].status == "measured"
    assert any("once-fp32 on perturbed inputs failed: " in note for note in report.notes)
    off = measure_parity(subject, runtimes, **settings)
    assert off.target_sensitivity == {}
    assert not any("half-fp32" in tag for tag in off.scalars() if tag.startswith("sensitivity"))


def test_attribution_and_the_overflow():
    report = measure_parity(
        Subject(frozen_copy(OverflowingNorm()), (images(4),)),
        available(["onnxruntime-fp32", "emulated-tf32", "emulated-fp16"]),
    )
    assert report.attribution["export"] < 1e-4
    assert report.attribution["fp16"] > 0.3
    assert set(report.attribution) == {"export", "tf32", "fp16"}
    (finding,) = report.findings
    assert finding.rule == "A6"
    assert report.scalars()["parity/findings"] == 1
    assert str(finding) in summary(report)
    assert finding_rows(report)[1][0][1] == f"(model) ({finding.source})"


def test_a_graph_that_cannot_be_read_is_a_note(monkeypatch):
    def fail(*_):
        raise KeyError("planted")

    monkeypatch.setattr(subject_module, "lint", fail)
    report = measure_parity(Subject(frozen_copy(SmallCNN()), (images(4),)), available(["onnxruntime-fp32"]))
    assert report.findings == ()
    assert "planted" in summary(report)
    assert report.targets["onnxruntime-fp32"].status == "measured"


def test_a_failing_target_leaves_the_others():
    class NoHalf(nn.Module):
        def forward(self, x):
            if x.dtype == torch.float16:
                raise TypeError("no half here")
            return x * 1.1

    report = measure_parity(Subject(NoHalf(), (images(2),)), available(["torch-fp16", "torch-bf16"]))
    assert [t.status for t in report.targets.values()] == ["failed", "measured"]
    assert "no half here" in report.targets["torch-fp16"].note
    assert report.scalars()["parity/status"] == STATUS_CODES["failed"]


def test_without_fp64_the_reference_is_fp32_and_says_so():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(16, 2)

        def forward(self, x):
            return self.layer(x.float().mean((1, 2)))

    report = measure_parity(Subject(Fixed(), (images(2),)), available(["torch-fp32"]))
    assert report.reference == "torch-fp32"
    assert report.targets["torch-fp32"].metrics["max_abs"] == 0
    assert "does not run in fp64" in report.notes[0]


def test_grey_pictures_skip_colour_and_vectors_skip_all():
    class Sum(nn.Module):
        def forward(self, x):
            return x.flatten(1).cumsum(1)

    grey = Subject(Sum(), (images(2)[:, :1],))
    report = measure_parity(grey, [], perturbations=perturbations(), pixels=PixelSpace())
    assert "bgr" not in report.sensitivity
    assert "jpeg_90" in report.sensitivity
    vectors = measure_parity(
        Subject(Sum(), (torch.rand(2, 5),)), [], perturbations=perturbations(), pixels=PixelSpace()
    )
    assert vectors.sensitivity == {}
    assert "no image batch" in vectors.notes[0]


def test_families_are_told_whichever_target_measured_fp16():
    """Sentence and table divide by the same distance, also where fp16 is not a cause because it was not emulated."""
    report = measure_parity(
        Subject(frozen_copy(SmallCNN()), (images(4),)),
        available(["torch-fp16"]),
        perturbations=perturbations(["bgr"]),
        pixels=PixelSpace(),
    )
    assert "fp16" not in report.attribution
    times = report.sensitivity["bgr"]["times_fp16"]
    assert times == report.sensitivity["bgr"]["rel_l2"] / report.targets["torch-fp16"].metrics["rel_l2"]
    assert family_sentences(report) == [
        f"The channel order moves relative L2 distance {times:.3g} times as far as fp16."
    ]


def test_a_pass_builds_the_camera_frame_once(monkeypatch):
    built = []
    original = geometry.camera_frame
    monkeypatch.setattr(geometry, "camera_frame", lambda pixels: built.append(1) or original(pixels))
    subject = Subject(Doubling(), (images(2),))
    report = measure_parity(subject, [], perturbations=perturbations("all"), pixels=PixelSpace())
    assert len(report.sensitivity) == len(CATALOGUE)
    assert len(built) == 1
