"""What is read out of a run's folder, against what was written there."""

import errno
import json
import math
import os
import time
import tracemalloc

import pytest
import yaml
from torch.utils.tensorboard import SummaryWriter

from lightning_robust.comparison.finished_runs import FAMILY, SECONDS, WORST, find_runs, read_run
from lightning_robust.comparison.page import html_page, markdown_page
from lightning_robust.comparison.table import compare_runs
from lightning_robust.deployment.parity.result import ParityReport
from lightning_robust.deployment.report.page import write_report


def write_run(folder, scalars, *, config=None, begun=1000.0):
    """A run that logged each scalar at steps 0 and 1, ten seconds apart, the second being the given value."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config or {"seed_everything": 0}))
    with SummaryWriter(str(folder)) as writer:
        for tag, value in scalars.items():
            writer.add_scalar(tag, value + 1, 0, walltime=begun)
            writer.add_scalar(tag, value, 1, walltime=begun + 10)
    return folder


def test_last_value_by_step(tmp_path):
    run = read_run(write_run(tmp_path / "run", {"val/acc": 0.75}))
    assert run.scalars["val/acc"] == 0.75
    assert (run.config, run.notes) == ({"seed_everything": 0}, ())


def test_time_of_several_files_leaves_the_pause_out(tmp_path):
    """Ten seconds of each file count (its own first event is written now, later than what is logged here)."""
    folder = write_run(tmp_path / "run", {"val/acc": 0.5}, begun=1000.0)
    with SummaryWriter(str(folder), filename_suffix=".again") as writer:
        writer.add_scalar("val/acc", 0.25, 3, walltime=5010.0)
        writer.add_scalar("val/acc", 0.5, 2, walltime=5000.0)
    run = read_run(folder)
    assert run.scalars[SECONDS] == 20.0
    assert run.scalars["val/acc"] == 0.25


def test_the_last_report_of_several_fits_in_one_folder(tmp_path):
    """Numbers behind the name go up, ten after nine; other folders that begin alike are none."""

    def write(name, value):
        (tmp_path / name).mkdir()
        report = {"targets": {"torch-bf16": {"metrics": {"rel_l2": value}}}, "attribution": {}, "unit": "rel_l2"}
        (tmp_path / name / "parity.json").write_text(json.dumps(report | {"sensitivity": {}}))
        return read_run(tmp_path).scalars["parity/torch-bf16/rel_l2"]

    assert write("parity", 0.5) == 0.5
    assert write("parity-v9", 0.25) == 0.25
    assert write("parity-v10", 0.125) == 0.125
    assert write("parity_old", 0.75) == 0.125


def test_a_run_whose_logger_keeps_its_numbers_elsewhere(tmp_path):
    """As W&B and MLflow: its folder has the report and the checkpoints alone."""
    run = tmp_path / "project" / "9x2kq0ab"
    (run / "parity").mkdir(parents=True)
    assert find_runs([tmp_path])[0] == []
    (run / "checkpoints").mkdir()
    assert find_runs([tmp_path])[0] == [run]


def test_csv_parity_and_replay(tmp_path):
    folder = tmp_path / "run"
    (folder / "parity").mkdir(parents=True)
    (folder / "replay").mkdir()
    (folder / "metrics.csv").write_text("epoch,step,val/acc,train/loss\n0,1,,2.0\n0,1,0.5,\n1,3,0.625,\n")
    parity = {
        "targets": {"emulated-fp16": {"metrics": {"px_p99": 0.5}}},
        "attribution": {"fp16": 0.5},
        "unit": "px_p99",
        "families": {"channel_order": 4.0, "chroma": 1.0},
    }
    (folder / "parity" / "parity.json").write_text(json.dumps(parity))
    line = {"swing": 1.5, "bend": 2.0, "p99": 0.25}
    other = {"swing": 3.0, "bend": None, "p99": 0.125}
    replay = {"torch-fp32": {"lines": [line]}, "runtimes": {"emulated-fp16": {"lines": [line, other]}}}
    (folder / "replay" / "replay.json").write_text(json.dumps(replay))
    assert read_run(folder).scalars == {
        "epoch": 1.0,
        "val/acc": 0.625,
        "train/loss": 2.0,
        "parity/emulated-fp16/px_p99": 0.5,
        "attribution/fp16": 0.5,
        "sensitivity/family/channel_order": 4.0,
        "sensitivity/family/chroma": 1.0,
        WORST: 4.0,
        "replay/torch-fp32/swing": 1.5,
        "replay/torch-fp32/bend": 2.0,
        "replay/emulated-fp16/swing": 3.0,
        "replay/emulated-fp16/bend": 2.0,
        "replay/emulated-fp16/p99": 0.25,
    }


@pytest.mark.parametrize("beyond", [0.5, math.nan])
def test_the_worst_family_is_the_same_from_the_report_and_from_the_logger(tmp_path, beyond):
    """On average and beyond the motion of the picture; not the 99th percentile with that motion."""
    sensitivity = {
        "bgr": {"px_p99": 4.0, "px_mean": 1.0, "beyond_geometry": beyond},
        "nv12": {"px_p99": 3.0, "px_mean": 0.25},
    }
    report = ParityReport({}, sensitivity, (), "px_p99", "torch-fp32", samples=8, seconds=1.0)
    write_report(report, tmp_path / "measured" / "parity")
    measured = read_run(tmp_path / "measured").scalars
    logged = read_run(write_run(tmp_path / "logged", report.scalars())).scalars
    families = {tag: value for tag, value in measured.items() if tag == WORST or tag.startswith(FAMILY)}
    assert families == pytest.approx({tag: logged[tag] for tag in families}, nan_ok=True)
    assert families == pytest.approx(
        {f"{FAMILY}channel_order": beyond, f"{FAMILY}compression": 0.25, WORST: beyond}, nan_ok=True
    )


def test_csv_tells_nan_from_an_empty_cell(tmp_path):
    """A loss that became NaN is the last value; a cell that was left empty, or cut off, is not."""
    (tmp_path / "metrics.csv").write_text("epoch,step,val/acc,train/loss\n0,1,0.5,2.0\n1,3,,nan\n2,5\n")
    scalars = read_run(tmp_path).scalars
    assert (scalars["epoch"], scalars["val/acc"]) == (2.0, 0.5)
    assert math.isnan(scalars["train/loss"])


def test_worst_family_is_not_a_number_where_one_is_not(tmp_path):
    scalars = {"sensitivity/family/shift": 2.0, "sensitivity/family/gamma": 3.0}
    assert read_run(write_run(tmp_path / "a", scalars)).scalars[WORST] == 3.0
    scalars["sensitivity/family/gamma"] = math.nan
    assert math.isnan(read_run(write_run(tmp_path / "b", scalars)).scalars[WORST])


@pytest.mark.parametrize(
    ("name", "broken", "told"),
    [
        ("config.yaml", "a: [", "config.yaml could not be read (ValueError: Expected YAML in "),
        ("config.yaml", "- a", "config.yaml could not be read (ValueError: expected keys and values, but got list)"),
        ("metrics.csv", "epoch,val/acc\n0,none\n", "metrics.csv could not be read (ValueError"),
        ("parity.json", "{}", "parity.json could not be read (KeyError"),
    ],
)
def test_broken_files_become_notes(tmp_path, name, broken, told):
    folder = write_run(tmp_path / "run", {"val/acc": 0.5})
    (folder / name).write_text(broken)
    run = read_run(folder)
    assert run.scalars["val/acc"] == 0.5
    assert any(note.startswith(told) for note in run.notes)


def test_damaged_events_are_read_as_far_as_they_go(tmp_path):
    folder = write_run(tmp_path / "run", {"val/acc": 0.5})
    (path,) = folder.glob("events*")
    content = path.read_bytes()
    path.write_bytes(content[:-10])
    assert read_run(folder).scalars["val/acc"] == 1.5  # the first of two


def test_a_run_that_crashed(tmp_path):
    config = {"trainer": {"max_epochs": 8}}
    run = read_run(write_run(tmp_path / "run", {"epoch": 2.0, "val/acc": 0.5}, config=config))
    assert run.notes == ("It ended in epoch 3 of 8 (crashed or stopped early); its last numbers are shown.",)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.yaml").write_text("seed_everything: 0")
    assert "It logged no number" in read_run(tmp_path / "empty").notes[0]


def test_folders_above_runs_and_twice_given_ones(tmp_path):
    runs = [write_run(tmp_path / "runs" / name / "version_0", {"val/acc": 0.5}) for name in "ab"]
    (tmp_path / "nothing").mkdir()
    folders, remarks = find_runs([tmp_path / "runs", runs[0], tmp_path / "nothing", tmp_path / "absent"])
    assert folders == runs
    assert [remark.rpartition(" ")[2] for remark in remarks] == ["once.", "it.", "folder."]


DEEP = "\n".join(" " * level + "a:" for level in range(1500))
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "\n".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
PARITY = {"targets": {}, "attribution": {}, "unit": "px_p99", "sensitivity": {}}
DAMAGE = {
    "csv, a long field": ("metrics.csv", "epoch,val/acc\n0," + "9" * 200_000),
    "csv, NUL": ("metrics.csv", "epoch,val/acc\n0,0.5\0\n"),
    "csv, not UTF-8": ("metrics.csv", b"epoch,val/acc\n0,\xff\n"),
    "csv, no number": ("metrics.csv", "epoch,val/acc\n0,none\n"),
    "csv, a folder": ("metrics.csv", None),
    "yaml, deep": ("config.yaml", DEEP),
    "yaml, a bomb": ("config.yaml", BOMB),
    "yaml, itself": ("config.yaml", "a: &a {b: *a}"),
    "yaml, binary": ("config.yaml", b"\x80\x02\xff"),
    "yaml, NUL": ("config.yaml", "a: \0"),
    "yaml, a tag": ("config.yaml", "a: !!python/object/apply:os.system [ls]"),
    "yaml, huge": ("config.yaml", "#" * 2**23),
    "yaml, trainer is a list": ("config.yaml", "trainer: [1]"),
    "yaml, class_path is a number": ("config.yaml", "trainer: {callbacks: [{class_path: 5}]}"),
    "yaml, init_args is a list": ("config.yaml", "model: {class_path: a.B, init_args: [1]}"),
    "yaml, a key is null": ("config.yaml", "null: true"),
    "json, deep": ("parity.json", "[" * 100_000),
    "json, a list": ("parity.json", "[]"),
    "json, targets is a list": ("parity.json", json.dumps(PARITY | {"targets": [1]})),
    "json, a metric is a list": ("parity.json", json.dumps(PARITY | {"targets": {"a": {"metrics": {"b": [1]}}}})),
    "json, a metric is huge": ("parity.json", json.dumps(PARITY | {"targets": {"a": {"metrics": {"b": 10**400}}}})),
    "json, families is a list": ("parity.json", json.dumps(PARITY | {"families": [1]})),
    "json, not UTF-8": ("parity.json", b"\xff"),
    "json, replay": ("replay.json", '{"torch-fp32": 1, "runtimes": []}'),
    "json, a pipe": ("parity.json", "PIPE"),
    "json, a loop": ("parity.json", "LOOP"),
    "yaml, a loop": ("config.yaml", "LOOP"),
    "events, garbage": ("events.out.tfevents.9", b"\x00\xff" * 999),
    "events, empty": ("events.out.tfevents.9", b""),
    "events, a pipe": ("events.out.tfevents.9", "PIPE"),
    "events, a folder": ("events.out.tfevents.9", None),
}


def write_damage(path, content):
    path.unlink(missing_ok=True)
    if content is None:
        path.mkdir()
    elif content == "PIPE":
        os.mkfifo(path)
    elif content == "LOOP":
        path.symlink_to(path.name)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_run_never_loses_the_comparison(tmp_path, kind):
    """It is a note that names the file; the others are compared, in little time and memory."""
    name, content = DAMAGE[kind]
    write_run(tmp_path / "good", {"val/acc": 0.25})
    write_damage(write_run(tmp_path / "bad", {"val/acc": 0.5}) / name, content)
    tracemalloc.start()
    begun = time.monotonic()
    folders, remarks = find_runs([tmp_path])
    comparison = compare_runs([read_run(folder) for folder in folders])
    page = html_page(comparison, {}) + markdown_page(comparison)
    seconds, peak = time.monotonic() - begun, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (len(folders), remarks) == (2, [])
    values = {value for row in range(len(comparison.rows)) for value in comparison.cell(row, "val/acc")}
    assert values == {0.25, 0.5}
    assert kind == "events, empty" or any(note.startswith("bad ") and name in note for note in comparison.notes)
    assert len(page) < 40_000
    assert seconds < 20
    assert peak < 100e6


def test_loops_and_strays(tmp_path):
    run = write_run(tmp_path / "runs" / "a" / "version_0", {"val/acc": 0.5})
    (tmp_path / "runs" / "loop").symlink_to(tmp_path / "runs")
    (tmp_path / "runs" / "itself").symlink_to("itself")
    (tmp_path / "runs" / "a" / "best").symlink_to("version_0")
    (tmp_path / "runs" / "config.yaml").write_text("a: 1")
    (run / "loss_train").mkdir()  # as add_scalars writes beside a run
    (run / "loss_train" / "events.out.tfevents.1").write_bytes(b"")
    (run.parent / "replay").mkdir()
    (run.parent / "replay" / "events.out.tfevents.1").write_bytes(b"")
    (run.parent / "replay" / "replay.json").write_text("{}")
    folders, remarks = find_runs([tmp_path / "runs"])
    assert folders == [run]
    assert sorted(remarks) == [
        f"{run} was given twice and counts once.",
        f"{tmp_path}/runs/config.yaml was left out: it stands above runs and has no numbers beside it.",
    ]


def test_a_folder_that_may_not_be_opened(tmp_path, monkeypatch):
    """Root may open any, so that the system's answer is made here."""
    run = write_run(tmp_path / "open", {"val/acc": 0.5})
    write_run(tmp_path / "closed", {"val/acc": 0.5})
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("closed"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    folders, remarks = find_runs([tmp_path])
    assert folders == [run]
    assert remarks == [f"{tmp_path}/closed was left out: Permission denied."]
