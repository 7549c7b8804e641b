"""Reads YAML, JSON and CSV that others wrote, within bounds: a damaged or hostile file is one sentence that names it.

Imports nothing heavy, so that a command can answer before torch is loaded.
"""

from __future__ import annotations

import csv
import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

_MIB = 2**20
_YAML_BYTES, _JSON_BYTES, _CSV_BYTES, _CSV_LINE = 4 * _MIB, 64 * _MIB, 1024 * _MIB, 16 * _MIB
_LEVELS = 64
_VALUES = 50_000
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where PyYAML brings it
_OF_CONSTRUCTORS = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)
"""What PyYAML's constructors raise for values such as ``!!int ""``."""


def read_yaml(path: str | Path) -> Any:
    """The content of a YAML file: plain values alone, at most 64 levels deep and with 50,000 values.

    Aliases are counted as what they stand for before any of them is expanded, so that a file of a few hundred bytes
    cannot become gigabytes.

    Raises:
        ValueError: If it is no such file; the message names it.
        OSError: If it cannot be opened.
    """
    text = _read_text(path, "YAML", _YAML_BYTES)
    try:
        _refuse_large(text)
        return yaml.load(text, Loader=_LOADER)  # noqa: S506 - a safe loader
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f", in line {error.problem_mark.line + 1}"
        raise ValueError(f"Expected YAML in {path}, but {str(error.problem).removeprefix('but ')}{line}.") from error
    except (yaml.YAMLError, *_OF_CONSTRUCTORS) as error:
        raise ValueError(f"Expected YAML in {path}, but {_why(error)}.") from error


def read_json(path: str | Path) -> Any:
    """The content of a JSON file of at most 64 MiB.

    Raises:
        ValueError: If it is no such file; the message names it.
        OSError: If it cannot be opened.
    """
    text = _read_text(path, "JSON", _JSON_BYTES)
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError(f"Expected JSON in {path}, but it is nested too deeply.") from error
    except ValueError as error:
        raise ValueError(f"Expected JSON in {path}, but {_why(error)}.") from error


def read_last_cells(path: str | Path) -> dict[str, str]:
    """The last cell of each column of a CSV file that is not empty, of a file of any length that fits on a disk.

    Raises:
        ValueError: If it is no such file; the message names it.
        OSError: If it cannot be opened.
    """
    size = _regular_size(path, "CSV")
    if size > _CSV_BYTES:
        raise ValueError(f"Expected CSV of at most {_CSV_BYTES // _MIB} MiB in {path}, but it has {size // _MIB}.")
    last: dict[str, str] = {}
    try:
        rows = csv.reader(_lines(Path(path)))
        columns = next(rows, [])
        for row in rows:
            last.update((column, cell) for column, cell in zip(columns, row, strict=False) if cell.strip())
    except (csv.Error, ValueError) as error:
        raise ValueError(f"Expected CSV in {path}, but {_why(error)}.") from error
    return last


def _lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        while line := stream.readline(_CSV_LINE):
            if len(line) == _CSV_LINE:
                raise ValueError(f"a line is longer than {_CSV_LINE // _MIB} MiB")
            if "\0" in line:
                raise ValueError("it holds NUL bytes")
            yield line


def _regular_size(path: str | Path, form: str) -> int:
    """The size of a regular file; a pipe or a device would never end."""
    status = Path(path).stat()
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "no regular file"
        raise ValueError(f"Expected {form} in {path}, but it is {kind}.")
    return status.st_size


def _read_text(path: str | Path, form: str, largest: int) -> str:
    size = _regular_size(path, form)
    if size > largest:
        raise ValueError(f"Expected {form} of at most {largest // _MIB} MiB in {path}, but it has {size // _MIB}.")
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"Expected {form} in {path}, but it is no UTF-8 text.") from error
    if "\0" in text:
        raise ValueError(f"Expected {form} in {path}, but it holds NUL bytes.")
    return text


def _refuse_large(text: str) -> None:
    """Refuse what would be too large, over the events of the parser, which expands nothing and does not recurse."""
    counter = _Counter()
    for event in yaml.parse(text, Loader=_LOADER):
        counter.see(event)


class _Counter:
    """Counts the values and levels that the nodes of a YAML file stand for.

    Raises:
        ValueError: If there are more than any configuration has, or an alias stands inside of what it names.
    """

    def __init__(self) -> None:
        self._anchors: dict[str | None, tuple[int, int]] = {}
        self._open: list[tuple[str | None, list[tuple[int, int]]]] = [(None, [])]  # the first is the file

    def see(self, event: Any) -> None:
        """Take the next event of the parser."""
        if isinstance(event, yaml.CollectionStartEvent):
            self._open.append((event.anchor, [(1, 0)]))
            _refuse_beyond(1, len(self._open) - 1)
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, parts = self._open.pop()
            self._close(anchor, (parts[0][0], parts[0][1] + 1))
        elif isinstance(event, yaml.ScalarEvent):
            self._close(event.anchor, (1, 0))
        elif isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _ in self._open):
                raise ValueError(f"the alias *{event.anchor} stands inside of what it names")
            self._close(None, self._anchors.get(event.anchor, (1, 0)))

    def _close(self, anchor: str | None, found: tuple[int, int]) -> None:
        """Add a whole node to the one that it stands in."""
        self._anchors[anchor] = found
        parts = self._open[-1][1]
        values, levels = parts[0] if parts else (0, 0)
        values, levels = values + found[0], max(levels, found[1])
        parts[:] = [(values, levels)]
        _refuse_beyond(values, len(self._open) - 1 + levels)


def _refuse_beyond(values: int, levels: int) -> None:
    if levels > _LEVELS:
        raise ValueError(f"it is nested more than {_LEVELS} levels deep")
    if values > _VALUES:
        raise ValueError(f"it stands for more than {_VALUES} values")


def _why(error: BaseException) -> str:
    """One line of an error's text."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return "it is no UTF-8 text"
    return " ".join(str(error).split()).rstrip(".")[:200] or type(error).__name__
