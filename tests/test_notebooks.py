"""Notebooks are generated from the scripts beside them, and run."""

import os
import subprocess
import sys
from pathlib import Path

import jupytext
import pytest

ROOT = Path(__file__).parents[1] / "notebooks"
SCRIPTS = sorted(ROOT.glob("*.py"))


def test_all_are_found():
    assert [script.stem for script in SCRIPTS] == [notebook.stem for notebook in sorted(ROOT.glob("*.ipynb"))]
    assert [script.stem for script in SCRIPTS] == [
        "adversarial",
        "averaging",
        "bent_lines",
        "cure",
        "landscape",
        "quickstart",
        "tensorboard_page",
    ]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_notebook_equals_its_script(script):
    """If this fails: jupytext --to ipynb notebooks/<name>.py, then run and save it."""
    cells, expected = (
        [(cell.cell_type, cell.source) for cell in jupytext.read(path).cells]
        for path in (script.with_suffix(".ipynb"), script)
    )
    assert cells == expected


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_notebook_runs(script, tmp_path):
    """The script holds the notebook's code; its own assertions are what it claims; nothing warns."""
    environment = os.environ | {"MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT.parent), "TMPDIR": str(tmp_path)}
    command = [sys.executable, str(script)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr, done.stderr


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_last_cell_asserts(script):
    """A notebook without a claim that can fail would pass whatever it showed."""
    last = [cell for cell in jupytext.read(script).cells if cell.cell_type == "code"][-1]
    assert "assert " in last.source


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_saved_notebook_shows_pictures(script):
    """What is committed was executed: every figure is there as a picture, and nothing went to stderr."""
    outputs = [out for cell in jupytext.read(script.with_suffix(".ipynb")).cells for out in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
