"""The benchmarks import, their rows are commands that the command line takes, and unfinished tables go on."""

import argparse
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from lightning.pytorch.loggers import CSVLogger

from lightning_robust import NoEffectWarning
from lightning_robust.callbacks import GreedySoupCallback, SWACallback
from lightning_robust.cli import RobustCLI
from lightning_robust.harness.closing import warn
from lightning_robust.sweeps.lengths import KNOWN

from .boring import quick_context

ROOT = Path(__file__).parents[1]
SUITES = {"suite": 21, "suite_lanes": 18}


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
    return {"acc": factor * (1 + seed) / 4, "name": str(folder)}


@pytest.mark.filterwarnings("ignore:.*may lead to deadlocks in the child.*")
def test_finished_rows_are_kept_and_failed_ones_named(benchmark, tmp_path, monkeypatch, capsys):
    rows = benchmark("rows")
    monkeypatch.setattr(rows, "get_context", lambda _: quick_context())  # the test below really spawns
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


def test_a_technique_without_effect_ends_its_row(benchmark, tmp_path, monkeypatch):
    """It warns as techniques do, which no filter of warnings makes an error."""
    rows = benchmark("rows")

    def idle(*_):
        warn("the start never came", NoEffectWarning)
        return SimpleNamespace(trainer=SimpleNamespace(logger=CSVLogger(tmp_path), global_step=1))

    monkeypatch.setattr(rows, "run", idle)
    with pytest.raises(RuntimeError, match="Expected techniques that have an effect, but: the start never came"):
        rows.measured_run("a.yaml", 0, tmp_path, [], lambda cli: {"acc": 0.5})
    assert rows.measured_run("a.yaml", 0, tmp_path, [], lambda cli: {"acc": 0.5}, idle=True)["acc"] == 0.5


def test_the_race_of_the_suite_brings_every_schedule_down(benchmark, tmp_path, monkeypatch):
    """Else `choose` refuses the candidates whose averages start behind the first round."""
    choose = benchmark("choose")
    (tmp_path / "race").mkdir()
    (tmp_path / "race" / "choose.json").write_text("{}")
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(choose, "command", lambda arguments: None)
    choose.race(tmp_path / "race", [*choose.CANDIDATES], 3, 2)
    choice = yaml.safe_load((tmp_path / "race.files" / "choice.yaml").read_text())
    lengths = {key for values in choice["candidates"].values() for key in values if key in KNOWN}
    assert lengths == {*choice["scaled"]} == {"swa.start"}


def test_the_place_of_a_choice_among_all_rows(benchmark, tmp_path):
    """The sum of both accuracies, means over the seeds; the spread is that of the best row."""
    choose, results = benchmark("choose"), benchmark("rows").Results(tmp_path)
    for number, name in enumerate(choose.CANDIDATES):
        for seed in (0, 1):
            results.put(name, seed, {"test/acc": 0.8, "test/acc_pgd20": 0.5 - 0.01 * number + 0.004 * seed})
    best, second, *_ = choose.CANDIDATES
    said = choose.place(second, results, [*choose.CANDIDATES], [0, 1]).splitlines()
    assert said[-1].startswith(f"chosen: {second}, place 2 of {len(choose.CANDIDATES)}, 1.00 points below {best}, ")
    assert said[-1].endswith("seeds spread over 0.40")
    assert " ".join(said[2].split()) == f"| {best} | 130.20 | 130.00 | 130.40 |"


