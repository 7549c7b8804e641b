"""The parsers: one line for an error, with the nearest key for one that is misspelt."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, NoReturn

import jsonargparse

from lightning_robust.cli.messages import one_complaint, whole_key
from lightning_robust.reading import read_yaml
from lightning_robust.suggest import did_you_mean

_UNKNOWN = re.compile(r"(?:Key '|nrecognized arguments: --|[Oo]ption ')([\w.]+)")

_SUBCOMMAND = re.compile(r"^(fit|validate|test|predict|soup)\.")
_REQUIRED = re.compile(r"arguments are required: ([\w., ]+)")


def refuse(complaint: str, help_of: str = "all keys") -> NoReturn:
    """Print one line, and how to get help, and exit with 2."""
    sys.stderr.write(f"error: {complaint}\nRun with --help for {help_of}.\n")
    raise SystemExit(2)


class OneLineParser(jsonargparse.ArgumentParser):
    """Prints an error without fifty lines of usage, and the nearest option for one that is misspelt."""

    line: ClassVar[Sequence[str]] = ()
    """The arguments that are parsed; of the class, for jsonargparse makes a parser of its own for each class."""
    file: ClassVar[str] = ""
    """The configuration file that is read, or none."""

    def parse_args(self, *args: Any, **settings: Any) -> Any:
        """Parse, and keep the arguments for an error."""
        line = args[0] if args else settings.get("args")
        OneLineParser.line, OneLineParser.file = sys.argv[1:] if line is None else line, ""
        return super().parse_args(*args, **settings)

    def parse_path(self, cfg_path: Any, *others: Any, **settings: Any) -> Any:
        """Read a configuration within bounds, and keep its name for an error."""
        try:
            content = read_yaml(str(cfg_path))
            if not isinstance(content, dict):
                raise ValueError(f"Expected keys with values in {cfg_path}, but got {str(content)[:80]!r}.")
        except ValueError as error:
            raise TypeError(str(error)) from error  # which the parser takes for an error of the user
        OneLineParser.file = str(cfg_path)
        parsed = super().parse_path(cfg_path, *others, **settings)
        OneLineParser.file = ""
        return parsed

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the complaint and exit with 2."""
        refuse(self.complaint(message))

    def complaint(self, message: str) -> str:
        """The parser's message in one line, with the nearest known key for one that is misspelt."""
        unknown, required = _UNKNOWN.search(message), _REQUIRED.search(message)
        if required is not None:
            names = [f"--{_SUBCOMMAND.sub('', name)}" for name in required[1].split(", ")]
            text = f"Expected {' and '.join(names)}, but got none."
        elif unknown is None:
            text = one_complaint(message, self.line)
        else:
            whole, last = whole_key(unknown[1], self.line), unknown[1].rsplit(".", 1)[-1]
            known = [*self.known_keys()]
            near = "" if last in known else did_you_mean(last, known, 1)
            text = f"{message.splitlines()[0]}.{near}".replace(f"'{unknown[1]}'", f"'{whole}'")
        return f"{self.file}: {text}" if self.file and self.file not in text else text

    def known_keys(self) -> Iterable[str]:
        """What could have been meant by a key that is unknown."""
        return sorted(vars(self.get_defaults()))
