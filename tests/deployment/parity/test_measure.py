import gc
import weakref

import pytest
import torch
from torch import nn

from lightning_robust import measure_parity
from lightning_robust.deployment.engines import Built, Runtime, Subject, available
from lightning_robust.deployment.engines import subject as subject_module
from lightning_robust.deployment.engines.execution import STATUS_CODES
from lightning_robust.deployment.graph.export import frozen_copy
from lightning_robust.deployment.graph.session import Session
from lightning_robust.deployment.parity.localise import localise
from lightning_robust.deployment.parity.result import BEYOND
from lightning_robust.deployment.parity.scale import Task
from lightning_robust.deployment.parity.storage import examine_head
from lightning_robust.deployment.pixels import geometry
from lightning_robust.deployment.pixels.catalogue import CATALOGUE, perturbations
from lightning_robust.deployment.report.page import write_report
from lightning_robust.deployment.report.tables import finding_rows, summary
from lightning_robust.functional import PixelSpace, move_columns

from ..models import OverflowingNorm, SmallCNN, images


class Doubling(nn.Module):
    """Mean pixel of each channel, so that what a perturbation does has a closed form."""

    def forward(self, pictures):
        return pictures.mean((2, 3))


def test_decisions_alone_are_counted(tmp_path):
    """A classifier that returns classes has no distance, but a share of others; its page is written."""

    class Decides(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 4)

        def forward(self, x):
            return self.linear(x).argmax(1)

    torch.manual_seed(0)
    subject = Subject(Decides().eval(), (torch.randn(64, 3),))
    report = measure_parity(subject, available(["torch-bf16", "onnxruntime-fp32"]))
    assert report.unit == "flip_rate"
    (x,) = subject.rows(slice(64))
    exact, coarse = subject.module(x), subject.module.bfloat16()(x.bfloat16())
    assert {target.status for target in report.targets.values()} == {"measured"}
    assert report.targets["onnxruntime-fp32"].metrics["flip_rate"] == 0
    assert report.targets["torch-bf16"].metrics["flip_rate"] == (exact != coarse).float().mean()
    assert "nan" not in summary(report)
    assert write_report(report, tmp_path).is_file()


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
    fp16 = report.targets["torch-fp16"].metrics["level_mean"]
    assert report.sensitivity["bgr"]["times_fp16"] == report.sensitivity["bgr"]["level_mean"] / fp16


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
    assert finding_rows(report)[1][0][0] == f"(model) ({finding.source})"


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


class Arranged(nn.Module):
    """Takes pictures, or clips of which it takes the mean, in another order of dimensions."""

    def __init__(self, network, order, frames):
        super().__init__()
        self.network, self.order, self.frames = network, order, frames

    def forward(self, x):
        pictures = x.permute(self.order).flatten(0, -4)
        outputs = self.network(pictures)
        return outputs.unflatten(0, (-1, self.frames)).mean(1) if self.frames > 1 else outputs


@pytest.mark.parametrize(("order", "frames"), [((0, 3, 1, 2), 1), ((0, 1, 2, 3, 4), 2), ((0, 2, 1, 3, 4), 2)])
def test_other_arrangements_move_as_the_same_pictures_do(order, frames):
    """Channels last, and clips with frames before or behind the channels: as the network that takes pictures."""
    torch.manual_seed(0)
    network, pictures = frozen_copy(SmallCNN()), images(8)
    alike = Arranged(network, (0, 1, 2, 3), frames)
    arranged = pictures.unflatten(0, (-1, frames)) if frames > 1 else pictures
    inputs = arranged.permute(torch.tensor(order).argsort().tolist()).contiguous()
    entries = perturbations(["bgr", "jpeg_90", "resize_bilinear"])
    found = measure_parity(
        Subject(Arranged(network, order, frames), (inputs,)), [], perturbations=entries, pixels=PixelSpace()
    )
    assert list(found.sensitivity) == [entry.name for entry in entries]
    with torch.no_grad():
        for entry in entries:
            levels = (pictures * 255).round() / 255
            before, after = (alike(change(levels)) for change in (entry.trained, entry.deployed))
            expected = ((after - before).norm() / (before - before.mean()).norm()).item()
            assert found.sensitivity[entry.name]["rel_l2"] == pytest.approx(expected, rel=1e-3)


