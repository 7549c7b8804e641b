"""What can go wrong with a child process, and what to do about it."""

from __future__ import annotations

from typing import Literal, get_args

Kind = Literal["crashed", "timed_out", "refused", "garbage", "disk", "unavailable", "cancelled"]
KINDS = get_args(Kind)
_ADVICE: dict[Kind, str] = {
    "crashed": "Try another version of the library (and report it there), or leave this target out.",
    "timed_out": "Raise the time limit, build a smaller profile, or measure this target less often.",
    "refused": "Change the model so that the node named above is supported, or leave this target out.",
    "garbage": "Run it again; if it happens again, another program writes to the same place or the library is broken.",
    "disk": "Free some space there, or name another directory that can be written.",
    "unavailable": "Install what is missing or leave this target out.",
    "cancelled": "",
}


class EngineError(RuntimeError):
    """An engine was not built or did not run.

    The message says what happened, gives the last lines of the child's log and says what to do.

    Args:
        kind: "crashed" (the process died), "timed_out", "refused" (by parser or builder), "garbage" (it ended well and
            left no valid result), "disk" (full, read-only, no such place), "unavailable" (package, device, or the
            machine where it was to start) or "cancelled" (see :data:`~.process.CANCELLED`).
        what: What happened, one sentence.
        log: What the child printed.
        advice: What to do; by default the usual advice for the kind, '' for none.
    """

    def __init__(self, kind: Kind, what: str, log: str = "", advice: str | None = None) -> None:
        self.kind = kind
        tail = "\n".join([line for line in log.splitlines() if line.strip()][-12:])
        lines = [what, f"Last lines of its log:\n{tail}" if tail else "", _ADVICE[kind] if advice is None else advice]
        super().__init__("\n".join(line for line in lines if line))