def test_all_import():
    """Whoever moves a function that benchmarks use sees it here; none of them does anything before it is told to."""
    names = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py"))
    assert len(names) > 20
    code = "import importlib, sys; [importlib.import_module(name) for name in sys.argv[1:]]"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "benchmarks"), str(ROOT)])}
    done = subprocess.run([sys.executable, "-c", code, *names], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


@pytest.fixture
def gpu_day(benchmark, tmp_path, monkeypatch):
    """Runs the day on a CPU at the smallest scale, into a file; gives its rows by section and name."""
    monkeypatch.setattr(logging.getLogger("lightning.pytorch"), "setLevel", lambda level: None)
    path = tmp_path / "rows.jsonl"

    def run(*arguments):
        benchmark("gpu_day").main(["--device", "cpu", "--quick", "--out", str(path), *arguments])
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        return {(line["section"], line["row"]): line for line in lines}, len(lines)

    return run


def test_a_gpu_day_measures_what_was_predicted_and_goes_on_where_it_stopped(gpu_day, capsys):
    """The judge is PyTorch's own half precision, against predictions that were made on another day."""
    rows, _ = gpu_day("--only", "emulation", "engines", "--minutes", "0")
    assert set(rows) == {("machine", "machine")}
    said = capsys.readouterr().out
    assert "Call again for these" in said
    assert "emulation: small CNN | torch-fp16\n" in said
    rows, count = gpu_day("--only", "emulation", "engines")
    for precision in ("fp16", "bf16"):
        row = rows["emulation", f"small CNN | torch-{precision}"]
        assert row["verdict"] == "as predicted"
        assert 0.8 < row["executed"] / row["predicted"] == row["ratio"] < 1.25
    assert rows["emulation", "small CNN | torch-fp32"]["executed"] < 1e-6
    assert rows["emulation", "all | torch-tf32"]["status"] == "unavailable"
    assert rows["engines", "all | tensorrt-fp16"]["note"]
    assert gpu_day("--only", "emulation", "engines")[1] == count + 1, "the machine alone is noted again"
    capsys.readouterr()
    gpu_day("--table")
    said = capsys.readouterr().out
    assert "torch-fp16: 1 as predicted; ratio " in said
    assert "speed: not run" in said


def test_a_gpu_day_leaves_no_technique_out(gpu_day, benchmark, monkeypatch):
    techniques = benchmark("gpu_techniques")
    rows = techniques.techniques()
    # the modules as the benchmark has them: pytest may hold copies of its own
    table, methods = sys.modules["tests.test_contract"], techniques.METHODS
    assert len(rows) == 1 + len(table.CALLBACKS) + len(table.OBJECTIVES) + len(methods) + 1
    few = ("plain", "robust_validation (robust_validation)", "regmixup (regmixup)", "method freelb on an embedding")

    class Untrue(type(rows["plain"]().module)):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) * float("nan")

    def meddling():
        return techniques.Row([], type(rows["plain"]().module)(lr=0.06), None, diagnostic=True)

    chosen = {name: rows[name] for name in few} | {
        "diverging": lambda: techniques.Row([], Untrue()),
        "a diagnostic that meddles": meddling,
    }
    monkeypatch.setattr(techniques, "techniques", lambda: chosen)
    monkeypatch.setattr(techniques, "PRECISIONS", ("bf16-mixed",))
    found, _ = gpu_day("--only", "techniques")
    statuses = {name: found["techniques", f"{name} | bf16-mixed"] for name in chosen}
    assert {name: row["status"] for name, row in statuses.items()} == {
        name: "ok" if name in few else "failed" for name in chosen
    }
    assert "not finite: " in statuses["diverging"]["note"]
    assert statuses["a diagnostic that meddles"]["note"] == "the weights are not those of plain training"
    assert all(row["steps"] == 4 for row in statuses.values())


def test_a_gpu_day_times_attacks_and_averages(gpu_day):
    """The plain step is the unit, and every race has its rows; how long they take is no test's business."""
    rows, _ = gpu_day("--only", "speed")
    races = {row: line for (section, row), line in rows.items() if section == "speed"}
    assert len(races) == 3
    assert all(line["ratio"]["plain step"] == 1 for line in races.values())
    (trained,) = (line["ratio"] for row, line in races.items() if row.startswith("training, linear"))
    assert {"FGSM", "PGD-10"} <= set(trained)
    assert all(ratio > 0 for line in races.values() for ratio in line["ratio"].values())
    assert {"FreeLB-3", "EMA, lightning_robust", "SWA, lightning_robust", "soup of five, lightning_robust"} <= {
        name for line in races.values() for name in line["ratio"]
    }


def test_predictions_are_there_for_every_model_and_are_what_the_emulator_says(benchmark):
    engines = benchmark("gpu_engines")
    kept = engines.predictions()
    assert list(kept) == list(engines.NAMES)
    assert len(kept) >= 10
    for numbers in kept.values():
        assert all(0 < numbers[precision] < 1 for precision in engines.PRECISIONS)
        assert numbers["tf32"] < numbers["bf16"]
    again = engines.predict("small CNN")
    assert again["fp16acc"] > 2 * again["fp16"]
    for key in engines.PRECISIONS:
        assert again[key] == pytest.approx(kept["small CNN"][key], rel=0.05), "predict anew: gpu_day.py --predict"
    engines.require_same("small CNN", again["sums"])
    with pytest.raises(ValueError, match="Expected the weights of the prediction"):
        engines.require_same("small CNN", again["sums"] | {"weights": 1.01 * again["sums"]["weights"]})


@pytest.mark.parametrize(
    ("executed", "predicted", "accumulated", "says"),
    [
        (1e-3, 1e-3, 7e-3, "as predicted"),
        (0.4e-3, 1e-3, 7e-3, "nearer than predicted"),
        (6e-3, 1e-3, 7e-3, "between emulated-fp16 and emulated-fp16acc"),
        (15e-3, 1e-3, 7e-3, "beyond both"),
        (6e-3, 1e-3, None, "beyond the emulation"),
        (float("inf"), 1e-3, 7e-3, "beyond both"),
        (float("nan"), 1e-3, None, "beyond the emulation"),
        (float("inf"), float("inf"), None, "not finite, as predicted"),
        (1e-3, float("inf"), None, "finite, against the prediction"),
        (0.9e-4, None, None, "fine"),
        (1.1e-4, None, None, "beyond 0.0001"),
    ],
)
def test_what_an_executed_distance_says(benchmark, executed, predicted, accumulated, says):
    assert benchmark("gpu_engines").verdict(executed, predicted, accumulated) == says