def test_multiples_of_fp16_are_of_whichever_target_measured_it():
    """Also where fp16 is no link of the chain because it was not emulated."""
    report = measure_parity(
        Subject(frozen_copy(SmallCNN()), (images(4),)),
        available(["torch-fp16"]),
        perturbations=perturbations(["bgr"]),
        pixels=PixelSpace(),
    )
    assert "fp16" not in report.attribution
    times = report.sensitivity["bgr"]["times_fp16"]
    assert times == report.sensitivity["bgr"]["rel_l2"] / report.targets["torch-fp16"].metrics["rel_l2"]
    assert f"{times:.0f} times what fp16 does" in summary(report)


def test_a_pass_builds_the_camera_frame_once(monkeypatch):
    built = []
    original = geometry.camera_frame
    monkeypatch.setattr(geometry, "camera_frame", lambda pixels: built.append(1) or original(pixels))
    subject = Subject(Doubling(), (images(2),))
    report = measure_parity(subject, [], perturbations=perturbations("all"), pixels=PixelSpace())
    assert len(report.sensitivity) == len(CATALOGUE)
    assert len(built) == 1


# Numbers that stand still.


class Columns(nn.Module):
    """The column at which each row is brightest on average: a line that moves exactly as its picture does."""

    def forward(self, pictures):
        weights = pictures.mean(1) - pictures.mean(1).amin(-1, keepdim=True)
        places = torch.arange(pictures.shape[-1]).to(pictures.dtype)
        return (weights * places).sum(-1) / weights.sum(-1)


def bright_lines(count, sides=(48, 80)):
    """Pictures with one soft vertical line each."""
    generator = torch.Generator().manual_seed(0)
    middle = 25 + 30 * torch.rand(count, 1, 1, generator=generator)
    places = torch.arange(sides[1]).expand(count, sides[0], sides[1])
    return (torch.exp(-((places - middle) ** 2) / 18)[:, None].expand(-1, 3, -1, -1) * 200).round() / 255


def follow(values, matrix):
    rows = torch.arange(48.0)
    return {"x_px": move_columns(values["x_px"], rows, matrix)}


def test_a_network_that_follows_its_picture_is_not_sensitive():
    """Half a pixel of shift moves the answer by half a pixel, and by nothing beyond it; a gain is no motion."""
    report = measure_parity(
        Subject(Columns(), (bright_lines(8),)),
        [],
        decode=lambda outputs: {"x_px": outputs},
        moved=follow,
        perturbations=perturbations(["shift_half_pixel", "crop", "brightness"]),
        pixels=PixelSpace(),
    )
    shift, crop, gain = (report.sensitivity[name] for name in ("shift_half_pixel", "crop", "brightness"))
    assert shift["x_px_mean"] == pytest.approx(0.5, abs=0.02)
    assert shift[BEYOND] < 0.05
    assert crop["x_px_p99"] > 0.4
    assert crop[BEYOND] < 0.05
    assert gain[BEYOND] == gain["x_px_mean"]
    assert "sensitivity/crop/beyond_geometry" in report.basis


def test_without_moved_a_motion_is_not_told_apart():
    settings = {"perturbations": perturbations(["shift_half_pixel", "bgr"]), "pixels": PixelSpace()}
    subject = Subject(Columns(), (bright_lines(4),))
    report = measure_parity(subject, [], decode=lambda y: {"x_px": y}, **settings)
    assert BEYOND not in report.sensitivity["shift_half_pixel"]
    assert BEYOND in report.sensitivity["bgr"]

    def broken(values, matrix):
        raise KeyError("planted")

    report = measure_parity(subject, [], decode=lambda y: {"x_px": y}, moved=broken, **settings)
    assert BEYOND not in report.sensitivity["shift_half_pixel"]
    assert [note for note in report.notes if "planted" in note] == [
        "`moved` failed and is left out: KeyError: 'planted'"
    ]


