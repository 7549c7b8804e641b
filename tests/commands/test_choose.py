"""One race on Ray, killed in the middle and given again: the winner, its files, what is said."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from lightning_robust.cli import RobustCLI, main
from lightning_robust.commands.choose import choose

ROOT = Path(__file__).parents[2]
BASE = {
    "trainer": {"accelerator": "cpu", "max_epochs": 4, "logger": False, "enable_checkpointing": False},
    "model": {"class_path": "tests.boring.Boring"},
    "robust_validation": {"eps": 0.1, "steps": 1, "batches": 1},
}
CHOICE = {
    "configs": ["base.yaml"],
    "candidates": {
        "plain": {},
        "frozen": {"initialise": {"method": "small", "scale": 1.0e-6}, "model.lr": 0.0},
        "averaged": {"swa": {"start": 0, "every": 1}},
        "broken": {"initialise": {"method": "small", "exclude": ["nothing.of.this.name"]}},
    },
    "criteria": {"val/loss": -1.0, "adversarial/val_loss@0.1": -0.5},
    "budget": 0.75,
    "seeds": 2,
    "reduction": 2,
    "retries": 0,
}


def write(folder, **changes):
    """A choice and its base file."""
    folder.mkdir(exist_ok=True)
    (folder / "base.yaml").write_text(yaml.safe_dump(BASE))
    (folder / "choice.yaml").write_text(yaml.safe_dump(CHOICE | changes))
    return str(folder / "choice.yaml")


def killed_after_the_first_training(folder):
    """Begin a race in processes of its own, and kill them all."""
    line = [sys.executable, "-m", "lightning_robust", "choose", write(folder), f"--output={folder / 'out'}", "--cpus=2"]
    with subprocess.Popen(line, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as race:
        ends = time.monotonic() + 240
        while not [*folder.glob("out/round-1/*/ended.json")]:
            assert race.poll() is None
            assert time.monotonic() < ends
            time.sleep(0.05)
        os.killpg(race.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def raced(tmp_path_factory):
    """The folder, what was printed by the second command, choose.json, and when the first result was written."""
    pytest.importorskip("ray.tune", reason="Ray is not installed (pip install 'lightning_robust[sweep]')")
    folder, printed = tmp_path_factory.mktemp("choose"), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        # for the workers, which are processes of Ray's
        patch.setenv("PYTHONPATH", str(ROOT))
        killed_after_the_first_training(folder)
        first = [path.stat().st_mtime_ns for path in folder.glob("out/round-1/*/ended.json")]
        main(["choose", write(folder), f"--output={folder / 'out'}", "--cpus=2"])
    return folder / "out", printed.getvalue(), json.loads((folder / "out" / "choose.json").read_text()), first


def test_the_race_goes_on_where_it_was_killed(raced):
    folder, printed, _, first = raced
    assert f"Going on with the race in {folder}" in printed
    assert first
    assert {*first} <= {path.stat().st_mtime_ns for path in folder.glob("round-1/*/ended.json")}


def test_scores_are_weighted_sums_and_the_best_mean_wins(raced):
    _, printed, told, _ = raced
    assert [(lap["candidates"], lap["epochs"], lap["seeds"]) for lap in told["rounds"]] == [(4, 2, 1), (2, 4, 2)]
    for lap in told["rounds"]:
        for trial in lap["trials"]:
            if trial["status"] == "finished":
                score = -trial["metrics"]["val/loss"] - 0.5 * trial["metrics"]["adversarial/val_loss@0.1"]
                name, seed = trial["values"].values()
                assert lap["scores"][name][seed] == pytest.approx(score, rel=1e-6)
    last = {name: sum(scores) / 2 for name, scores in told["rounds"][-1]["scores"].items()}
    assert told["winner"] == max(last, key=last.get)
    assert "frozen" not in last
    assert f"Chosen: {told['winner']}" in printed
    assert "the better one with a chance of" in printed


def test_what_fails_is_out_and_said(raced):
    _, printed, told, _ = raced
    assert [*told["failed"]] == ["broken"]
    assert "nothing.of.this.name" in told["failed"]["broken"]
    assert "broken is out: it failed with seed 0" in printed


def test_cost_is_counted_in_epochs(raced):
    """4 x 2 + 2 x 4 x 2 of 4 x 4 x 2 epochs."""
    assert raced[2]["share"] == pytest.approx(24 / 32)


def test_the_winner_is_a_configuration_and_the_page_has_all(raced):
    folder, _, told, _ = raced
    cli = RobustCLI(args=[f"--config={folder / 'winner.yaml'}"], run=False)
    assert cli.trainer.max_epochs == 4
    assert any(type(each).__name__ == "SWACallback" for each in cli.trainer.callbacks) == (told["winner"] == "averaged")
    page = (folder / "comparison.html").read_text()
    assert f"Chosen: {told['winner']}" in page
    assert "Robust against clean" in page
    rows = json.loads((folder / "comparison.json").read_text())["rows"]
    finalists = told["rounds"][-1]["scores"]
    assert {row["name"] for row in rows} == {*finalists, "frozen, 2 epochs"}


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"candidates": {"a": {}, "b": {"swa": {"strat": 0}}}, "budget": 1.0}, "Candidate b"),
        ({"criterea": {"a": 1}}, "Did you mean 'criteria'?"),
        ({"budget": 0.01}, "Expected `budget` of at least"),
        ({"configs": ["none.yaml"]}, "Expected a configuration at"),
    ],
)
def test_refused_before_ray_starts(tmp_path, monkeypatch, changes, complaint):
    ray = pytest.importorskip("ray", reason="Ray is not installed (pip install 'lightning_robust[sweep]')")
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray was started"))
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        choose(write(tmp_path, **changes), output=str(tmp_path / "out"))
    assert complaint in str(error.value)
    assert not (tmp_path / "out").exists()
