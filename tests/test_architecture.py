"""Imports run one way, metadata stands in one place, and the package holds what it should."""

import ast
import configparser
import functools
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import lightning_robust

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lightning_robust"
FILES = sorted(PACKAGE.rglob("*.py"))


@functools.cache
def syntax(path):
    """The tree of a file, which many tests read."""
    return ast.parse(path.read_text())


@functools.cache
def imported(path, *, top_level=False):
    nodes = syntax(path).body if top_level else ast.walk(syntax(path))
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


ROOMS = {  # room -> the rooms it may use, beside itself
    **{
        name: set()
        for name in (
            "complaints",
            "extensions",
            "figures",
            "json_values",
            "lazy_names",
            "number_types",
            "processor",
            "progress",
            "reading",
            "statistics",
            "structures",
            "suggest",
            "tables",
            "torch_names",
            "version",
        )
    },
    "pages": {"version"},
    "arrays": {"checks"},
    "checks": {"suggest"},
    "gate": {"reading", "suggest", "tables", "version"},
    "layers": {"suggest"},
    "rows": {"structures"},
    "functional": {"statistics", "layers", "number_types", "suggest", "torch_names"},
    "decoding": {"functional"},
}
GROUND = {*ROOMS}
ROOMS["deployment"] = GROUND
ROOMS["harness"] = GROUND
ROOMS["pytest_plugin"] = GROUND | {"deployment"}
ROOMS["callbacks"] = GROUND | {"deployment", "harness"}
ROOMS["mixins"] = ROOMS["callbacks"] | {"callbacks"}
ROOMS["comparison"] = ROOMS["mixins"] | {"mixins"}
ROOMS["commands"] = ROOMS["comparison"] | {"comparison", "sweeps", "cli"}
ROOMS["cli"] = ROOMS["comparison"] | {"comparison", "sweeps", "commands"}
ROOMS["sweeps"] = ROOMS["comparison"] | {"cli"}
ROOMS["demo"] = ROOMS["mixins"] | {"mixins"}


def room(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_every_room_is_known():
    assert {room(path) for path in FILES} == {*ROOMS, "__init__", "__main__"}


@pytest.mark.parametrize("name", ROOMS)
def test_imports_run_one_way(name):
    for path in FILES:
        used = {module.split(".")[1] for module in imported(path) if module.startswith("lightning_robust.")}
        assert room(path) != name or used <= ROOMS[name] | {name}, path


@pytest.mark.parametrize(
    ("name", "forbidden"),
    [("functional", {"lightning", "onnx"}), ("decoding", {"lightning", "onnx"}), ("deployment", {"lightning"})],
)
def test_what_a_room_does_not_know(name, forbidden):
    for path in FILES:
        libraries = {module.split(".")[0] for module in imported(path)}
        assert room(path) != name or not libraries & forbidden, path


def test_what_the_user_may_not_have_is_not_imported_at_the_top():
    optional = {"av", "ray", "tensorrt", "tensorrt_rtx", "modelopt", "cv2", "torchvision", "timm"}
    for path in FILES:
        if path != PACKAGE / "deployment/engines/child/engine.py":
            assert not {name.split(".")[0] for name in imported(path, top_level=True)} & optional, path


def test_no_assert_and_no_left_over_marks_in_the_library():
    for path in FILES:
        text = path.read_text()
        assert not any(isinstance(node, ast.Assert) for node in ast.walk(syntax(path))), path
        assert "TODO" not in text, path


def test_no_run_left_a_file_beside_the_package():
    """A command without a logger writes its configuration where it runs."""
    kept = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT, check=False).stdout.split()
    if not kept:
        pytest.skip("not a checkout")
    files = {name for name in kept if "/" not in name}
    expected = {".gitignore", ".pre-commit-config.yaml", "LICENSE", "MANIFEST.in", "Makefile", "CITATION.cff"}
    expected |= {f"{name}.md" for name in ("CHANGELOG", "CONTRIBUTING", "README", "SECURITY")}
    assert files == expected | {"constraints.txt", "pyproject.toml", "setup.cfg"}


def test_every_file_opens_with_a_sentence():
    for path in FILES:
        assert ast.get_docstring(syntax(path)), path


def definitions(tree, kind):
    return [node for node in ast.walk(tree) if isinstance(node, kind)]


def complexity(function):
    """One more than the decisions in a function; comprehensions and Boolean operators decide too."""
    decisions = (ast.If, ast.For, ast.While, ast.ExceptHandler, ast.IfExp, ast.comprehension)
    return 1 + sum(
        isinstance(node, decisions)
        + (len(node.ifs) if isinstance(node, ast.comprehension) else 0)
        + (len(node.values) - 1 if isinstance(node, ast.BoolOp) else 0)
        for node in ast.walk(function)
    )


def test_complexity_closed_form():
    assert complexity(ast.parse("def f(x):\n    return x")) == 1
    assert complexity(ast.parse("def f(x):\n    return [y for y in x if y and x] if x else 0")) == 5


def test_what_is_read_at_once_is_small():
    """Files of at most 300 lines, classes of 250, functions of complexity 10, constructors of 15 arguments."""
    for path in FILES:
        text = path.read_text()
        tree = syntax(path)
        assert len(text.splitlines()) <= 300, path
        for node in definitions(tree, ast.ClassDef):
            assert node.end_lineno - node.lineno < 250, (path, node.name)
        for node in definitions(tree, ast.FunctionDef):
            assert complexity(node) <= 10, (path, node.name)
            assert node.name != "__init__" or len(node.args.args + node.args.kwonlyargs) <= 16, path  # with self


def test_one_name_has_one_meaning():
    """A function or class has one home; a command is the function of its name, and two scripts have a `main`."""
    homes = {}
    for path in FILES:
        for node in syntax(path).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                homes.setdefault(node.name, set()).add(path)
    assert {name for name, places in homes.items() if len(places) > 1} == {"fingerprint", "replay", "main"}


def test_no_key_is_defined_twice():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert setup.sections() == ["sdist"]
    assert "version" in project["project"]
    extras = {"tensorrt", "rtx", "openvino", "autocast", "video", "sweep", "hydra", "attacks", "foreign", "docs", "dev"}
    assert set(project["project"]["optional-dependencies"]) == extras


def test_public_names_are_importable_and_typed():
    names = {*lightning_robust.__all__}
    assert names <= {*dir(lightning_robust)}
    assert all(getattr(lightning_robust, name).__name__ == name for name in names)
    assert names == {
        "AdversarialCallback",
        "DatapathCallback",
        "DeploymentParityCallback",
        "GreedySoupCallback",
        "InitialiseCallback",
        "LayerCriticalityCallback",
        "LazyTrainingCallback",
        "NoEffectWarning",
        "ParityReport",
        "PreprocessingMixin",
        "RegMixupMixin",
        "RobustValidationCallback",
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
        "print(sorted({'tensorrt', 'tensorrt_rtx', 'onnxruntime', 'kornia', 'pandas', 'ray'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
    assert done.stderr == ""
