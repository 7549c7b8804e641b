"""Lifetimes: a child ends with its parent, however that ends, and folders of dead processes are removed."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from lightning_robust.deployment.engines import EngineError
from lightning_robust.deployment.engines.cache import EngineCache
from lightning_robust.deployment.engines.child import process, supervisor
from lightning_robust.deployment.engines.child.supervisor import scratch

from ..elsewhere import is_gone, leftovers, make_environment, make_tmp, wait_for

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
CHILD = """
import json, os, pathlib, subprocess, sys, time
spec = json.load(open(sys.argv[2]))
child = subprocess.Popen(["sleep", "100"])
pathlib.Path(spec["pids"] + ".new").write_text(f"{os.getpid()} {child.pid} {os.getppid()}")
os.rename(spec["pids"] + ".new", spec["pids"])
time.sleep(100)
"""
PARENT = """
import pathlib, sys, types
for name in ("lightning_robust", "lightning_robust.deployment", "lightning_robust.deployment.engines"):
    sys.modules[name] = types.ModuleType(name)  # without what it imports, which takes seconds
    sys.modules[name].__path__ = [str(pathlib.Path(sys.argv.pop(1)))]
from lightning_robust.deployment.engines.cache import EngineCache
from lightning_robust.deployment.engines.child import process
script, pids, cache, *command = sys.argv[1:]
with EngineCache(pathlib.Path(cache)).workspace() as folder:
    process.run_child(pathlib.Path(script), "build", {"pids": pids}, folder, 100.0, command=command)
"""


def start_parent(folder, command=()):
    """A process that builds in its cache and waits; and the ids of its child, its child's child, and the supervisor."""
    (folder / "child.py").write_text(CHILD)
    engines = Path(process.__file__).parents[1]
    packages = [engines.parents[1], engines.parent, engines]
    arguments = [*packages, folder / "child.py", folder / "pids", folder / "cache", *command]
    parent = subprocess.Popen([sys.executable, "-c", PARENT, *map(str, arguments)])
    assert wait_for(folder / "pids")
    return parent, [int(pid) for pid in (folder / "pids").read_text().split()]


