"""Imports run one way, metadata stands in one place, and the package holds what it should."""

import ast
import configparser
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import lightning_robust

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lightning_robust"
FILES = sorted(PACKAGE.rglob("*.py"))


def imported(path, *, top_level=False):
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level else ast.walk(tree)
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def below(folder):
    return [path for path in FILES if path.is_relative_to(PACKAGE / folder)]


def test_files_are_found():
    assert len(FILES) > 30
    assert all(below(folder) for folder in ("functional", "deployment", "callbacks", "mixins", "utilities", "demo"))


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        ("functional", ("lightning", "onnx", "lightning_robust.deployment", "lightning_robust.callbacks")),
        ("deployment", ("lightning.", "lightning_robust.callbacks", "lightning_robust.demo", "lightning_robust.cli")),
        ("callbacks", ("lightning_robust.cli", "lightning_robust.demo", "lightning_robust.mixins")),
        ("mixins", ("lightning_robust.cli", "lightning_robust.demo", "lightning_robust.deployment")),
    ],
)
def test_imports_run_one_way(folder, forbidden):
    for path in below(folder):
        names = imported(path)
        wrong = {n for n in names if any(n == f.rstrip(".") or n.startswith(f.rstrip(".") + ".") for f in forbidden)}
        assert not wrong, path


def test_what_the_user_may_not_have_is_not_imported_at_the_top():
    optional = {"av", "ray", "tensorrt", "tensorrt_rtx", "modelopt", "cv2", "torchvision", "timm"}
    for path in FILES:
        if path.name != "_engine_child.py":
            assert not {name.split(".")[0] for name in imported(path, top_level=True)} & optional, path


def test_no_assert_and_no_left_over_marks_in_the_library():
    for path in FILES:
        text = path.read_text()
        assert not any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(text))), path
        assert "TODO" not in text, path


def test_every_file_opens_with_a_sentence():
    for path in FILES:
        assert ast.get_docstring(ast.parse(path.read_text())), path


def test_no_key_is_defined_twice():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert setup.sections() == ["sdist"]
    assert "version" in project["project"]
    assert set(project["project"]["optional-dependencies"]) == {"tensorrt", "rtx", "autocast", "video", "sweep", "dev"}


def test_public_names_are_importable_and_typed():
    modules = {"callbacks", "commands", "mixins", "deployment", "functional", "utilities", "cli", "demo"}
    names = {name for name in vars(lightning_robust) if not name.startswith("_")} - modules
    assert names == {
        "AdversarialCallback",
        "DatapathCallback",
        "DeploymentParityCallback",
        "GreedySoupCallback",
        "LayerCriticalityCallback",
        "LazyTrainingCallback",
        "NoEffectWarning",
        "ParityReport",
        "RegMixupMixin",
        "RotationSSLMixin",
        "SWACallback",
        "UATMixin",
        "WiSEFTCallback",
        "load_averaged",
        "measure_parity",
    }
    assert (PACKAGE / "py.typed").exists()


def test_importing_is_silent_and_brings_no_engine():
    code = (
        "import sys, lightning_robust; "
        "print(sorted({'tensorrt', 'tensorrt_rtx', 'onnxruntime', 'kornia'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
    assert done.stderr == ""