class Counted(Runtime):
    """A runtime whose error is the same on every sample, or differs from sample to sample; it counts what it runs."""

    def __init__(self, name, spread, *, slow=False):
        super().__init__(name, "fp32")
        self.spread, self.slow, self.seen = spread, slow, 0

    def build(self, subject):
        def run(args):
            self.seen += len(args[0])
            uniform = (1000 * args[0].double().sum((1, 2, 3))).remainder(1)
            normal = torch.erfinv(1.99 * uniform - 0.995)[:, None]
            return [args[0].mean((2, 3)) + 0.01 * (1 + self.spread * normal)]

        return Built(run)


def test_measuring_stops_when_the_interval_is_narrow():
    """Equal errors are known after one window of 16; errors of all sizes take every sample; a tolerance needs few."""
    torch.manual_seed(0)
    subject = Subject(Doubling(), (torch.rand(200, 3, 4, 4),))
    equal, various, allowed, engine = (
        *(Counted("equal", 0.0), Counted("various", 0.9), Counted("allowed", 0.9)),
        Counted("engine", 0.9, slow=True),
    )
    report = measure_parity(
        subject,
        [equal, various, allowed, engine],
        decode=lambda outputs: {"level": outputs},
        tolerance={"allowed-fp32/level_p99": 1.0},
    )
    assert [runtime.seen for runtime in (equal, various, allowed, engine)] == [16, 200, 16, 16]
    basis = report.basis["parity/various-fp32/level_p99"]
    assert (basis.samples, report.samples) == (200, 200)
    assert basis.low < report.targets["various-fp32"].metrics["level_p99"] <= basis.high
    assert basis.high - basis.low < 0.3 * basis.high


def test_known_points_are_the_unit_everywhere():
    """The links, the perturbations and the targets count in the points that the model knows."""
    known = torch.zeros(4, 3, dtype=torch.bool)
    known[:, 0] = True
    report = measure_parity(
        Subject(Doubling(), ((images(4) * 255).round() / 255,)),
        available(["onnxruntime-fp32", "emulated-fp16"]),
        decode=lambda outputs: {"level": outputs * 255},
        known=lambda values, rows: known[rows],
        perturbations=perturbations(["bgr"]),
        pixels=PixelSpace(),
    )
    assert report.unit == "level_known_p99"
    means = images(4).mean((2, 3)) * 255
    moved = (means - means.flip(1)).abs()
    assert report.sensitivity["bgr"]["level_known_p99"] == pytest.approx(moved[:, 0].max().item(), rel=0.05)
    assert report.sensitivity["bgr"]["level_guessed_max"] == pytest.approx(moved[:, 1:].max().item(), rel=0.05)
    assert report.attribution["fp16"] == pytest.approx(
        report.targets["emulated-fp16"].metrics["level_known_p99"], rel=0.02
    )


def test_what_storing_the_outputs_costs():
    """Outputs of 959 and 1.5 have steps of 0.5 and of 0.001 in fp16; fp32 engines store what they compute."""

    class Far(nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :2] * 0 + torch.tensor([958.75, 1.5], dtype=x.dtype)

    report = measure_parity(
        Subject(Far(), (torch.rand(4, 2, 2),)),
        available(["torch-fp16", "torch-bf16", "torch-fp32"]),
        decode=lambda outputs: {"x_px": outputs},
    )
    assert report.targets["torch-fp16"].metrics["storage"] == 0.25
    assert report.targets["torch-bf16"].metrics["storage"] == 1.25
    assert "storage" not in report.targets["torch-fp32"].metrics


# Bad input.


