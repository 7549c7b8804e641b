"""What a command that judges is told on the command line, and what it hands out at the end."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jsonargparse

from lightning_robust.gate.budget import DEFAULT_BUDGET, Budget, Rules, read_budget
from lightning_robust.gate.check import ANYTHING, Check, Judgement
from lightning_robust.gate.junit import write_junit
from lightning_robust.gate.summary import write_summary
from lightning_robust.gate.written import write_budget

OPTIONS = ("budget", "write_budget", "margin", "junit", "summary")
"""The options that every command that judges has."""
_WITHOUT = "none"


def add_gate_options(parser: jsonargparse.ArgumentParser, number: bool = False) -> None:
    """Add the options of :data:`OPTIONS` to the parser of a command.

    Args:
        parser: The parser.
        number: Whether the budget may be one number too.
    """
    either = "Largest distance that is allowed, or a" if number else "A"
    parser.add_argument(
        "--budget",
        type=str | None,
        default=None,
        help=f"{either} YAML file of limits, <target>/<metric>: limit; by default {DEFAULT_BUDGET} of the working "
        f"folder, where it has one. --budget={_WITHOUT} is without.",
    )
    parser.add_argument(
        "--write_budget",
        "--write-budget",
        type=str | None,
        nargs="?",
        const=DEFAULT_BUDGET,
        default=None,
        metavar="FILE",
        help=f"Write the measured values with a margin as limits, into {DEFAULT_BUDGET} or the given file; what was "
        "set there by hand stays.",
    )
    parser.add_argument(
        "--margin",
        type=float,
        default=0.25,
        help="How much more than what was measured those limits allow (0.25 is 25 %%).",
    )
    parser.add_argument(
        "--junit", type=str | None, default=None, metavar="FILE", help="Write the verdict as JUnit XML."
    )
    parser.add_argument(
        "--summary",
        type=str | None,
        default=None,
        metavar="FILE",
        help="Write the verdict and all numbers as Markdown.",
    )


@dataclass(frozen=True)
class Gate:
    """The limits that a command is held to, and where its judgement goes.

    Args:
        command: Its name.
        budget: The limits of the file.
        number: The budget as one number, where that was given.
        rules: What the keys of a budget may be.
        outputs: The values of the other options.
        line: The command line.
        start: When the command began, by ``time.monotonic()``.
    """

    command: str
    budget: Budget = field(default_factory=Budget)
    number: float | None = None
    rules: Rules = field(default_factory=Rules)
    outputs: Mapping[str, Any] = field(default_factory=dict)
    line: str = ""
    start: float = field(default_factory=time.monotonic)

    @property
    def limits(self) -> dict[str, float]:
        """The command's limits."""
        return self.budget.of(self.command)

    @property
    def source(self) -> str:
        """Where they are from; empty where there are none."""
        return self.budget.source if self.limits else ""

    def close(self, judgement: Judgement) -> int:
        """Write what was asked for, and print the verdict last.

        Returns:
            The exit status.

        Raises:
            OSError: If a file cannot be written; the verdict is printed all the same.
            ValueError: If limits were to be written and nothing was measured.
        """
        if self.outputs.get("write_budget"):
            judgement = self._write_budget(judgement)
        try:
            if self.outputs.get("junit"):
                write_junit(judgement, self.outputs["junit"], time.monotonic() - self.start)
            write_summary(judgement, self.outputs.get("summary"))
        finally:
            sys.stdout.write(f"{judgement.text()}\n")
        return judgement.exit_code

    def _write_budget(self, judgement: Judgement) -> Judgement:
        """The judgement by the limits that were written from it."""
        path = self.outputs["write_budget"]
        remarks = write_budget(
            path,
            self.command,
            judgement.checks,
            self.rules,
            margin=self.outputs["margin"],
            line=self.line,
            origin=judgement.origin,
        )
        limits = read_budget(path, self.rules).of(self.command)
        checks = tuple(replace(check, limit=limits.get(check.key, check.limit)) for check in judgement.checks)
        return replace(judgement, checks=checks, budget=str(path), remarks=(*judgement.remarks, *remarks))


def open_gate(command: str, options: Mapping[str, Any], rules: Rules, *, number: bool = False, line: str = "") -> Gate:
    """Read the budget of a command, and refuse what cannot be read or written before any work begins.

    Args:
        command: Its name.
        options: The values of :data:`OPTIONS`.
        rules: What the keys of a budget may be.
        number: Whether the budget may be one number.
        line: The command line.

    Raises:
        OSError: If the budget cannot be read, or a file cannot be written.
        ValueError: If the budget is broken, or the margin negative.
    """
    start = time.monotonic()
    margin = options["margin"]
    if not 0 <= margin < float("inf"):
        raise ValueError(f"Expected `margin` as a number from 0, such as 0.25 for 25 %, but got {margin}.")
    for name in ("write_budget", "junit", "summary"):
        _check_output(name, options[name])
    if options["write_budget"] and Path(options["write_budget"]).exists():
        read_budget(options["write_budget"], rules)
    given = options["budget"]
    if number and (value := _as_number(given)) is not None:
        return Gate(command, Budget(), value, rules, options, line, start)
    return Gate(command, _find_budget(given, rules), None, rules, options, line, start)


def report_failure(command: str, options: Mapping[str, Any], message: str) -> None:
    """Write that nothing was measured where the verdict was to be written, over that of an earlier run.

    Args:
        command: The name of the command that failed.
        options: The values of :data:`OPTIONS`.
        message: Why. A file that cannot be written is left: the error that is told is the one before it.
    """
    judgement = Judgement(command, (Check("", ANYTHING, math.nan, note=message, demanded=True),))
    with contextlib.suppress(OSError):
        if options["junit"]:
            write_junit(judgement, options["junit"])
    with contextlib.suppress(OSError):
        write_summary(judgement, options["summary"])


def _find_budget(given: str | None, rules: Rules) -> Budget:
    """The budget that was named, that of the working folder, or none."""
    if given == _WITHOUT or (given is None and not Path(DEFAULT_BUDGET).is_file()):
        return Budget()
    if given is not None:
        return read_budget(given, rules)
    try:
        return read_budget(DEFAULT_BUDGET, rules)
    except ValueError as error:
        raise ValueError(
            f"{error} (It is the budget of the working folder: --budget={_WITHOUT} is without.)"
        ) from error


def _as_number(text: str | None) -> float | None:
    """A number as Python or YAML writes it; None for any other text."""
    try:
        return None if text is None else float({".nan": "nan", ".inf": "inf"}.get(text, text))
    except ValueError:
        return None


def _check_output(name: str, path: str | None) -> None:
    """Refuse a file that cannot be one."""
    if path is None:
        return
    if not path or Path(path).is_dir():
        raise IsADirectoryError(f"Expected --{name} to be a file, but got {path!r}.")
    folder = next(parent for parent in Path(path).absolute().parents if parent.exists())
    if not folder.is_dir():
        raise NotADirectoryError(f"Expected --{name} in a folder, but {folder} is a file.")
