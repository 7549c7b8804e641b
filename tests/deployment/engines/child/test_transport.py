"""Jobs that run elsewhere: what travels, what comes back, and commands that start nothing or break off."""

import os
import shutil
import textwrap
import threading
import time

import pytest

from lightning_robust.deployment.engines import EngineError
from lightning_robust.deployment.engines.child import process

from ..elsewhere import find_interpreters, is_gone, leftovers, make_environment, make_ssh, make_tmp, wait_for

SCRIPT = """
import json, os, pathlib, signal, sys, time
spec = json.load(open(sys.argv[2]))
read = {key: pathlib.Path(spec[key]).exists() and pathlib.Path(spec[key]).read_bytes().decode() for key in spec["look"]}
print("chatter", flush=True)
pathlib.Path("litter").touch()
"""
REPORT = """
open(spec["made"], "wb").write(bytes(range(256)) * spec["times"])
about = dict(read=read, verb=sys.argv[1], folder=os.getcwd(), torch="torch" in sys.modules, path=sys.path)
json.dump(dict(status="done", **about), open(spec["result"], "w"))
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    """What the script leaves in its folder where it runs here."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    folder = tmp_path_factory.mktemp("elsewhere")
    return folder, make_environment(folder)


def run(folder, command, body=REPORT, times=3, time_limit=60.0):
    """One job; its result, its log, the bytes that it made."""
    (folder / "script.py").write_text(SCRIPT + textwrap.dedent(body))
    (folder / "here.txt").write_text("\u00fcber")
    reads = {"here": folder / "here.txt", "absent": folder / "absent.txt", "kept": folder / "made.bin"}
    spec, writes = (
        {"look": ["here", "absent"], "times": times},
        {"made": folder / "made.bin", "never": folder / "never"},
    )
    files = {"reads": reads, "writes": writes, "command": command}
    result, log = process.run_child(folder / "script.py", "look", spec, folder, time_limit, **files)
    return result, log, writes["made"].read_bytes()


def failure(folder, command, *arguments, **settings):
    with pytest.raises(EngineError) as caught:
        run(folder, command, *arguments, **settings)
    return caught.value, str(caught.value).splitlines()[0]


@pytest.mark.parametrize("times", [0, 3, 10_000])
def test_files_travel_and_come_back(tmp_path, elsewhere, times):
    """The same job here and through a prefix: equal results; nothing is left there; files that are absent stay so."""
    place, command = elsewhere
    here, there = run(tmp_path, [], times=times), run(tmp_path, command, times=times)
    for result, log, made in (here, there):
        assert (result["read"], result["verb"]) == ({"here": "\u00fcber", "absent": False}, "look")
        assert log == "chatter\n"
        assert made == bytes(range(256)) * times
        assert not (tmp_path / "never").exists()
    assert os.path.dirname(there[0]["folder"]) == str(make_tmp(place))
    assert not any(path in ("", here[0]["folder"]) for path in there[0]["path"])
    assert leftovers(place) == []


def test_through_a_shell_that_greets(tmp_path, elsewhere):
    """As ssh does it: arguments in one line for a shell, a greeting before the answer and a farewell after it."""
    place, (*_, python) = elsewhere
    body = f'echo "Welcome to lightning_robust"; TMPDIR={make_tmp(place)} sh -c "$*"; echo "Goodbye"; exit 4'
    result, log, made = run(tmp_path, [*make_ssh(tmp_path / "ssh", body), python])
    assert (result["verb"], log, made) == ("look", "chatter\n", bytes(range(256)) * 3)
    assert leftovers(place) == []


@pytest.mark.parametrize("python", find_interpreters(8, 9, 10) or [None])
def test_older_interpreters(tmp_path, python):
    if python is None:
        pytest.skip("there is no Python of 3.8 to 3.10 here")
    result, _, made = run(tmp_path, [shutil.which("env"), "-i", python])
    assert (result["read"]["here"], len(made)) == ("\u00fcber", 768)


SILENT = {
    "no such command": (["no-such-command", "orin"], "unavailable", "No such file or directory"),
    "no such interpreter": (["sh", "-c", "exec python1"], "unavailable", "status 127"),
    "exits at once": (["sh", "-c", "echo ssh: no route to host >&2; exit 255"], "unavailable", "ssh: no route to host"),
    "exits well": (["true"], "garbage", "did not run the program"),
    "echoes": (["cat"], "garbage", "did not run the program"),
    "prints garbage": (["sh", "-c", "echo lightning_robust answer 3 abc"], "garbage", "did not run the program"),
}


