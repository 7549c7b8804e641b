"""The parent's side of the child process: start a script, limit its time, kill it, and read its result."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lightning_robust.deployment.engines.child import supervisor
from lightning_robust.deployment.engines.child.errors import KINDS
from lightning_robust.deployment.engines.child.errors import EngineError as EngineError
from lightning_robust.deployment.engines.child.transport import read_answer, write_program

CANCELLED: ContextVar[threading.Event | None] = ContextVar("cancelled", default=None)
"""A thread that puts an event here has its children killed as soon as another thread sets the event."""
_POLL = 0.05  # seconds between two checks of the event
_FULL = 1 << 16  # bytes that a disk has left where not even a result fits
_MERCY = 5.0  # seconds for a supervisor to end what it has started


def run_child(
    script: Path,
    verb: str,
    spec: Mapping[str, Any],
    folder: Path,
    time_limit: float,
    *,
    reads: Mapping[str, Path] = MappingProxyType({}),
    writes: Mapping[str, Path] = MappingProxyType({}),
    command: Sequence[str] = (),
) -> tuple[dict[str, Any], str]:
    """Run one verb of a child script; returns its result and its log, or raises EngineError.

    Args:
        script: The child's script.
        verb: What it is to do.
        spec: What it is told; numbers, strings and lists, no paths.
        folder: A temporary folder for the spec, the result and the log. It is removed if this process dies meanwhile.
        time_limit: Seconds until the child is killed.
        reads: Key of the spec -> file that the child reads. A file that is not there is none of its.
        writes: Key of the spec -> file that the child writes. A key of both is a file that it reads and writes anew.
        command: What starts Python on another machine, such as `["ssh", "orin", "python3"]`; the spec and the files
            travel there and back. Empty runs this interpreter here, on the files themselves.
    """
    writes = {**writes, "result": folder / "result.json"}
    spec = {**spec, "time_limit": time_limit}
    if command:
        write_program(folder / "program", script, verb, spec, reads, writes)
        code = _execute([*command, "-"], folder, verb, time_limit, program=folder / "program")
        code = read_answer(command, code, folder / "answer", writes, _read_log(folder))
    else:
        files = {key: str(path) for key, path in {**reads, **writes}.items()}
        (folder / "spec.json").write_text(json.dumps({**spec, **files}), encoding="utf-8")
        # -P: the script's folder stays off sys.path, or its neighbours would shadow what the libraries import
        code = _execute([sys.executable, "-P", str(script), verb, str(folder / "spec.json")], folder, verb, time_limit)
    log = _read_log(folder)
    try:
        if code != 0:
            raise EngineError("crashed", f"The process of the {verb} ended with {_name_exit(code)}.", log)
        return _read_result(writes["result"], verb, log), log
    except EngineError as error:
        if error.kind in ("crashed", "garbage") and shutil.disk_usage(folder).free < _FULL:
            raise EngineError(
                "disk", f"The disk of {folder.parent} is full, and the {verb} left nothing.", log
            ) from error
        raise


def _execute(arguments: list[str], folder: Path, verb: str, time_limit: float, program: Path | None = None) -> int:
    """Run a command, its output in the folder's log; returns its exit status.

    A command that is given a program on its standard input has its standard output in a file of its own, `answer`.
    """
    # Windows has no process groups of this kind: there a child whose parent is gone ends by its own time limit
    guard = [sys.executable, "-I", "-S", supervisor.__file__, str(os.getpid()), str(folder)] * (os.name == "posix")
    environment = {name: value for name, value in os.environ.items() if name != "POLYGRAPHY_USE_TENSORRT_RTX"}
    with contextlib.ExitStack() as stack:
        log = stack.enter_context((folder / "log.txt").open("wb"))
        try:
            process = subprocess.Popen(  # noqa: S603 - our own interpreter and script, or the user's own command
                [*guard, *arguments],
                stdin=subprocess.DEVNULL if program is None else stack.enter_context(program.open("rb")),
                stdout=log if program is None else stack.enter_context((folder / "answer").open("wb")),
                stderr=log,
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            raise EngineError("unavailable", f"{arguments[0]} cannot be started: {error}", advice="") from error
        try:
            return _wait(process, verb, time_limit)
        except subprocess.TimeoutExpired as error:
            _kill(process)
            through = f" through `{' '.join(arguments)}`" if program else ""
            what = f"The {verb}{through} was killed after its time limit of {time_limit:g} s."
            raise EngineError("timed_out", what, _read_log(folder)) from error
        except BaseException:
            _kill(process)
            raise


def _read_result(path: Path, verb: str, log: str) -> dict[str, Any]:
    """The child's result; EngineError where it is unreadable, or its status is another than "done"."""
    try:
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        status = result["status"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EngineError("garbage", f"The {verb} ended well and left no readable result ({error!r}).", log) from error
    if status == "done":
        return result
    if status not in KINDS:
        raise EngineError("garbage", f"The {verb} left a result of unknown status {status!r}.", log)
    told = status in ("refused", "crashed")
    reasons = [line[4:] for line in log.splitlines() if told and line.startswith("[E] ")][-1:]
    message = str(result.get("message", "no reason given")).rstrip(".")
    what = ". ".join([f"The {verb} did not succeed: {message}", *reasons])
    raise EngineError(status, what, log, advice=result.get("advice"))


def _wait(process: subprocess.Popen[bytes], verb: str, time_limit: float) -> int:
    """The child's exit status; TimeoutExpired when the time is up, EngineError once it is cancelled."""
    cancelled = CANCELLED.get()
    if cancelled is None:
        return process.wait(time_limit)
    deadline = time.monotonic() + time_limit
    while not cancelled.is_set():
        try:
            return process.wait(_POLL)
        except subprocess.TimeoutExpired:
            if time.monotonic() > deadline:
                raise
    raise EngineError("cancelled", f"The {verb} was given up, its process was killed.")


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the child with all the processes it started, and wait until it is gone."""
    process.terminate()  # the supervisor ends its group, and a command on another machine cleans up there
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_MERCY)
    if os.name == "posix":
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _read_log(folder: Path) -> str:
    """What the child printed, '' where the file is gone."""
    try:
        return (folder / "log.txt").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _name_exit(code: int) -> str:
    """An exit status in words: "signal SIGSEGV", "status 1"."""
    if code >= 0:
        return f"status {code}"
    hint = " (most often the kernel, short of memory)" if code == -9 else ""
    with contextlib.suppress(ValueError):
        return f"signal {signal.Signals(-code).name}{hint}"
    return f"signal {-code}"
