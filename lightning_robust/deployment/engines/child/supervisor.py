"""The process between a training and its child, and temporary folders that go with their process.

    python -I -S supervisor.py PARENT FOLDER COMMAND...

It starts the command and ends as the command does. Once the training is gone it ends the command, with all that the
command started, and removes the folder. On another machine :func:`serve` does so in the place of the training: the
program that :mod:`.transport` writes calls it. All of this needs the standard library of Python 3.8 alone.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import hashlib
import io
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

if sys.platform != "win32":
    import fcntl

BEGINS = b"lightning_robust begins\n"
"""What the target writes once it has understood the program; what comes before is of others."""
ANSWER = b"lightning_robust answer "
"""Begins the line that gives the length and the SHA-256 of the archive that follows it."""
PREFIX = "lightning_robust-"
_MADE = re.compile("[a-z0-9_]{8}")
"""What mkdtemp puts behind a prefix."""
_POLL = 0.1  # seconds between two looks at who is alive
_MERCY = 3.0  # seconds for a command to end by itself, as a supervisor of its own does after it has cleaned up
_GRACE = 10.0  # seconds after the training's own time limit when the target gives up
_RUN_SCRIPT = """
import runpy, sys
sys.path[:] = [path for path in sys.path if path]  # as -P does from Python 3.11 on
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@contextlib.contextmanager
def scratch(parent: str | os.PathLike[str] | None = None, prefix: str = PREFIX) -> Iterator[Path]:
    """A temporary folder that is locked while its process lives; those of dead processes beside it are removed.

    Args:
        parent: Where to make it; the folder for temporary files if None.
        prefix: Begins its name, and the names of those that are removed.
    """
    place = Path(parent or tempfile.gettempdir())
    remove_stale(place, prefix)
    folder, lock = _locked_folder(place, prefix)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def remove_stale(place: Path, prefix: str = PREFIX) -> None:
    """Remove the folders of :func:`scratch` whose processes are dead, however they died."""
    for folder in place.glob(prefix + "*"):
        if _MADE.fullmatch(folder.name[len(prefix) :]) is None:  # of others, whose names begin alike
            continue
        lock = _lock(folder, wait=False)
        if lock is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


def _locked_folder(place: Path, prefix: str) -> tuple[Path, int | None]:
    """A new folder and what locks it; another one where a neighbour took it for stale before it was locked."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=place))
        lock = _lock(folder, wait=True)
        if folder.is_dir():
            return folder, lock
        if lock is not None:
            os.close(lock)


def _lock(folder: Path, *, wait: bool) -> int | None:
    """A lock on a folder, which ends with this process; None where there is none to be had."""
    if sys.platform == "win32":
        return None
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:  # taken, or a file system without locks
        os.close(lock)
        return None
    return lock


def watch(parent: int, folder: str, command: list[str]) -> int:
    """Run a command until it ends, or the parent is gone, or this process is told to end; returns its exit status."""
    told: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, _: told.append(number))
    try:
        process = _start(command)
    except OSError as error:
        sys.stderr.write(f"{command[0]} cannot be started: {error}\n")
        return 127
    while process.poll() is None:
        if os.getppid() != parent:
            _end_group(process)
            shutil.rmtree(folder, ignore_errors=True)
            os.killpg(0, signal.SIGKILL)
        if told:
            _end_group(process)
            os.killpg(0, signal.SIGKILL)
        _wait_a_moment(process)
    return process.returncode


def serve(payload: list[bytes]) -> None:
    """Do the job of a training on another machine: unpack it, run it, and write one archive to standard output.

    Whatever else is printed goes to the standard error stream. The job is given up, and its folder removed, once
    nobody reads what it writes, its parent is gone, or its time is up.

    Args:
        payload: The job's archive in pieces of base64: `job.json`, the scripts and the files that are read.
    """
    _exit_when_told()
    output, parent = os.dup(1), os.getppid()
    os.dup2(2, 1)
    os.write(output, BEGINS)
    with _answering(output):
        remove_stale(Path(tempfile.gettempdir()))
        folder, lock = _locked_folder(Path(tempfile.gettempdir()), PREFIX)
        try:
            _unpack_job(folder, payload)
            kept = [output] if lock is None else [output, lock]
            for number in kept:
                os.set_inheritable(number, True)
            # a fresh process in the place of this one, which has the whole job among its constants
            script = str(folder / "script" / Path(__file__).name)
            os.execv(sys.executable, [sys.executable, script, "job", str(folder), str(output), str(parent)])  # noqa: S606
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def do_job(folder: Path, output: int, parent: int) -> None:
    """What is left to do for :func:`serve` once the job is unpacked in its folder."""
    _exit_when_told()
    os.set_inheritable(output, False)
    with _answering(output):
        try:
            _send(output, _work(folder, lambda: os.getppid() == parent and not _is_unheard(output)))
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _answering(output: int) -> Iterator[None]:
    """Write an error of the disk as the job's answer."""
    try:
        yield
    except BrokenPipeError:
        return
    except OSError as error:
        result = {"status": "disk" if error.errno else "crashed", "message": f"on the target: {error}"}
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as packed:
            packed.writestr("exit", "0")
            packed.writestr("result", json.dumps(result))
        _send(output, archive)


