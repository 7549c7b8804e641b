"""The benchmarks import, their rows are commands that the command line takes, and unfinished tables go on."""

import argparse
import importlib
import json
import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from lightning_robust import NoEffectWarning
from lightning_robust.callbacks import GreedySoupCallback, SWACallback
from lightning_robust.cli import RobustCLI

ROOT = Path(__file__).parents[1]
SUITES = {"suite": 20, "suite_lanes": 13}


@pytest.fixture
def benchmark(monkeypatch):
    """Imports a benchmark as it is imported when one is run."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


def test_every_command_of_make_bench_exists():
    named = {word for word in (ROOT / "Makefile").read_text().split() if word.endswith(".py")}
    assert len(named) > 10
    assert all((ROOT / name).exists() for name in named)


@pytest.mark.parametrize("name", ["suite", "suite_lanes"])
def test_rows_are_commands(name, benchmark, tmp_path, monkeypatch):
    """Parsed and built, each; none of them trains here."""
    suite = benchmark(name)
    monkeypatch.chdir(ROOT)
    built = {}
    for row, switches in suite.ROWS.items():
        args = ["-c", suite.CONFIG, f"--trainer.logger.save_dir={tmp_path}", *suite.RECIPE, *switches]
        built[row] = RobustCLI(args=args, run=False)
    assert len(built) == SUITES[name]
    averaging = {row for row, cli in built.items() if any(isinstance(c, SWACallback) for c in cli.trainer.callbacks)}
    assert averaging == {"SWA", "EMA", "SWALP, 8 bits", "FGSM-RS, EMA", "RegMixup, EMA"}
    soups = {row for row, cli in built.items() if any(isinstance(c, GreedySoupCallback) for c in cli.trainer.callbacks)}
    assert soups == {"greedy soup of epochs"}
    mixed = {row for row, cli in built.items() if getattr(cli.model, "regmixup_weight", 0)}
    assert mixed == {"RegMixup", "FGSM-RS, RegMixup", "RegMixup, EMA"}


def work(row, seed, folder, factor):
    """What a row of a table is here."""
    if row == "broken":
        raise ValueError("no such technique")
    if row == "idle":
        warnings.warn("the start never came", NoEffectWarning, stacklevel=1)
    return {"acc": factor * (1 + seed) / 4, "name": str(folder)}


@pytest.mark.filterwarnings("ignore:.*may lead to deadlocks in the child.*")
def test_finished_rows_are_kept_and_failed_ones_named(benchmark, tmp_path, capsys):
    rows = benchmark("rows")
    given = argparse.Namespace(out=tmp_path, seeds=[0, 1], only=["a, b", "broken"], jobs=2)
    (tmp_path / "results.json").write_text(json.dumps({"a, b | 0": {"acc": 0.5}}))
    with pytest.raises(SystemExit, match=r"the others are kept: \[\('broken', [01]\), \('broken', [01]\)\]"):
        rows.run_rows(given, work, 0.5)
    assert capsys.readouterr().err.count("ValueError: no such technique") >= 2
    kept = rows.Results(tmp_path)
    assert kept.content["a, b | 0"] == {"acc": 0.5}
    assert kept.content["a, b | 1"] == {"acc": 0.25, "name": str(tmp_path / "a_b" / "1")}
    given.only = ["a, b"]
    table = rows.run_rows(given, work, 99.0).table(["a, b"], [0, 1], {"clean": ("acc", 100, ".1f")})
    assert " ".join(table.splitlines()[-1].split()) == "| a, b | 2 | 37.5 (25.0 to 50.0) |"


@pytest.mark.filterwarnings("ignore:.*may lead to deadlocks in the child.*")
def test_a_technique_without_effect_ends_its_row_only_in_suites(benchmark, tmp_path, monkeypatch):
    rows = benchmark("rows")
    given = argparse.Namespace(out=tmp_path, seeds=[0], only=["idle"], jobs=1)
    with pytest.raises(SystemExit, match=r"\[\('idle', 0\)\]"):
        rows.run_rows(given, work, 1.0)
    with warnings.catch_warnings():
        monkeypatch.setattr(logging.getLogger("lightning.pytorch"), "setLevel", lambda level: None)
        rows.quiet()  # as for the row of weight_space.py that means never to average
        assert work("idle", 0, tmp_path, 1.0)["acc"] == 0.25


def test_all_import():
    """Whoever moves a function that benchmarks use sees it here; none of them does anything before it is told to."""
    names = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py"))
    assert len(names) > 20
    code = "import importlib, sys; [importlib.import_module(name) for name in sys.argv[1:]]"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "benchmarks"), str(ROOT)])}
    done = subprocess.run([sys.executable, "-c", code, *names], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
