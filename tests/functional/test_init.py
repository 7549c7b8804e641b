"""Everything public in ``lightning_robust.functional`` can be imported from it, and importing it costs torch alone."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_robust import functional

FOLDER = Path(functional.__file__).parent
FILES = sorted(path for path in FOLDER.glob("*.py") if path.stem != "__init__")


def definitions(path):
    """The public functions and classes of a file."""
    nodes = ast.parse(path.read_text()).body
    return [n for n in nodes if isinstance(n, ast.FunctionDef | ast.ClassDef) and not n.name.startswith("_")]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_public_name_is_exported(path):
    for node in definitions(path):
        assert getattr(functional, node.name).__module__ == f"lightning_robust.functional.{path.stem}", node.name


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_public_name_has_an_example(path):
    assert [node.name for node in definitions(path) if ">>>" not in (ast.get_docstring(node) or "")] == []


def test_nothing_else_is_exported():
    defined = [node.name for path in FILES for node in definitions(path)]
    assert len(defined) == len(set(defined)) > 50
    lines = [line for line in (FOLDER / "__init__.py").read_text().splitlines() if line.startswith("from ")]
    assert sorted(line.rpartition(" as ")[2] for line in lines) == sorted(defined)


def test_needs_neither_lightning_nor_onnx():
    """With an empty parent package in its place, so that only what ``functional`` itself imports is loaded."""
    code = (
        "import sys, types; parent = types.ModuleType('lightning_robust'); "
        f"parent.__path__ = [{str(FOLDER.parent)!r}]; sys.modules['lightning_robust'] = parent; "
        "import lightning_robust.functional; "
        "print(sorted({'lightning', 'onnx', 'onnxruntime', 'torchmetrics', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