@pytest.mark.parametrize("case", SILENT)
def test_commands_that_start_no_python(tmp_path, case):
    command, kind, words = SILENT[case]
    error, sentence = failure(tmp_path, command)
    assert error.kind == kind
    assert words in sentence
    assert f"`{' '.join(command)} -`" in sentence


def test_a_command_that_hangs(tmp_path):
    started = time.monotonic()
    error, sentence = failure(tmp_path, ["sh", "-c", "echo connecting >&2; sleep 60", "x"], time_limit=1.0)
    said = "The look through `sh -c echo connecting >&2; sleep 60 x -` was killed after its time limit of 1 s."
    assert (error.kind, sentence) == ("timed_out", said)
    assert "connecting" in str(error)
    assert time.monotonic() - started < 10


BROKEN = {
    "cut off": ("head -c 500", "crashed", "died half-way"),
    "cut off before the answer": ("head -c 30", "crashed", "died half-way"),
    "a bit flipped": ("tr '\\001' '\\002'", "garbage", "checksum"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_an_answer_that_is_damaged(tmp_path, elsewhere, case):
    place, (*_, python) = elsewhere
    damage, kind, words = BROKEN[case]
    body = f'TMPDIR={make_tmp(place)} sh -c "$*" | {damage}'
    error, sentence = failure(tmp_path, [*make_ssh(tmp_path / "ssh", body), python])
    assert error.kind == kind
    assert words in sentence
    assert leftovers(place) == []


ENDS = {
    "a signal": ("os.kill(os.getpid(), 11)", "crashed", "signal SIGSEGV"),
    "a status": ("sys.exit(3)", "crashed", "status 3"),
    "no result": ("pass", "garbage", "no readable result"),
    "a refusal": ("json.dump(dict(status='refused', message='no'), open(spec['result'], 'w'))", "refused", "no"),
    "with its supervisor": ("os.kill(os.getppid(), 9); time.sleep(60)", "crashed", "died half-way with status"),
}


@pytest.mark.parametrize("case", ENDS)
def test_what_becomes_of_the_child_there(tmp_path, elsewhere, case):
    """Said as it is said here, and the log comes with it. What a killed supervisor left goes at the next start."""
    place, command = elsewhere
    body, kind, words = ENDS[case]
    error, sentence = failure(tmp_path, command, body)
    assert error.kind == kind
    assert words in sentence
    assert "chatter" in str(error)
    run(tmp_path, command)
    assert leftovers(place) == []


def test_a_job_that_is_given_up(tmp_path, elsewhere):
    """The child there is ended with what it started, and its folder is removed."""
    place, command = elsewhere
    body = f"""
        import subprocess
        child = subprocess.Popen(["sleep", "60"])
        pathlib.Path({str(tmp_path / "new")!r}).write_text(str(child.pid))
        os.rename({str(tmp_path / "new")!r}, {str(tmp_path / "pid")!r})
        time.sleep(60)
    """
    cancelled = threading.Event()
    watcher = threading.Thread(target=lambda: wait_for(tmp_path / "pid") and cancelled.set())
    token = process.CANCELLED.set(cancelled)
    try:
        watcher.start()
        assert failure(tmp_path, command, body)[0].kind == "cancelled"
    finally:
        process.CANCELLED.reset(token)
    assert leftovers(place) == []
    assert is_gone(int((tmp_path / "pid").read_text()))


def test_a_full_disk_there(tmp_path, elsewhere):
    place, (env, *_, python) = elsewhere
    (tmp_path / "file").touch()
    body = "import tempfile; tempfile.tempdir = '/proc'"  # where nobody makes folders
    site = next(place.glob("lib/python*/site-packages"))
    (site / "sitecustomize.py").write_text(body)
    try:
        error, sentence = failure(tmp_path, [env, "-i", python])
    finally:
        (site / "sitecustomize.py").unlink()
    assert error.kind == "disk"
    assert "on the target: [Errno" in sentence


def test_an_interpreter_that_is_too_old(tmp_path):
    python = next(iter(find_interpreters(6, 7)), None)
    if python is None:
        pytest.skip("there is no Python before 3.8 here")
    error, sentence = failure(tmp_path, [python])
    assert error.kind == "unavailable"
    assert "Python 3.8 or newer is needed there, but it is" in sentence
