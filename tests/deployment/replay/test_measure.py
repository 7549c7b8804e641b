"""Replay: lines of known frames through PyTorch, planted runtimes and perturbations."""

import math
import re

import pytest
import torch
from torch import nn

from lightning_robust.deployment.engines import Built, Runtime, available, run_module
from lightning_robust.deployment.engines.base import BulkRunner
from lightning_robust.deployment.engines.builder import Ability
from lightning_robust.deployment.pixels.catalogue import perturbations
from lightning_robust.deployment.replay import tracks
from lightning_robust.deployment.replay.frames import open_recording
from lightning_robust.deployment.replay.measure import replay
from lightning_robust.deployment.replay.results import worst
from lightning_robust.functional.pixels import PixelSpace

from ..recordings import HEIGHT, WIDTH, Stripes, save_pictures, save_video, stripes

PIXELS = PixelSpace(0.25, 0.5)


class Planted(Runtime):
    """PyTorch with something done to the columns and masses; in bulk like an engine in a process of its own."""

    def __init__(self, change, precision="fp32", bulk=False):
        super().__init__("planted", precision)
        self.change, self.seen, self.bulk, self.starts = change, 0, bulk, []

    def build(self, subject):
        def run(args):
            columns, mass = run_module(subject.module, args)
            first, self.seen = self.seen, self.seen + len(columns)
            return self.change(columns.clone(), mass.clone(), torch.arange(first, self.seen))

        def run_sets(sets):
            self.starts.append([len(args[0]) for args in sets])
            return [run(args) for args in sets]

        return Built(BulkRunner(run_sets) if self.bulk else run, note="planted")


def moved(by):
    return lambda columns, mass, number: [columns + by, mass]


def swinging(columns, mass, number):
    columns[:, 1] += (0.75 * (-1.0) ** number)[:, None]
    return [columns, mass]


def dropping(columns, mass, number):
    mass[number == 3, 0] = 0
    mass[number == 5, 1, :2] = 0
    return [columns, mass]


def failing(columns, mass, number):
    if 6 in number:
        raise RuntimeError("out of memory\nand a long trace")
    return [columns, mass]


@pytest.fixture
def recording(tmp_path):
    # left: 2 px a frame; right: from 40 to 44 and back
    frames = stripes(range(6, 28, 2), [40, 44] * 5 + [40])
    return open_recording(save_pictures(tmp_path / "frames", frames), batch_size=4)


def test_pytorch_by_itself(recording):
    report = replay(Stripes(), recording, [])
    assert report.value == "columns_px"
    assert report.frames == tuple(range(11))
    left, right = report.reference.lines
    assert left["swing"] == pytest.approx(0.0, abs=1e-4)
    assert right["swing"] == pytest.approx(4.0, abs=1e-4)
    assert left["bend"] == right["bend"] == pytest.approx(0.0, abs=1e-4)
    assert left["present"] == right["present"] == 1.0
    torch.testing.assert_close(report.reference.columns[:, 0, 0], torch.arange(6, 28, 2).double())
    assert report.notes == ()


@pytest.mark.parametrize(("held", "starts"), [(1 << 28, [[4, 4, 3]]), (0, [[4], [4], [3]])])
def test_a_runner_in_bulk_starts_once_and_sees_what_others_see(recording, monkeypatch, held, starts):
    monkeypatch.setattr(tracks, "_HELD", held)
    bulk, single = Planted(swinging, "fp16", bulk=True), Planted(swinging)
    report = replay(Stripes(), recording, [bulk, single])
    assert bulk.starts == starts
    torch.testing.assert_close(*(report.runtimes[made.name].columns for made in (bulk, single)), rtol=0, atol=0)


def test_planted_deviations_and_the_worst(recording):
    runtimes = [Planted(moved(0.5), "fp32"), Planted(swinging, "fp16"), Planted(moved(0.1), "bf16")]
    report = replay(Stripes(), recording, runtimes)
    assert worst(report.runtimes) == "planted-fp16"
    assert worst(report.perturbations) is None
    displaced, swung = report.runtimes["planted-fp32"].lines, report.runtimes["planted-fp16"].lines
    assert displaced[0]["p99"] == displaced[0]["bias"] == pytest.approx(0.5, abs=1e-5)
    assert displaced[0]["swing_beyond"] == pytest.approx(0.0, abs=1e-5)
    assert displaced[1]["swing"] == pytest.approx(4.0, abs=1e-4)
    assert swung[0]["swing_beyond"] == 0.0
    assert swung[1]["swing_beyond"] == pytest.approx(1.5, abs=1e-5)
    assert swung[1]["swing"] == pytest.approx(2.5, abs=1e-4)  # 4 between, less 0.75 at both ends