def is_emptied(folder, seconds=10.0):
    """Whether nothing is left in a folder, now or soon."""
    deadline = time.monotonic() + seconds
    while list(folder.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not list(folder.iterdir())


@linux
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_child_dies_with_its_parent(tmp_path, number):
    """And what it started, and its folder, within seconds."""
    parent, pids = start_parent(tmp_path)
    assert len(list((tmp_path / "cache").iterdir())) == 1
    parent.send_signal(number)
    parent.wait()
    assert [is_gone(pid) for pid in pids] == [True, True, True]
    assert is_emptied(tmp_path / "cache")


@linux
def test_a_child_elsewhere_dies_with_its_parent(tmp_path):
    """The folder over there goes too."""
    parent, pids = start_parent(tmp_path, make_environment(tmp_path / "elsewhere"))
    assert len(leftovers(tmp_path / "elsewhere")) == 1
    parent.kill()
    parent.wait()
    assert [is_gone(pid) for pid in pids] == [True, True, True]
    assert leftovers(tmp_path / "elsewhere") == []
    assert is_emptied(tmp_path / "cache")


@linux
def test_a_child_elsewhere_notices_that_nobody_listens(tmp_path):
    """As on a target whose connection breaks: what would read its answer is gone, and its own parent is not."""
    command = make_environment(tmp_path / "elsewhere")
    relay = tmp_path / "relay"  # stays, as a server does, when what reads from it is killed
    until_it_works = f'head -c 24 >/dev/null; while [ ! -e "{tmp_path}/pids" ]; do sleep 0.1; done'
    relay.write_text(f'#!/bin/sh\ntrap "" TERM\n"$@" | {{ {until_it_works}; }}\nsleep 3\n')
    relay.chmod(0o700)
    parent, pids = start_parent(tmp_path, [str(relay), *command])
    try:
        assert [is_gone(pid, 5.0) for pid in pids] == [True, True, True]
        assert leftovers(tmp_path / "elsewhere") == []
    finally:
        parent.kill()
        parent.wait()


@linux
def test_a_child_dies_with_its_supervisor(tmp_path):
    """Which only the kernel can see to; the parent says that it crashed."""
    (tmp_path / "child.py").write_text(CHILD)
    caught = []

    def work():
        try:
            process.run_child(tmp_path / "child.py", "build", {"pids": str(tmp_path / "pids")}, tmp_path, 60.0)
        except EngineError as error:
            caught.append((error.kind, "SIGKILL" in str(error)))

    thread = threading.Thread(target=work)
    thread.start()
    assert wait_for(tmp_path / "pids")
    child, _, guard = map(int, (tmp_path / "pids").read_text().split())
    os.kill(guard, signal.SIGKILL)
    thread.join(10)
    assert caught == [("crashed", True)]
    assert is_gone(child)


def test_folders_of_dead_processes_are_removed_and_of_living_ones_not(tmp_path):
    """Whatever killed them: the lock of a folder ends with its process."""
    body = """
        import runpy, sys, time
        scratch = runpy.run_path(sys.argv[1])["scratch"]
        with scratch(sys.argv[2], ".build-") as folder:
            (folder / "model").touch()
            print(folder.name, flush=True)
            time.sleep(100)
    """
    command = [sys.executable, "-c", textwrap.dedent(body), supervisor.__file__, str(tmp_path)]
    living, dead = (subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2))
    names = [child.stdout.readline().strip() for child in (living, dead)]
    try:
        dead.kill()
        dead.wait()
        assert {path.name for path in tmp_path.iterdir()} == set(names)
        (tmp_path / "other").mkdir()
        with EngineCache(tmp_path).workspace() as folder:
            assert {path.name for path in tmp_path.iterdir()} == {names[0], "other", folder.name}
        assert {path.name for path in tmp_path.iterdir()} == {names[0], "other"}
    finally:
        for child in (living, dead):
            child.kill()
            child.communicate()


def test_no_folder_is_taken_for_stale_while_it_is_made(tmp_path):
    """Four threads make and remove folders in one place, and each has its own until it is done with it."""
    lost = []

    def work():
        for _ in range(50):
            with scratch(tmp_path) as folder:
                (folder / "model").write_text("model")
                time.sleep(0.001)
                lost.append(not (folder / "model").exists())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(lost), any(lost)) == (200, False)
    assert list(tmp_path.iterdir()) == []


def test_nothing_else_makes_folders_that_would_be_taken_for_stale():
    """Every folder of these names is locked while its process lives, since every one is made by one function."""
    package = Path(supervisor.__file__).parents[3]
    others = [path for path in package.rglob("*.py") if path != Path(supervisor.__file__)]
    assert [path for path in others if f'prefix="{supervisor.PREFIX}' in path.read_text()] == []
    assert [path.name for path in others if '".build-"' in path.read_text()] == ["cache.py"]


def test_a_link_is_not_followed(tmp_path):
    """Somebody else's link in the folder for temporary files, to a folder that nobody locks."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "work").touch()
    make_tmp(tmp_path)
    (tmp_path / "tmp" / "lightning_robust-link").symlink_to(tmp_path / "mine")
    with scratch(tmp_path / "tmp"):
        pass
    assert (tmp_path / "mine" / "work").exists()
    assert Path(tmp_path / "tmp" / "lightning_robust-link").is_symlink()


@pytest.mark.skipif(sys.platform == "win32", reason="folders are locked by POSIX")
def test_folders_of_others_stay(tmp_path):
    """An archive of this package unpacks to a name that begins alike."""
    for name in ("lightning_robust-0.2.0", "lightning_robust-review", "lightning_robust-abcd1234"):
        (tmp_path / name).mkdir()
    supervisor.remove_stale(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lightning_robust-0.2.0", "lightning_robust-review"]
