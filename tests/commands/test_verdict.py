"""The exit status and the last line of `parity`, as a pipeline sees them; first in processes of their own."""

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest

from lightning_robust.cli import main
from tests.deployment.graphs import graph

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A user's repository: a file, and inputs for it."""
    folder = tmp_path_factory.mktemp("repository")
    model = graph("g (float[n, 4] x) => (float[n, 4] y) { [tanh] a = Tanh(x) [square] y = Mul(a, a) }")
    onnx.save(model, folder / "net.onnx")
    np.savez(folder / "inputs.npz", x=np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32))
    return folder


PARITY = ["parity", "--onnx=net.onnx", "--inputs=inputs.npz"]


def pipeline(repository, *options):
    """Exit status, last line of the output, and the errors."""
    command = [sys.executable, "-m", "lightning_robust", *PARITY]
    done = subprocess.run(
        [*command, *options],
        cwd=repository,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return done.returncode, (done.stdout.splitlines() or [""])[-1], done.stderr


@pytest.fixture
def told_here(repository, monkeypatch, capsys):
    """The first two of :func:`pipeline`, without the seconds that a process takes to import everything."""

    def run(*options, **environ):
        monkeypatch.chdir(repository)
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        code = 0
        try:
            main([*PARITY, *options])
        except SystemExit as stop:
            code = stop.code
        return code, capsys.readouterr().out.splitlines()[-1]

    return run


def test_within_what_was_written_and_what_a_pipeline_reads(repository, told_here):
    """--write-budget, then the budget of the working folder; JUnit XML, and GitHub's summary by its variable alone."""
    code, told, _ = pipeline(repository, "--targets=[emulated-fp16]", "--write-budget", "--margin=0.5")
    assert (code, told[:50]) == (0, "verdict: within parity.yaml: emulated-fp16/rel_l2 ")
    assert "wrote 1 limit to parity.yaml with a margin of 50 %" in told
    written = (repository / "parity.yaml").read_text()
    assert "--write-budget --margin=0.5)" in written
    assert "net.onnx" in written.splitlines()[1]
    code, told = told_here("--junit=ci/junit.xml", "--summary=ci/s.md", GITHUB_STEP_SUMMARY="step.md")
    assert (code, told[:50]) == (0, "verdict: within parity.yaml: emulated-fp16/rel_l2 ")
    (suite,) = ElementTree.parse(repository / "ci" / "junit.xml").getroot()
    assert suite.get("failures") == suite.get("errors") == "0"
    assert int(suite.get("tests")) >= 1
    assert float(suite.get("time")) > 0
    assert (repository / "step.md").read_text() == (repository / "ci" / "s.md").read_text() + "\n"
    (repository / "parity.yaml").unlink()


def test_beyond_names_the_layer(repository, told_here):
    (repository / "tight.yaml").write_text("emulated-fp16/rel_l2: 1e-7\nemulated-bf16/max_abs: 1\n")
    code, told = told_here("--budget=tight.yaml", "--junit=beyond.xml")
    assert code == 1
    assert told.startswith("verdict: beyond tight.yaml: emulated-fp16/rel_l2 is 0.000")
    assert told.endswith("allowed 1e-07; worst at Tanh tanh; 1 of 2 within") or "worst at Mul square" in told
    (failure,) = ElementTree.parse(repository / "beyond.xml").getroot().iter("failure")
    assert "; at " in failure.get("message")


def test_a_target_that_is_missing_here(repository, told_here):
    """The budget demands what this machine cannot run: "auto" says so, with what to install."""
    (repository / "engine.yaml").write_text("emulated-fp16/rel_l2: 1\ndeployed-fp16/rel_l2: 1\n")
    code, told = told_here("--budget=engine.yaml")
    assert code == 2
    assert told.startswith("verdict: could not measure deployed-fp16/rel_l2 (unavailable: ")
    assert told.endswith("1 of 2 within")


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (
            "emulated-fp61/rel_l2: 1",
            (),
            "broken.yaml: emulated-fp61/rel_l2: expected a target, but got 'emulated-fp61'.",
        ),
        ("emulated-fp16/lateral_px_p99: 1", (), "expected one of the metrics (rel_l2, "),
        ("emulated-fp16/rel_l2: [", (), "Expected YAML in broken.yaml, but "),
        ("emulated-fp16: 1", ("--margin=-0.1",), "Expected `margin` as a number from 0"),
        ("emulated-fp16: 1", ("--junit=.",), "Expected --junit to be a file, but got '.'"),
    ],
)
def test_a_broken_budget_ends_before_the_work(repository, monkeypatch, capsys, text, options, message):
    monkeypatch.chdir(repository)
    (repository / "broken.yaml").write_text(text)
    with pytest.raises(SystemExit) as stop:
        main(["parity", "--onnx=net.onnx", "--budget=broken.yaml", "--output=never", *options])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (repository / "never").exists()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (["--budget=much.yaml"], "much.yaml: emulated-fp16/rel_l2: expected a number of at least 0, but got 'much'."),
        (["--inputs=other.npz"], "Expected an .npz file at other.npz"),
    ],
)
def test_an_error_is_in_the_files_that_a_pipeline_reads(repository, monkeypatch, capsys, line, reason):
    """Files of an earlier run that passed are not left to speak for this one."""
    monkeypatch.chdir(repository)
    (repository / "much.yaml").write_text("emulated-fp16/rel_l2: much\n")
    for name in ("last.xml", "last.md"):
        (repository / name).write_text("all within")
    with pytest.raises(SystemExit) as stop:
        main([*PARITY, *line, "--junit=last.xml", "--summary=last.md"])
    assert stop.value.code == 2
    assert reason in capsys.readouterr().err
    (suite,) = ElementTree.parse(repository / "last.xml").getroot()
    assert (suite.get("tests"), suite.get("errors"), suite.get("failures")) == ("1", "1", "0")
    assert reason in next(suite.iter("error")).get("message")
    told = (repository / "last.md").read_text()
    assert told.startswith("### ⚠️ lightning-robust parity\n\ncould not measure anything")


def test_a_broken_budget_in_its_own_process(repository):
    (repository / "broken.yaml").write_text("emulated-fp16/rel_l2: much\n")
    code, told, errors = pipeline(repository, "--budget=broken.yaml")
    assert (code, told) == (2, "")
    assert errors == ("error: broken.yaml: emulated-fp16/rel_l2: expected a number of at least 0, but got 'much'.\n")