def test_dropouts(recording):
    report = replay(Stripes(), recording, [Planted(dropping)])
    left, right = report.runtimes["planted-fp32"].lines
    assert left["lost"] == left["frames_lost"] == pytest.approx(1 / 11)
    assert right["lost"] == pytest.approx(2 / 44)
    assert right["frames_lost"] == 0.0
    assert left["present"] == pytest.approx(10 / 11)


def test_a_failure_ends_its_own_line_only(recording):
    report = replay(Stripes(), recording, [Planted(failing), Planted(moved(1.0), "fp16")])
    failed = report.runtimes["planted-fp32"]
    assert (failed.status, failed.note) == ("failed", "RuntimeError: out of memory")
    assert failed.lines == ()
    assert report.runtimes["planted-fp16"].lines[0]["mean"] == pytest.approx(1.0, abs=1e-5)


def test_engines_that_cannot_run_have_no_numbers(recording):
    class NotRun(Runtime):
        def build(self, subject):
            return Built(None, 100, "not run: no device")

    class NotHere(Runtime):
        def can_build(self, settings=None):
            return Ability(False, "missing")

        def build(self, subject):
            raise AssertionError

    report = replay(Stripes(), recording, [NotRun("engine", "fp16"), NotHere("other", "fp16")])
    built, missing = report.runtimes.values()
    assert (built.status, built.note, built.lines, built.columns) == ("built", "not run: no device", (), None)
    assert (missing.status, missing.note) == ("unavailable", "missing")
    assert worst(report.runtimes) is None


def test_real_runtimes_keep_their_order_of_error(recording):
    targets = ["torch-fp32", "onnxruntime-fp32", "emulated-fp16", "emulated-bf16"]
    report = replay(Stripes(), recording, available(targets))
    assert [result.status for result in report.runtimes.values()] == ["measured"] * 4
    errors = [result.p99 for result in report.runtimes.values()]
    assert errors[0] == 0.0
    assert errors[1] < 1e-4 < errors[2] < errors[3] < 1.0
    # columns near 44 are multiples of 1/32 in fp16 and of 1/4 in bf16
    assert errors[2] <= 2 / 32
    assert errors[3] <= 2 / 4


def test_perturbations_against_what_training_makes_of_the_pixels(recording):
    chosen = perturbations(["shift_half_pixel", "resize_align_corners", "bgr"])
    report = replay(Stripes(), recording, [], perturbations=chosen, pixels=PIXELS)
    assert list(report.perturbations) == [entry.name for entry in chosen]
    assert worst(report.perturbations) == "shift_half_pixel"
    shifted = report.perturbations["shift_half_pixel"]
    assert shifted.lines[0]["bias"] == pytest.approx(0.5, abs=0.02)
    assert shifted.lines[1]["swing_beyond"] == pytest.approx(0.0, abs=0.02)
    assert report.perturbations["bgr"].p99 == 0.0  # the frames are grey
    assert "half a pixel" in shifted.note


def test_known_points_are_told_from_guessed_ones(recording):
    """The model is sure of the right line alone; the deployed side moves the left one by 5 and the right one by 1."""

    class Sure(Stripes):
        def decode(self, outputs):
            columns, _ = outputs
            sure = torch.tensor([0.4, 0.6]).view(1, 2, 1).expand_as(columns)
            return super().decode(outputs) | {"confidence": sure}

    change = torch.tensor([5.0, 1.0]).view(1, 2, 1)
    left, right = replay(Sure(), recording, [Planted(moved(change))]).runtimes["planted-fp32"].lines
    assert left["guessed_p99"] == pytest.approx(5.0, abs=1e-4)
    assert "known_p99" not in left
    assert right["known_p99"] == right["p99"] == pytest.approx(1.0, abs=1e-4)
    assert right["known_lost"] == 0.0
    plain = replay(Stripes(), recording, [Planted(moved(change))]).runtimes["planted-fp32"].lines
    assert not any("known" in key for line in plain for key in line)


