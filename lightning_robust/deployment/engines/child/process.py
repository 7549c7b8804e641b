"""The parent's side of the child process: start a script, limit its time, kill it, and read its result."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextvars import ContextVar
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

Kind = Literal["crashed", "timed_out", "refused", "garbage", "disk", "unavailable", "cancelled"]
_ADVICE: dict[Kind, str] = {
    "crashed": "Try another version of the library (and report it there), or leave this target out.",
    "timed_out": "Raise the time limit, build a smaller profile, or measure this target less often.",
    "refused": "Change the model so that the node named above is supported, or leave this target out.",
    "garbage": "Run it again; if it happens again, another program writes to the same place or the library is broken.",
    "disk": "Free some space there, or name another directory that can be written.",
    "unavailable": "Install what is missing or leave this target out.",
    "cancelled": "",
}
CANCELLED: ContextVar[threading.Event | None] = ContextVar("cancelled", default=None)
"""A thread that puts an event here has its children killed as soon as another thread sets the event."""
_POLL = 0.05  # seconds between two checks of the event


class EngineError(RuntimeError):
    """An engine was not built or did not run.

    The message says what happened, gives the last lines of the child's log and says what to do.

    Args:
        kind: "crashed" (the process died), "timed_out", "refused" (by parser or builder), "garbage" (it ended well and
            left no valid result), "disk" (full, read-only, no such place), "unavailable" (package or device) or
            "cancelled" (see :data:`CANCELLED`).
        what: What happened, one sentence.
        log: What the child printed.
        advice: What to do; by default the usual advice for the kind, '' for none.
    """

    def __init__(self, kind: Kind, what: str, log: str = "", advice: str | None = None) -> None:
        self.kind = kind
        tail = "\n".join([line for line in log.splitlines() if line.strip()][-12:])
        lines = [what, f"Last lines of its log:\n{tail}" if tail else "", _ADVICE[kind] if advice is None else advice]
        super().__init__("\n".join(line for line in lines if line))


def run_child(
    script: Path,
    verb: str,
    spec: Mapping[str, Any],
    folder: Path,
    time_limit: float,
    *,
    reads: Mapping[str, Path] = MappingProxyType({}),
    writes: Mapping[str, Path] = MappingProxyType({}),
) -> tuple[dict[str, Any], str]:
    """Run one verb of a child script in `folder`; returns its result and its log, or raises EngineError.

    Args:
        script: The child's script.
        verb: What it is to do.
        spec: What it is told; numbers, strings and lists, no paths.
        folder: A temporary folder for the spec, the result and the log.
        time_limit: Seconds until the child is killed.
        reads: Key of the spec -> file that the child reads. A file that is not there is none of its.
        writes: Key of the spec -> file that the child writes. A key of both is a file that it reads and writes anew.
    """
    spec_file, result_file, log_file = folder / "spec.json", folder / "result.json", folder / "log.txt"
    files = {key: str(path) for key, path in {**reads, **writes, "result": result_file}.items()}
    spec_file.write_text(json.dumps({**spec, **files, "time_limit": time_limit}), encoding="utf-8")
    # -P: the script's folder stays off sys.path, or its neighbours would shadow what the libraries import
    command = [sys.executable, "-P", str(script), verb, str(spec_file)]
    environment = {name: value for name, value in os.environ.items() if name != "POLYGRAPHY_USE_TENSORRT_RTX"}
    with log_file.open("wb") as stream:
        process = subprocess.Popen(  # noqa: S603 - our own interpreter and script
            command,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        try:
            code = _wait(process, verb, time_limit)
        except subprocess.TimeoutExpired as error:
            _kill(process)
            what = f"The {verb} was killed after its time limit of {time_limit:g} s."
            raise EngineError("timed_out", what, _read_log(log_file)) from error
        except BaseException:
            _kill(process)
            raise
    log = _read_log(log_file)
    if code != 0:
        raise EngineError("crashed", f"The process of the {verb} ended with {_name_exit(code)}.", log)
    return _read_result(result_file, verb, log), log


def _read_result(path: Path, verb: str, log: str) -> dict[str, Any]:
    """The child's result; EngineError where it is unreadable, or its status is another than "done"."""
    try:
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        status = result["status"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EngineError("garbage", f"The {verb} ended well and left no readable result ({error!r}).", log) from error
    if status == "done":
        return result
    if status not in _ADVICE:
        raise EngineError("garbage", f"The {verb} left a result of unknown status {status!r}.", log)
    reasons = [line[4:] for line in log.splitlines() if line.startswith("[E] ")][-1:]
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
    """Kill the child with all the processes it started, and wait until it is gone."""
    with contextlib.suppress(ProcessLookupError):
        if os.name == "posix":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    process.wait()


def _read_log(path: Path) -> str:
    """What the child printed, '' where the file is gone."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
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
