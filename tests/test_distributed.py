"""The recipes for several machines, run here with two processes over gloo."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from lightning_robust.cli import RobustCLI
from tests.distributed import Deterministic

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "configs" / "cluster"
# Stands in for SLURM's: two tasks on this machine with the variables that srun sets.
SRUN = """#!/usr/bin/env bash
while [[ "$1" == --* ]]; do shift; done
for task in 0 1; do SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_NODEID=0 "$@" & tasks+=($!); done
for task in "${tasks[@]}"; do wait "$task" || exit 1; done
"""
SLURM = {
    "SLURM_JOB_ID": str(os.getpid()),
    "SLURM_JOB_NAME": "lightning_robust",
    "SLURM_NTASKS": "2",
    "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_NNODES": "1",
    "SLURM_NODELIST": "localhost",
}


def configuration(folder, batch_size):
    """A run of eight epochs with the mean of the weights after them."""
    content = {
        "seed_everything": 0,
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": 8,
            "logger": False,
            "enable_progress_bar": False,
            "default_root_dir": str(folder),
            "callbacks": [{"class_path": "tests.distributed.KeepWeights", "init_args": {"folder": str(folder)}}],
        },
        "model": {"class_path": "tests.distributed.Deterministic", "init_args": {"batch_size": batch_size}},
        "swa": {"start": 2, "bn_refresh": False},
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


def run(script, folder, **variables):
    """A recipe with two processes; fails with what it said."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **variables}
    environment["PATH"] = os.pathsep.join([str(folder), str(Path(sys.executable).parent), environment["PATH"]])
    command = ["bash", str(RECIPES / script), "-c", configuration(folder, 32)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, timeout=180)
    assert done.returncode == 0, done.stdout + done.stderr
    return torch.load(folder / "rank0.pt"), torch.load(folder / "rank1.pt")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What two processes compute by definition, each with half of the data in one batch: one process with all."""
    folder = tmp_path_factory.mktemp("whole")
    cli = RobustCLI(args=["fit", "-c", configuration(folder, 64)])
    assert isinstance(cli.model, Deterministic)
    return torch.load(folder / "rank0.pt")


def check(ranks, whole):
    """Equal on both ranks bit for bit; equal to one process but for the order of a sum in float32."""
    for name, expected in whole.items():
        assert torch.equal(ranks[0][name], ranks[1][name]), name
        torch.testing.assert_close(ranks[0][name], expected, rtol=1e-5, atol=1e-6)
    start = Deterministic().state_dict()
    assert all((whole[name] - start[name]).abs().max() > 1e-2 for name in whole)


def test_torchrun_matches_one_process(tmp_path, whole):
    check(run("torchrun.sh", tmp_path, PROCESSES="2"), whole)


def test_slurm_matches_one_process(tmp_path, whole):
    """The whole script but for SLURM itself: Lightning takes ranks and addresses from the variables of srun."""
    (tmp_path / "srun").write_text(SRUN)
    (tmp_path / "srun").chmod(0o755)
    check(run("slurm.sh", tmp_path, **SLURM), whole)


def test_two_machines_need_a_meeting_point(tmp_path):
    command = ["bash", str(RECIPES / "torchrun.sh")]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"NODES": "2"}, cwd=tmp_path)
    assert done.returncode != 0
    assert "name host:port of one machine" in done.stderr


@pytest.mark.parametrize("script", sorted(RECIPES.glob("*.sh")), ids=lambda path: path.name)
def test_scripts_are_valid_bash_and_say_how_to_start_them(script):
    subprocess.run(["bash", "-n", str(script)], check=True)
    text = script.read_text()
    assert f"configs/cluster/{script.name} -c configs/lanes.yaml" in text
    assert os.access(script, os.X_OK)


def test_slurm_directives_and_tasks_agree():
    """One task a GPU, and the signal on which Lightning requeues."""
    lines = (RECIPES / "slurm.sh").read_text().splitlines()
    given = dict(line.removeprefix("#SBATCH --").split("=", 1) for line in lines if "#SBATCH" in line and "=" in line)
    assert given["gres"] == f"gpu:{given['ntasks-per-node']}"
    assert given["signal"] == "SIGUSR1@90"
