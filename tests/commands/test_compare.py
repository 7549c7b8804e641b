"""The command: from folders of real runs to a page in a real browser."""

import json
import re
import shutil
import subprocess

import pytest

from lightning_robust.cli import RobustCLI, main

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Plain training with two seeds and SWA with one, by the command line."""
    folder = tmp_path_factory.mktemp("runs")
    logger = "lightning.pytorch.loggers.TensorBoardLogger"
    for name, seed, more in (("plain", 0, []), ("plain", 1, []), ("swa", 0, ["--swa.start=0", "--swa.every=1"])):
        RobustCLI(
            args=[
                *("fit", "--model=tests.boring.Boring"),
                *(f"--seed_everything={seed}", "--trainer.max_epochs=2", "--trainer.accelerator=cpu"),
                *("--trainer.enable_progress_bar=false", "--trainer.log_every_n_steps=1"),
                *(f"--trainer.logger={logger}", f"--trainer.logger.save_dir={folder / name}"),
                *("--trainer.enable_checkpointing=false", *more),
            ]
        )
    return folder


def test_page_of_real_runs(runs, tmp_path, capsys):
    main(["compare", "--output", str(tmp_path / "out"), str(runs / "plain"), str(runs / "swa")])
    printed = re.sub(" +", " ", capsys.readouterr().out)  # columns are padded
    told = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert [(row["name"].split(" ")[0], len(row["runs"])) for row in told["rows"]] == [("plain", 2), ("swa", 1)]
    assert any(line.startswith("| 1 | plain | 2 |") for line in printed.splitlines())
    assert str(tmp_path / "out" / "comparison.html") in printed
    if CHROMIUM:
        page = (tmp_path / "out" / "comparison.html").as_uri()
        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", page]
        seen = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
        assert "Runs compared" in seen
        assert seen.count('class="best"') > 0


def test_one_folder_above_all(runs, tmp_path, capsys):
    main(["compare", str(runs), f"--output={tmp_path / 'out'}"])
    assert len(json.loads((tmp_path / "out" / "comparison.json").read_text())["rows"]) == 2
    assert "| 2 | swa" in re.sub(" +", " ", capsys.readouterr().out)


def test_a_direction_that_the_user_says(runs, tmp_path, capsys):
    output = tmp_path / "out"
    main(["compare", str(runs), f"--output={output}", "--metrics=val/loss", "--mode=val/loss=max"])
    told = json.loads((output / "comparison.json").read_text())
    assert [column["mode"] for column in told["columns"]][-1] == "max"
    assert "no run has such a number" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["/nowhere"], "Expected folders of finished runs, but found none in /nowhere"),
        (["RUNS", "--metrics=val/lost:min"], "but got 'val/lost:min'. There are: "),
        (["RUNS", "--mode=val/loss"], "Expected directions as tag=max or tag=min, but got 'val/loss'."),
        ([], "runs"),
    ],
)
def test_rejects(runs, tmp_path, monkeypatch, capsys, arguments, told):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(["compare", *(str(runs) if argument == "RUNS" else argument for argument in arguments)])
    assert caught.value.code == 2
    assert told in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