def test_rejects_no_samples():
    with pytest.raises(ValueError, match="samples to measure on, but got none"):
        measure_parity(Subject(nn.Identity(), (torch.zeros(0, 3),)), available(["torch-bf16"]))


def test_constant_outputs_are_said():
    class Constant(nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :4] * 0 + 1.0

    report = measure_parity(Subject(Constant(), (torch.rand(4, 3, 2),)), available(["torch-fp16"]))
    assert "Output 0 is constant on these samples" in report.remarks[0]
    assert report.targets["torch-fp16"].metrics["rel_l2"] == 0


def test_nan_everywhere_is_no_perfect_deployment():
    class Lost(nn.Module):
        def forward(self, x):
            return x.flatten(1) * torch.nan

    report = measure_parity(
        Subject(Lost(), (torch.rand(4, 3),)), available(["torch-fp16"]), decode=lambda y: {"x_px": y}
    )
    assert report.targets["torch-fp16"].metrics["rel_l2"] == float("inf")
    assert report.basis == {}


def test_no_session_waits_for_the_garbage_collector(monkeypatch):
    """Collected in a forked process, as a loader's worker is, it would wait there for threads that do not exist."""
    alive, opened = weakref.WeakSet(), []
    original = Session.__init__

    def remember(self, *args, **settings):
        alive.add(self)
        opened.append(1)
        original(self, *args, **settings)

    monkeypatch.setattr(Session, "__init__", remember)
    subject = Subject(frozen_copy(SmallCNN()), (images(20),))
    runtimes = available(["onnxruntime-fp32", "emulated-tf32", "emulated-fp16"])
    gc.collect()
    gc.disable()
    try:
        report = measure_parity(
            subject, runtimes, perturbations=perturbations(["bgr"]), pixels=PixelSpace(), perturb_targets=True
        )
        localise(subject, examine_head(subject, report, Task()))
        assert len(alive) == 0
    finally:
        gc.enable()
    assert len(opened) >= 5


class WithAnchors(nn.Module):
    """Offsets for each sample, and the places that they are from, which are the same for all."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 50)
        self.register_buffer("anchors", torch.arange(50.0))

    def forward(self, x):
        return self.head(x), 1.0 * self.anchors


class WithLoss(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        return self.head(x).square().mean(), self.head(x)


@pytest.mark.parametrize(
    ("module", "decode"),
    [
        (WithAnchors(), lambda outputs: {"x_px": outputs[0] + outputs[1]}),
        (WithLoss(), lambda outputs: {"x_px": outputs[1]}),
    ],
)
def test_outputs_that_are_of_no_sample_go_whole_to_decode(module, decode):
    """On more samples than one window has; links rest on them all."""
    x = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    report = measure_parity(
        Subject(module.eval(), (x,)), available(["onnxruntime-fp32", "emulated-fp16"]), decode=decode
    )
    assert (report.unit, report.notes) == ("x_px_p99", ())
    link = next(link for link in report.chain if link.key == "fp16")
    assert link.samples >= 16
    assert link.value == pytest.approx(report.targets["emulated-fp16"].metrics["x_px_p99"], rel=0.1)


def test_what_fails_on_later_samples_takes_only_them():
    """`known` has no file for them; the target is not to blame."""

    def known(values, rows):
        if rows.stop > 16:
            raise OSError("no file for sample 17")
        return torch.ones(rows.stop, 4, dtype=torch.bool)

    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    report = measure_parity(
        Subject(nn.Linear(8, 4).eval(), (x,)),
        available(["torch-fp16", "emulated-fp16"]),
        decode=lambda outputs: {"x_px": outputs},
        known=known,
    )
    assert [target.status for target in report.targets.values()] == ["measured", "measured"]
    assert (report.unit, report.samples) == ("x_px_known_p99", 16)
    (note,) = report.notes
    assert note == (
        "Numbers rest on the first 16 samples at most: `known` or `decode` failed on the next ones (OSError: no file "
        "for sample 17)."
    )