def test_the_motion_of_the_picture_is_told_from_sensitivity(recording):
    """Half a pixel to the right moves the right answer by as much: nothing is left of 0.5 px."""

    class Moving(Stripes):
        def moved(self, values, matrix):
            return {"columns_px": values["columns_px"] + matrix[0, 2]}

    chosen = perturbations(["shift_half_pixel", "bgr"])
    report = replay(Moving(), recording, [], perturbations=chosen, pixels=PIXELS)
    shifted, swapped = report.perturbations["shift_half_pixel"], report.perturbations["bgr"]
    assert all(line["mean"] == pytest.approx(0.5, abs=0.02) for line in shifted.lines)
    assert all(line["mean_beyond_motion"] == pytest.approx(0.0, abs=0.02) for line in shifted.lines)
    assert not any("mean_beyond_motion" in line for line in swapped.lines)


def test_of_what_decode_gives_lines_alone_are_kept(recording, monkeypatch):
    """A mask of every pixel beside the lines would fill the memory over a long recording."""
    kept, result = [], tracks.Track.result

    class Masks(Stripes):
        def decode(self, outputs):
            return super().decode(outputs) | {"mask": torch.zeros(len(outputs[0]), 8, 8)}

    def spy(track, frames):
        kept.extend(track.pairs)
        return result(track, frames)

    monkeypatch.setattr(tracks.Track, "result", spy)
    replay(
        Masks(),
        recording,
        [Planted(moved(1.0))],
        perturbations=perturbations(["bgr"]),
        pixels=PIXELS,
        value="columns_px",
    )
    assert len(kept) == 9  # three chunks of PyTorch, of the runtime, of the perturbation
    assert all(pair.reference.values == {} for pair in kept)


def test_a_broken_moved_is_a_note(recording):
    class Broken(Stripes):
        def moved(self, values, matrix):
            raise KeyError("columns")

    report = replay(
        Broken(), recording, [], perturbations=perturbations(["shift_half_pixel", "shift_one_pixel"]), pixels=PIXELS
    )
    assert report.perturbations["shift_half_pixel"].lines[0]["mean"] == pytest.approx(0.5, abs=0.02)
    assert report.notes == ("`moved` failed and is left out: KeyError: 'columns'",)


def test_lines_are_looked_for_before_anything_is_built(recording):
    built = []

    class Counted(Planted):
        def build(self, subject):
            built.append(subject)
            return super().build(subject)

    with pytest.raises(ValueError, match="named 'steering', but got"):
        replay(Stripes(), recording, [Counted(moved(0.0))], value="steering")
    assert built == []


def test_perturbations_of_one_reference_share_it(recording):
    names = ["resize_bilinear", "resize_nearest", "bgr", "jpeg_90"]
    report = replay(Stripes(), recording, [], perturbations=perturbations(names), pixels=PIXELS)
    bilinear, nearest, bgr, jpeg = (report.perturbations[name].reference for name in names)
    torch.testing.assert_close(bilinear, nearest, rtol=0, atol=0)
    torch.testing.assert_close(bgr, jpeg, rtol=0, atol=0)
    torch.testing.assert_close(bgr, report.reference.columns, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [(None, "not known how pixels are normalised"), (PixelSpace(), r"Expected pixels in \[0, 1\]")],
)
def test_unknown_normalisation_is_a_note(recording, pixels, reason):
    report = replay(Stripes(), recording, [], perturbations=perturbations(["bgr"]), pixels=pixels)
    assert report.perturbations == {}
    assert re.search(reason, report.notes[0])


def test_batches_do_not_matter(tmp_path):
    folder = save_pictures(tmp_path / "frames", stripes(range(6, 20, 2), range(50, 43, -1)))
    chosen = perturbations(["resize_area", "jpeg_90"])
    first, second = (
        replay(
            Stripes(),
            open_recording(folder, batch_size=size),
            available(["onnxruntime-fp32"]),
            perturbations=chosen,
            pixels=PIXELS,
        )
        for size in (1, 7)
    )
    for one, many in zip(first.perturbations.values(), second.perturbations.values(), strict=True):
        torch.testing.assert_close(one.columns, many.columns, rtol=0, atol=1e-4)
    torch.testing.assert_close(
        first.runtimes["onnxruntime-fp32"].columns, second.runtimes["onnxruntime-fp32"].columns, rtol=0, atol=1e-4
    )


def test_a_video_of_one_frame_has_no_swing(tmp_path):
    video = save_video(tmp_path / "one.mp4", stripes([8], [40]))
    report = replay(Stripes(), open_recording(video), [Planted(moved(1.0))])
    assert "swing" not in report.reference.lines[0]
    assert report.reference.lines[0]["present"] == 1.0
    assert report.runtimes["planted-fp32"].lines[0]["mean"] == pytest.approx(1.0, abs=1e-5)
    assert "swing_beyond" not in report.runtimes["planted-fp32"].lines[0]
    assert any("Swing is undefined" in note and "Frames in all: 1." in note for note in report.notes)


