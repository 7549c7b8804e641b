"""The child process: crashes, hangs, unreadable results, and what it can import."""

import ast
import signal
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from lightning_robust.deployment.engines import EngineError, builder
from lightning_robust.deployment.engines.abilities import CHILD_SCRIPT
from lightning_robust.deployment.engines.child import process

from ..builds import FP32, GOOD, PROFILE, build, no_rtx, refusal, script


def test_crash(tmp_path, monkeypatch):
    script(tmp_path, monkeypatch, "print('about to fall', flush=True)\nos.kill(os.getpid(), 11)")
    error = refusal(directory=tmp_path / "cache")
    assert error.kind == "crashed"
    assert "signal SIGSEGV" in str(error)
    assert "about to fall" in str(error)
    assert list((tmp_path / "cache").iterdir()) == []


def test_exit_status(tmp_path, monkeypatch):
    script(tmp_path, monkeypatch, "sys.exit(3)")
    error = refusal(directory=tmp_path / "cache")
    assert (error.kind, "status 3" in str(error)) == ("crashed", True)


def test_hang_is_killed_with_its_children(tmp_path, monkeypatch):
    body = f"""
        import subprocess
        child = subprocess.Popen(["sleep", "60"])
        pathlib.Path({str(tmp_path / "pid")!r}).write_text(str(child.pid))
        time.sleep(60)
    """
    script(tmp_path, monkeypatch, body)
    started = time.perf_counter()
    error = refusal(directory=tmp_path / "cache", time_limit=2.0)
    assert error.kind == "timed_out"
    assert "after its time limit of 2 s" in str(error)
    assert time.perf_counter() - started < 10
    state = Path(f"/proc/{(tmp_path / 'pid').read_text()}/stat")
    deadline = time.perf_counter() + 5
    while state.exists() and state.read_text().split()[2] != "Z" and time.perf_counter() < deadline:
        time.sleep(0.05)
    assert not state.exists() or state.read_text().split()[2] == "Z"


@pytest.mark.parametrize(
    "body",
    [
        "pass",
        "open(spec['result'], 'w').write('{')",
        "open(spec['result'], 'w').write('[1]')",
        "json.dump({'status': 'splendid'}, open(spec['result'], 'w'))",
        "json.dump({'status': 'done'}, open(spec['result'], 'w'))",
        GOOD.replace('wb").write(blob)', 'wb")'),
        GOOD.replace("size=len(blob)", "size=7"),
        GOOD.replace('layers={"wide": "FLOAT"}', "layers=None"),
        GOOD.replace('b"engine"', 'b""'),
    ],
)
def test_garbage(tmp_path, monkeypatch, body):
    script(tmp_path, monkeypatch, body)
    assert refusal(directory=tmp_path / "cache").kind == "garbage"
    assert list((tmp_path / "cache").iterdir()) == []


def test_children_do_not_see_the_package_or_the_switch(tmp_path, monkeypatch):
    monkeypatch.setenv("POLYGRAPHY_USE_TENSORRT_RTX", "1")
    body = """
    print(str(pathlib.Path(__file__).parent) in sys.path, "POLYGRAPHY_USE_TENSORRT_RTX" in os.environ)
    """
    script(tmp_path, monkeypatch, body + GOOD)
    assert build(directory=tmp_path / "cache").log.strip() == "False False"


def test_message_says_what_why_and_what_to_do():
    log = "\n".join(f"line {i}\n" for i in range(20))
    lines = str(EngineError("timed_out", "It took too long.", log)).splitlines()
    assert lines[:3] == ["It took too long.", "Last lines of its log:", "line 8"]
    assert lines[-2] == "line 19"
    assert lines[-1].startswith("Raise the time limit")


@pytest.mark.parametrize(("code", "words"), [(1, "status 1"), (-signal.SIGSEGV, "signal SIGSEGV"), (-99, "signal -99")])
def test_exit_in_words(code, words):
    assert process._name_exit(code) == words.replace("-", "")


@pytest.mark.parametrize(("free", "kind"), [(0, "disk"), (1 << 30, "crashed")])
@pytest.mark.parametrize("body", ["raise OSError(28, 'No space left on device')", "sys.exit(3)"])
def test_a_disk_that_has_no_room_for_a_result(tmp_path, monkeypatch, free, kind, body):
    """The child ends as if it had crashed, and what it says itself is nowhere."""
    script(tmp_path, monkeypatch, body)
    monkeypatch.setattr(process.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    error = refusal(directory=tmp_path / "cache")
    assert error.kind == kind
    assert (f"The disk of {tmp_path / 'cache'} is full" in str(error)) == (kind == "disk")


@pytest.mark.rtx
@no_rtx
def test_a_full_disk_in_the_child(tmp_path):
    (tmp_path / "model.onnx").write_bytes(FP32)
    settings = {"backend": "tensorrt_rtx", "profile": PROFILE, "tf32": False, "weakly_typed": None}
    settings |= {"stand_in": False, "refit": False, "target": "SM89"}
    files = {"reads": {"model": tmp_path / "model.onnx"}, "writes": {"engine": Path("/dev/full")}}
    with pytest.raises(EngineError) as caught:
        process.run_child(builder._CHILD, "build", settings, tmp_path, 120.0, **files)
    assert caught.value.kind == "disk"
    assert "No space left" in str(caught.value)


@pytest.mark.rtx
@no_rtx
def test_training_process_imports_no_tensorrt(tmp_path, monkeypatch):
    libraries = ("tensorrt", "polygraphy")
    for name in [name for name in sys.modules if name.startswith(libraries)]:
        monkeypatch.delitem(sys.modules, name)
    assert not build(directory=tmp_path).cached
    assert [name for name in sys.modules if name.startswith(libraries)] == []


@pytest.mark.parametrize("library", ["torch", "onnxruntime"])
def test_engine_files_do_not_shadow_libraries(tmp_path, monkeypatch, library):
    """The engines' folder has files of these names; a child that starts in it imports the libraries all the same."""
    folder = Path(process.__file__).parents[1]
    assert (folder / f"{library}.py").is_file()
    monkeypatch.chdir(folder)
    find = f"import importlib.util\nprint(importlib.util.find_spec({library!r}).origin)"
    script(tmp_path, monkeypatch, find + textwrap.dedent(GOOD))
    origin = Path(build(directory=tmp_path / "cache").log.strip())
    assert origin.name == "__init__.py"
    assert origin.parent.name == library


HERE = {"__init__", "errors", "process", "transport"}
"""What stays on this side of a connection; everything else travels."""


@pytest.mark.parametrize("path", sorted(p for p in CHILD_SCRIPT.parent.glob("*.py") if p.stem not in HERE), ids=str)
def test_what_travels_is_python_38_and_imports_the_standard_library_alone(path):
    """So that it also runs on a machine with nothing but numpy and Polygraphy, which are imported inside functions."""
    tree = ast.parse(path.read_text(), feature_version=(3, 8))
    names = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in names} <= sys.stdlib_module_names - {"graphlib", "tomllib", "zoneinfo"}
    newer = {"removeprefix", "removesuffix", "is_relative_to", "with_stem", "hardlink_to", "lcm", "pairwise"}
    assert not {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)} & newer
    arguments = {word.arg for node in ast.walk(tree) if isinstance(node, ast.Call) for word in node.keywords}
    assert not arguments & {"strict", "ignore_cleanup_errors", "encoding_errors", "process_group"}
    assert any(isinstance(n, ast.ImportFrom) and n.module == "__future__" for n in tree.body) or path.stem == "__init__"
