"""The fixture in a session of its own, as in a user's repository."""

import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULE = """
import pytest
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = torch.nn.Linear(8, 16)
        self.last = torch.nn.Linear(16, 1)

    def forward(self, x):
        return self.last(self.first(x).pow(2))

    def decode(self, outputs):
        return {"x_px": outputs}

INPUTS = torch.randn(16, 8, generator=torch.Generator().manual_seed(1))
"""


TESTS = """
def test_within_a_file(parity):
    judgement = parity(Net(), INPUTS).within("parity.yaml")
    assert judgement.exit_code == 0
    assert len(judgement.judged) == 2

def test_beyond(parity):
    parity(Net(), INPUTS).within("tight.yaml")

@pytest.mark.parametrize("limits", [{"tensorrt-fp16/rel_l2": 1.0}, {"emulated-fp16/y_px_p99": 1.0}])
def test_unmeasured(parity, limits):
    parity(Net(), INPUTS).within(limits)

def test_demanded(parity):
    parity(Net(), (INPUTS,), targets=["emulated-fp16", "tensorrt-bf16"]).within({"emulated-fp16": 1.0})

@pytest.mark.parametrize("budget", ["none.yaml", {}, {"emulated-fp61": 1}, {"golden/engine": 1}, {"emulated-fp16": -1}])
def test_broken(parity, budget):
    parity(Net(), INPUTS).within(budget)
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What one session in a user's repository prints."""
    folder = tmp_path_factory.mktemp("repository")
    (folder / "test_deploys.py").write_text(MODULE + TESTS)
    (folder / "parity.yaml").write_text("emulated-fp16/x_px_p99: 1\nonnxruntime-fp32: 1e-4\ngolden/engine/rel_l2: 0\n")
    (folder / "tight.yaml").write_text("emulated-fp16/rel_l2: 1e-9\nonnxruntime-fp32/rel_l2: 1e-4\n")
    installed = any(point.name == "lightning_robust" for point in importlib.metadata.entry_points(group="pytest11"))
    plugin = [] if installed else ["-p", "lightning_robust.pytest_plugin"]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *plugin, "-q", "test_deploys.py"]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1, done.stderr
    return done.stdout


def test_within_a_file(said):
    assert "9 failed, 1 passed" in said
    assert "___ test_within_a_file" not in said


def test_beyond_names_place_and_size(said):
    """The line of the module whose operator costs most, the number, its interval and the limit; no line of ours."""
    _, message = re.split(r"_+ test_beyond _+\n", said)
    lines = message.splitlines()[:4]
    assert lines[0] == "Deployment parity is beyond tight.yaml."
    assert re.fullmatch(r"  beyond: emulated-fp16/rel_l2 is 0.000\d+ \(\S+ to \S+\), allowed 1e-09", lines[1])
    assert re.fullmatch(r" +worst at .*test_deploys.py:1\d .*return self.last\(self.first\(x\).pow\(2\)\)\)", lines[2])
    assert re.fullmatch(r"  within: onnxruntime-fp32/rel_l2 is \S+ \(.*\), allowed 0.0001", lines[3])


@pytest.mark.parametrize(
    "line",
    [
        "Deployment parity is not known, for it could not be measured.",
        "  not measured: tensorrt-fp16/rel_l2 (unavailable: ",
        "  not measured: emulated-fp16/y_px_p99 (it has no such metric. Did you mean 'x_px_p99'",
        "  not measured: tensorrt-bf16/x_px_p99 (unavailable: ",
        "FileNotFoundError: Expected a budget file at none.yaml, but there is no such file.",
        "ValueError: Expected `<target>/<metric>: limit` in the budget, but got nothing.",
        "Did you mean 'emulated-fp16'",
        "it has none of parity.",
        "expected a number of at least 0, but got -1.",
    ],
)
def test_what_cannot_be_measured_or_read_fails_and_says_why(said, line):
    assert line in said


def test_it_is_an_entry_point_and_imports_nothing_heavy():
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["pytest11"]
    assert points == {"lightning_robust": "lightning_robust.pytest_plugin"}
    code = (
        "import sys, lightning_robust.pytest_plugin;"
        "print(sorted({'torch', 'lightning', 'numpy', 'onnx', 'yaml', 'scipy'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
