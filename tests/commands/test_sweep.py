"""One sweep on two local Ray workers, in which processes are killed, and what is refused before Ray starts."""

import contextlib
import csv
import io
import json
import sys
from pathlib import Path

import pytest
import torch
import yaml

from lightning_robust.cli import main
from lightning_robust.commands.sweep import sweep
from lightning_robust.harness.checkpoints import read_state

ROOT = Path(__file__).parents[2]
BASE = {
    "seed_everything": 0,
    "trainer": {"accelerator": "cpu", "max_epochs": 3, "logger": False, "enable_checkpointing": False},
    "model": {"class_path": "tests.distributed.Fragile"},
}
SWEEP = {
    "configs": ["base.yaml"],
    "vary": {"model.dies": ["never", "once", "always"]},
    "monitor": "val/loss",
    "mode": "min",
    "retries": 1,
}


def write(folder, **changes):
    """A sweep and its base file; a key is taken out by None."""
    (folder / "base.yaml").write_text(yaml.safe_dump(BASE))
    content = {key: value for key, value in (SWEEP | changes).items() if value is not None}
    (folder / "sweep.yaml").write_text(yaml.safe_dump(content))
    return str(folder / "sweep.yaml")


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The folder, what was printed, and trials.json."""
    pytest.importorskip("ray.tune", reason="Ray is not installed (pip install 'lightning_robust[sweep]')")
    folder = tmp_path_factory.mktemp("sweep")
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        # for the workers, which are processes of Ray's
        patch.setenv("PYTHONPATH", str(ROOT))
        main(["sweep", write(folder, soup={"recipe": "uniform"}), f"--output={folder / 'out'}", "--cpus=2"])
    return folder / "out", printed.getvalue(), json.loads((folder / "out" / "trials.json").read_text())["trials"]


def test_a_killed_trial_goes_on_from_its_last_checkpoint(ran):
    """Epoch 1 is begun twice, epoch 0 once; the weights are those of a run that nobody killed, bit for bit."""
    folder, _, trials = ran
    assert (folder / "000" / "epochs.txt").read_text() == "0 1 2"
    assert (folder / "001" / "epochs.txt").read_text() == "0 1 1 2"
    assert [trial["retries"] for trial in trials] == [0, 1, 1]
    whole, resumed = (read_state(trial["checkpoint"]) for trial in trials[:2])
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert trials[0]["metrics"] == trials[1]["metrics"]
    assert trials[0]["metrics"]["epoch"] == 3


def test_what_fails_after_its_retries_is_reported_and_the_others_go_on(ran):
    folder, printed, trials = ran
    assert [trial["status"] for trial in trials] == ["finished", "finished", "failed"]
    assert (folder / "002" / "epochs.txt").read_text() == "0 1 1"
    assert "2 of 3 trials finished, 1 failed" in printed
    assert "trial 002 (model.dies=always): failed, given up" in printed
    assert f"trial 002 failed: {trials[2]['error']}" in printed


def test_tables_agree_and_the_best_is_named(ran):
    folder, printed, trials = ran
    with (folder / "trials.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["status"] for row in rows] == [trial["status"] for trial in trials]
    assert float(rows[1]["val/loss"]) == trials[1]["metrics"]["val/loss"]
    assert json.loads((folder / "trials.json").read_text())["best"] == "000"
    assert f"Best: trial 000, val/loss {float(rows[0]['val/loss']):.5g}, {folder}/000/config.yaml" in printed
    assert yaml.safe_load((folder / "002" / "config.yaml").read_text())["model"]["init_args"]["dies"] == "always"


def test_soup_of_what_finished(ran):
    """Two equal ingredients: their mean is either of them."""
    folder, printed, trials = ran
    soup, one = read_state(folder / "soup" / "soup.ckpt"), read_state(trials[0]["checkpoint"])
    assert all(torch.allclose(soup[name], one[name], rtol=1e-6) for name in one)
    assert "Soup of 2 of 2 checkpoints" in printed


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"vary": {"model.lrr": [0.1]}}, "Option 'model.lrr' is not accepted. Did you mean 'lr'?"),
        ({"vary": {"trainer.max_epohs": [1]}}, "Did you mean 'max_epochs'?"),
        ({"vary": {"model.lr": ["fast"]}}, "fast"),
        ({"vary": {"trainer.devices": [2]}}, "Expected one device for each trial"),
        ({"vary": {"model.dies": ["start.ckpt"]}}, "Expected a file for `vary.model.dies`"),
        ({"soup": {"recipy": "greedy"}}, "Did you mean 'recipe'?"),
        ({"soup": {"recipe": "tomato"}}, "tomato"),
    ],
)
def test_refused_before_ray_starts(tmp_path, monkeypatch, changes, complaint):
    ray = pytest.importorskip("ray", reason="Ray is not installed (pip install 'lightning_robust[sweep]')")
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray was started"))
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        sweep(write(tmp_path, **changes), output=str(tmp_path / "out"))
    assert complaint in str(error.value)
    assert not (tmp_path / "out").exists()


def test_rejects_a_folder_with_results(tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed (pip install 'lightning_robust[sweep]')")
    with pytest.raises(ValueError, match=r"a new or an empty folder"):
        sweep(write(tmp_path), output=str(tmp_path))


def test_without_ray_the_install_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "ray.tune", None)
    with pytest.raises(SystemExit):
        main(["sweep", write(tmp_path)])
    assert "pip install 'lightning_robust[sweep]'" in capsys.readouterr().err
