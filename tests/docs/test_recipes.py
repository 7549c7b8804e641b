"""The recipes run as their first lines say, and do the same: one training, whoever starts it."""

import os
import re
import subprocess
import sys

import pytest

from .pages import DOCS, PAGES, ROOT

RECIPES = DOCS / "recipes"


def run(folder, *arguments):
    """A recipe in a process of its own, in an empty folder, with the recipes on the path."""
    path = os.pathsep.join([str(RECIPES), str(ROOT)])
    settings = {"capture_output": True, "text": True, "cwd": folder, "check": False, "timeout": 900}
    done = subprocess.run([sys.executable, *arguments], env={**os.environ, "PYTHONPATH": path}, **settings)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def distances(folder):
    """Where each run wrote its page."""
    return [path for path in folder.rglob("parity.json") if path.is_file()]


def test_page_shows_every_recipe():
    shown = set(re.findall(r"\{literalinclude\} recipes/(\S+)", PAGES["docs/recipes.md"]))
    assert shown == {path.name for path in RECIPES.iterdir() if path.is_file()}


def test_plain(tmp_path):
    output = run(tmp_path, str(RECIPES / "plain.py"))
    assert 0 < float(output.splitlines()[-1] if output[-1] != "\n" else re.findall(r"^[\d.e-]+$", output, re.M)[-1]) < 1
    assert len(distances(tmp_path)) == 1
    assert "swa" in output


def test_own_cli(tmp_path):
    output = run(tmp_path, str(RECIPES / "own_cli.py"), "fit", "-c", str(RECIPES / "own_cli.yaml"))
    assert len(distances(tmp_path)) == 1
    assert "emulated-fp16" in output


def test_hydra(tmp_path):
    pytest.importorskip("hydra", reason="Hydra is not installed: pip install 'lightning-robust[hydra]'")
    output = run(tmp_path, str(RECIPES / "hydra_app.py"), f"hydra.run.dir={tmp_path}/run", "trainer.max_epochs=1")
    assert len(distances(tmp_path)) == 1
    assert "emulated-fp16" in output


def test_torchrun(tmp_path):
    """Two processes hold the same average."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    output = run(tmp_path, *launcher, str(RECIPES / "several_processes.py"))
    sums = dict(re.findall(r"rank (\d): (-?[\d.]+)", output))
    assert set(sums) == {"0", "1"}
    assert sums["0"] == sums["1"]


def test_sharded(tmp_path):
    """FSDP2 trains what DDP trains, and one process reads the average out of the parts."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    (average,) = re.findall(r"average: (-?[\d.]+)", run(tmp_path, *launcher, str(RECIPES / "sharded.py")))
    output = run(tmp_path, *launcher, str(RECIPES / "several_processes.py"))
    assert float(average) == pytest.approx(float(re.findall(r"rank 0: (-?[\d.]+)", output)[0]), abs=1e-4)
