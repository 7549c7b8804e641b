"""The short form of kill.py: a few trainings are killed at random moments and end as if they had not been."""

import subprocess
import sys
from pathlib import Path

import pytest

SETUPS = ["plain", "swa ema", "greedy_soup", "adversarial pgd", "uat", "wise_ft", "criticality", "parity"]


@pytest.mark.skipif(sys.platform != "linux", reason="forks, and looks for processes in /proc")
def test_killed_and_resumed_is_not_killed():
    """In a process of its own, since a process that forks must have no threads, and this one may have some."""
    command = [sys.executable, "-m", "tests.reliability.kill", f"--runs={len(SETUPS)}", "--seed=3", "--setups", *SETUPS]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stdout + done.stderr
    *_, total = done.stdout.splitlines()
    name, runs, kills, identical, clean = total.split()
    assert (name, int(runs), int(identical), int(clean)) == ("all", len(SETUPS), len(SETUPS), len(SETUPS))
    assert int(kills) >= len(SETUPS)
