"""Errors as sentences for the one who gave the arguments."""

from __future__ import annotations


def one_line(error: BaseException) -> str:
    """An error in a line of a report: its class and the first line of its message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:400] if lines else 'no message'}"