def _unpack_job(folder: Path, payload: list[bytes]) -> None:
    """Put the job's files into its folder."""
    with (folder / "job.zip").open("wb") as file:
        file.writelines(map(base64.b64decode, payload))
    with zipfile.ZipFile(folder / "job.zip") as packed:
        packed.extractall(folder)
    (folder / "job.zip").unlink()


def _work(folder: Path, is_wanted: Callable[[], bool]) -> Any:
    """Run a job in its folder; returns the archive of its answer, open for reading."""
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    spec = dict(job["spec"], **{key: str(folder / "files" / key) for key in job["files"]})
    (folder / "spec.json").write_text(json.dumps(spec), encoding="utf-8")
    arguments = [str(folder / "script" / job["script"]), job["verb"], str(folder / "spec.json")]
    deadline = time.monotonic() + spec["time_limit"] + _GRACE
    code = _run([sys.executable, "-c", _RUN_SCRIPT, *arguments], folder, deadline, is_wanted)
    with zipfile.ZipFile(folder / "answer.zip", "w") as packed:
        packed.writestr("exit", str(code))
        for key in job["writes"]:
            if (folder / "files" / key).is_file():
                packed.write(folder / "files" / key, key)
    return (folder / "answer.zip").open("rb")


def _run(command: list[str], folder: Path, deadline: float, is_wanted: Callable[[], bool]) -> int:
    """Run a command in a session of its own; returns its exit status, and leaves where it is not wanted any more."""
    environment = {name: value for name, value in os.environ.items() if name != "POLYGRAPHY_USE_TENSORRT_RTX"}
    process = _start(command, stdin=subprocess.DEVNULL, cwd=folder, env=environment, start_new_session=True)
    try:
        while process.poll() is None:
            if not is_wanted() or time.monotonic() > deadline:
                sys.exit(1)
            _wait_a_moment(process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return process.returncode


def _start(command: list[str], **settings: Any) -> subprocess.Popen[bytes]:
    """Start a command that is killed when this process, which has one thread only, is."""
    linux = sys.platform == "linux"
    return subprocess.Popen(command, preexec_fn=_die_with_parent if linux else None, **settings)  # noqa: S603


def _die_with_parent() -> None:
    """Ask Linux to kill this process when the thread that started it ends."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG


def _wait_a_moment(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_POLL)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Tell the group of this process to end, and give the command a moment to do so."""
    os.killpg(0, signal.SIGTERM)  # this process only notes it
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_MERCY)


def _is_unheard(output: int) -> bool:
    """Whether nobody can read any more what is written there."""
    poll = select.poll()
    poll.register(output, 0)  # errors are always told
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _exit_when_told() -> None:
    """End this process by way of what it has to clean up when it is told to end."""
    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

    def leave(*_: Any) -> None:
        for number in signals:
            signal.signal(number, signal.SIG_IGN)
        sys.exit(1)

    for number in signals:
        signal.signal(number, leave)


def _send(output: int, archive: Any) -> None:
    """Write an archive with the line before it that says how long it is."""
    digest = hashlib.sha256()
    archive.seek(0)
    for piece in iter(lambda: archive.read(1 << 20), b""):
        digest.update(piece)
    length = archive.tell()
    archive.seek(0)
    with os.fdopen(output, "wb") as stream:
        stream.write(b"\n" + ANSWER + f"{length} {digest.hexdigest()}\n".encode())
        shutil.copyfileobj(archive, stream)


def _end_alike(code: int) -> None:
    """End this process with the exit status of another, a signal included."""
    if code < 0:
        with contextlib.suppress(OSError, ValueError):
            import resource

            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the other has left one already
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


if __name__ == "__main__":
    if sys.argv[1] == "job":
        do_job(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
    else:
        _end_alike(watch(int(sys.argv[1]), sys.argv[2], sys.argv[3:]))
