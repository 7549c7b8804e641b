"""The command: from a checkpoint and a recording to files."""

import json
import sys

import onnx
import pytest
import torch
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_robust.cli import main
from lightning_robust.demo.lanes import LaneDetector
from lightning_robust.deployment.graph.export import export, frozen_copy
from lightning_robust.deployment.numerics.convert import to_half
from lightning_robust.harness.runs import load_module

from ..boring import make_trainer
from ..deployment.recordings import save_pictures, save_video, stripes

SMALL = {"height": 64, "width": 96, "channels": 8, "hidden": 16}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder: config.yaml and a checkpoint of a detector that finds something everywhere."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    model = LaneDetector(**SMALL)
    with torch.no_grad():
        model.network.absent.bias.fill_(-5.0)
    trainer = make_trainer(folder)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(folder / "lanes.ckpt")
    lanes = "lightning_robust.demo.lanes"
    config = {
        "model": {"class_path": f"{lanes}.LaneDetector", "init_args": SMALL},
        "data": {"class_path": f"{lanes}.LaneData", "init_args": {"height": 64, "width": 96}},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.fixture
def frames():
    return stripes(range(30, 54, 4), range(110, 134, 4), height=90, width=160)


def options(run, frames, output, *more):
    return ["replay", f"--ckpt={run / 'lanes.ckpt'}", f"--frames={frames}", f"--output={output}", *more]


class Renamed(LaneDetector):
    """Its reading has another name, as the run says to the parity callback."""

    def read_lanes(self, outputs):
        return {"columns": super().decode(outputs)["lateral_px"] + 1.0}

    decode = None


def test_the_run_says_what_decode_is_called(run, frames, tmp_path, capsys):
    """The checkpoint is found in the folder, and lines are read by the run's own method."""
    content = yaml.safe_load((run / "config.yaml").read_text())
    content["model"]["class_path"] = "tests.commands.test_replay.Renamed"
    renamed = tmp_path / "run"
    renamed.mkdir()
    (renamed / "lanes.ckpt").symlink_to(run / "lanes.ckpt")
    chosen = [f"--frames={save_pictures(tmp_path / 'frames', frames[:2])}", f"--output={tmp_path / 'out'}"]
    chosen += ["--targets=[torch-bf16]", "--perturbations=none"]
    for section, told in (({"decode": "read_lanes"}, "`columns`"), ({"decode": "absent"}, "a method `absent`")):
        (renamed / "config.yaml").write_text(yaml.safe_dump(content | {"deployment_parity": section}))
        if "absent" in told:
            with pytest.raises(SystemExit):
                main(["replay", f"--run={renamed}", *chosen])
            assert told in capsys.readouterr().err
            continue
        main(["replay", f"--run={renamed}", *chosen])
        printed = capsys.readouterr().out
        assert f"Checkpoint: {renamed}/lanes.ckpt (the only one), configuration: {renamed}/config.yaml" in printed
        assert told in printed


def test_files_and_table(run, frames, tmp_path, capsys):
    video, output = save_video(tmp_path / "drive.mp4", frames), tmp_path / "out"
    chosen = ["--targets=[torch-fp32,torch-bf16]", "--perturbations=[bgr,color_matrix]"]
    main(options(run, video, output, *chosen))
    printed = capsys.readouterr().out
    assert "Worst runtime: torch-bf16, up to" in printed
    assert "6 frames, 0 skipped, `lateral_px`" in printed
    numbers = json.loads((output / "replay.json").read_text())
    assert numbers["runtimes"]["torch-fp32"]["lines"][0]["p99"] == 0.0
    assert numbers["runtimes"]["torch-bf16"]["lines"][0]["p99"] > 0.0
    assert set(numbers["perturbations"]) == {"bgr", "color_matrix"}  # the data module told mean and std
    assert numbers["notes"] == []
    assert "| torch-bf16" in (output / "replay.md").read_text()
    with Image.open(output / "worst_frames.png") as picture:
        assert picture.size[0] == 1430
    with Image.open(output / "replay.gif") as film:
        assert film.n_frames == 6
    events = EventAccumulator(str(output)).Reload()
    assert events.Tags()["images"] == ["replay/worst_frames"]
    (scalar,) = events.Scalars("replay/torch-bf16/line_0/p99")
    assert scalar.value == pytest.approx(numbers["runtimes"]["torch-bf16"]["lines"][0]["p99"])


def test_folder_with_a_broken_frame(run, frames, tmp_path, capsys):
    folder = save_pictures(tmp_path / "frames", frames)
    (folder / "frame_2.png").write_bytes(b"broken")
    main(options(run, folder, tmp_path / "out", "--targets=[torch-bf16]", "--perturbations=none", "--limit=4"))
    printed = capsys.readouterr().out
    assert "4 frames, 1 skipped" in printed
    assert "could not be decoded: 1 (frame_2.png: " in printed


def test_given_normalisation_goes_first(run, frames, tmp_path, capsys):
    folder = save_pictures(tmp_path / "frames", frames[:2])
    main(options(run, folder, tmp_path / "out", "--targets=[torch-fp32]", "--perturbations=[bgr]", "--std=5.0"))
    assert "Preprocessing was not perturbed: Expected pixels in [0, 1]" in capsys.readouterr().out


def test_settings_and_the_deployed_file(run, frames, tmp_path, capsys):
    """A kept head lowers what bf16 does to the lines; our own conversion moves them as the emulation does."""
    folder = save_pictures(tmp_path / "frames", frames[:3])
    module = load_module(run / "lanes.ckpt")
    example = (module.preprocess(torch.from_numpy(frames[:2])),)
    onnx.save(to_half(export(frozen_copy(module), example).model, "bf16"), tmp_path / "car.onnx")
    common = ["--targets=[emulated-bf16]", "--perturbations=none"]
    main(options(run, folder, tmp_path / "a", *common, "--keep_fp32=[]", f"--deployed={tmp_path / 'car.onnx'}"))
    (tmp_path / "keep.json").write_text(json.dumps({"nodes": list(module.keep_fp32)}))
    main(options(run, folder, tmp_path / "b", *common, f"--keep_fp32={tmp_path / 'keep.json'}"))
    before, after = (json.loads((tmp_path / x / "replay.json").read_text())["runtimes"] for x in "ab")
    ours, theirs = before["deployed-bf16"], before["emulated-bf16"]
    assert ours["lines"] == theirs["lines"]
    assert ours["lines"][0]["p99"] > 0.0
    assert after["emulated-bf16"]["lines"][0]["p99"] < 0.1 * theirs["lines"][0]["p99"]


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (["--targets=[emulated-fp61]"], "Did you mean 'emulated-fp16'"),
        (["--stride=0"], "Expected `stride` to be positive, but got 0"),
        (["--value=steering"], "named 'steering'"),
        (["--time_limit=0"], "Expected `time_limit` to be positive, but got 0"),
        (["--batch_size=-1"], "Expected `batch_size` to be positive"),
        (["--limit=0"], "Expected `limit` to be positive"),
        (["--targets=[]"], "Expected a target or a perturbation to measure, but got neither"),
        (["--before=a.ckpt"], "Expected `before` together with --cases"),
        (["--output=/dev/null"], "Expected a folder for the results at /dev/null, but /dev/null is no folder"),
    ],
)
def test_rejects(run, frames, tmp_path, capsys, more, complaint):
    folder = save_pictures(tmp_path / "frames", frames[:2])
    with pytest.raises(SystemExit) as stop:
        main(options(run, folder, tmp_path / "out", "--perturbations=none", *more))
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert complaint in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("empty", "Expected pictures ("),
        ("drive.mp4", "drive.mp4, but it cannot be opened: Invalid data"),
        ("damaged", "none of its 1 could be decoded. The first is 0.png: UnidentifiedImageError"),
        ("nowhere", "but nothing is there"),
    ],
)
def test_rejects_recordings_without_frames(run, tmp_path, capsys, source, complaint):
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged/0.png").write_bytes(b"broken")
    (tmp_path / "drive.mp4").write_bytes(b"broken" * 99)
    with pytest.raises(SystemExit) as stop:
        main(options(run, tmp_path / source, tmp_path / "out"))
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert complaint in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_without_pyav(run, frames, tmp_path, capsys, monkeypatch):
    video = save_video(tmp_path / "drive.mp4", frames[:1])
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(SystemExit):
        main(options(run, video, tmp_path / "out"))
    assert 'pip install "lightning-robust[video]"' in capsys.readouterr().err