def test_undecodable_frames_are_counted_and_no_movement_is_seen_across_them(tmp_path):
    folder = save_pictures(tmp_path / "frames", stripes([4, 6, 8, 20, 22, 24, 26], [40] * 7))
    (folder / "frame_3.png").write_bytes(b"broken")
    report = replay(Stripes(), open_recording(folder), [])
    assert report.frames == (0, 1, 2, 4, 5, 6)
    assert list(report.skipped) == ["frame_3.png"]
    assert "decoded: 1 (frame_3.png: UnidentifiedImageError" in report.notes[0]
    assert report.reference.lines[0]["swing"] == pytest.approx(0.0, abs=1e-4)


def test_frames_without_lines(tmp_path):
    folder = save_pictures(tmp_path / "frames", stripes([None] * 4, [40] * 4))
    report = replay(Stripes(), open_recording(folder), [Planted(moved(1.0))])
    left, right = report.runtimes["planted-fp32"].lines
    assert left == dict.fromkeys(("present", "mean", "p99", "max", "bias", "lost", "gained", "frames_lost"), 0.0)
    assert right["max"] == pytest.approx(1.0, abs=1e-5)
    assert report.notes == ()


def test_everything_lost_is_the_worst(recording):
    def nothing(columns, mass, number):
        return [columns, torch.zeros_like(mass)]

    report = replay(Stripes(), recording, [Planted(moved(30.0)), Planted(nothing, "fp16")])
    assert worst(report.runtimes) == "planted-fp16"
    assert report.runtimes["planted-fp16"].p99 == math.inf


@pytest.mark.parametrize("method", ["preprocess", "decode"])
def test_rejects_modules_without_a_method(recording, method):
    class Bare(nn.Module):
        pass

    other = {"preprocess": "decode", "decode": "preprocess"}[method]
    setattr(Bare, other, lambda self, value: value)
    with pytest.raises(TypeError, match=rf"Expected Bare to have a method `{method}`.*Write `def {method}\(self"):
        replay(Bare(), recording, [])


def test_rejects_decode_without_lines(recording):
    class Points(Stripes):
        def decode(self, outputs):
            return {"points": outputs[0][0]}

    with pytest.raises(ValueError, match=r"floating tensor \(frames, lines, rows\), but got \{'points': \(2, 4\)\}"):
        replay(Points(), recording, [])
    with pytest.raises(ValueError, match=r"named 'present', but got"):
        replay(Stripes(), recording, [], value="present")


def test_rejects_rows_of_another_number(recording):
    """Before anything is built, not when the first picture is drawn."""
    module = Stripes()
    module.rows = module.rows[:-1]
    with pytest.raises(ValueError, match=r"Expected `rows` of Stripes to be the \d+ rows that the columns of"):
        replay(module, recording, [])


def test_rejects_preprocess_of_another_number(recording):
    class Half(Stripes):
        def preprocess(self, frames):
            return super().preprocess(frames)[::2]

    with pytest.raises(ValueError, match=r"one sample for each of 4 frames, but got a tensor of shape \(2, 3,"):
        replay(Half(), recording, [])


def test_several_arguments_and_no_geometry(recording):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Stripes()

        def preprocess(self, frames):
            return self.inner.preprocess(frames), torch.ones(len(frames), 1)

        def forward(self, images, scale):
            columns, mass = self.inner(images)
            return {"columns": columns * scale[:, None], "mass": mass}

        def decode(self, outputs):
            return self.inner.decode(outputs.values())

    report = replay(
        Two(), recording, available(["onnxruntime-fp32"]), perturbations=perturbations(["bgr"]), pixels=PIXELS
    )
    assert report.runtimes["onnxruntime-fp32"].p99 < 1e-4
    assert report.perturbations["bgr"].status == "measured"
    assert report.geometry is None
    assert any("No pictures" in note for note in report.notes)


def test_the_module_is_left_alone(recording):
    module = Stripes().train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    report = replay(module, recording, available(["torch-bf16"]))
    assert module.training
    assert module.places.dtype == torch.float32
    torch.testing.assert_close(module.state_dict(), before)
    assert (report.geometry.height, report.geometry.width) == (HEIGHT, WIDTH)
