"""Modules of the working folder can be named; what is wrong with them is said in one line with its place."""

import sys

import pytest
import yaml

from lightning_robust.cli import main

BASE = "from lightning.pytorch.demos.boring_classes import BoringModel\n\n\nclass Own(BoringModel):\n"
QUICK = [
    "--trainer.max_steps=1",
    "--trainer.logger=false",
    "--trainer.enable_checkpointing=false",
    "--seed_everything=0",
]
QUICK += ["--trainer.enable_progress_bar=false", "--trainer.limit_val_batches=0", "--trainer.accelerator=cpu"]
QUICK += ["--trainer.enable_model_summary=false", "--seed_everything=0"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    for name in ("own_module_a", "own_module_b", "own_module_c", "own_module_d"):
        sys.modules.pop(name, None)


def test_a_module_of_the_working_folder_is_found_behind_the_installed_ones(here):
    (here / "own_module_a.py").write_text(BASE + "    pass\n")
    (here / "yaml.py").write_text("raise SystemExit('mine')\n")
    main(["fit", "--model=own_module_a.Own", *QUICK])
    assert sys.path[-1] == str(here)
    assert sys.modules["own_module_a"].__file__ == str(here / "own_module_a.py")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("class Other: ...\n", "own_module_b"),
        ("import nowhere_to_be_found\n", "nowhere_to_be_found"),
        ("x = undefined_name\n", "undefined_name"),
    ],
)
def test_a_module_that_has_no_such_class_or_fails_is_one_line(here, capsys, text, said):
    (here / "own_module_b.py").write_text(text)
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--model=own_module_b.Own", *QUICK])
    line = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2
    assert [text for text in line if text.startswith("error:") and said in text and "own_module_b" in text]


def test_an_error_of_the_users_training_keeps_its_traceback(here):
    (here / "own_module_c.py").write_text(
        BASE + "    def training_step(self, batch, batch_idx):\n        raise ValueError('mine')\n"
    )
    with pytest.raises(ValueError, match="mine") as raised:
        main(["fit", "--model=own_module_c.Own", *QUICK])
    assert raised.traceback[-1].path.name == "own_module_c.py"


def test_print_config_says_what_a_switch_stands_for_and_reloads_to_the_same(here, capsys):
    (here / "own_module_d.py").write_text(BASE + "    pass\n")
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--model=own_module_d.Own", "--swa=true", "--greedy_soup=false", "--print_config"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    content = yaml.safe_load(printed)
    assert content["swa"]["class_path"].endswith("SWACallback")
    assert content["swa"]["init_args"]["kind"] == "uniform"
    assert content["greedy_soup"] is False
    (here / "printed.yaml").write_text(printed)
    with pytest.raises(SystemExit):
        main(["fit", "--config=printed.yaml", "--print_config"])
    assert yaml.safe_load(capsys.readouterr().out) == content
