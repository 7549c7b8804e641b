"""Notebooks are generated from the scripts beside them, and run."""

from pathlib import Path

import jupytext
import pytest

ROOT = Path(__file__).parents[1] / "notebooks"
SCRIPTS = sorted(ROOT.glob("*.py"))


def test_all_are_found():
    assert [script.stem for script in SCRIPTS] == [notebook.stem for notebook in sorted(ROOT.glob("*.ipynb"))]
    assert len(SCRIPTS) == 1


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_notebook_equals_its_script(script):
    """If this fails: jupytext --to ipynb notebooks/<name>.py, then run and save it."""
    cells, expected = (
        [(cell.cell_type, cell.source) for cell in jupytext.read(path).cells]
        for path in (script.with_suffix(".ipynb"), script)
    )
    assert cells == expected


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_notebook_runs(script, monkeypatch):
    """The script holds the notebook's code; its own assertions are what it claims."""
    names = {"__name__": "__main__"}
    exec(compile(script.read_text(), str(script), "exec"), names)
    assert {"healthy", "broken"} <= names.keys()
