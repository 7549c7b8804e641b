"""Budgets: the limits in a file of the user's repository, and the one reader of them.

# parity.yaml
emulated-fp16/lateral_px_p99: 0.5      # <target>/<metric>: largest allowed value, of the command parity
tensorrt-fp16: {rel_l2: 5e-3, latency_ms: 4}
replay/tensorrt-fp16/p99: 2.0          # of another command: its name stands first
golden/engine/lateral_px_p99: 0.3
fingerprint/distance: 0.5
compare/val/acc: 0.01
night:                                 # a class of cases of the case book, which replay keeps to
  tensorrt-fp16/p99: 3.0
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lightning_robust.reading import read_yaml
from lightning_robust.suggest import did_you_mean

Rule = Callable[[str], str]
"""Takes a key of a command, without the command's name; gives it in its full form, or raises ValueError saying why."""
JUDGES = ("parity", "golden", "fingerprint", "replay", "compare", "precision")
"""The commands that judge."""
DEFAULT_BUDGET = "parity.yaml"
"""The file that is read where none is named, if the working folder has it."""
_DEPTH, _ALIKE = 4, 0.8


@dataclass(frozen=True)
class Rules:
    """What the keys of a budget may be.

    Args:
        targets: The subjects of ``parity``, in whose name a block of metrics may stand.
        keys: Command -> what checks its keys; those of other commands are taken as they are.
    """

    targets: Collection[str] = ()
    keys: Mapping[str, Rule] = field(default_factory=dict)


@dataclass(frozen=True)
class Budget:
    """The limits of every command that judges.

    Args:
        source: Where they are from, as a verdict says it; empty where nobody set any.
        limits: Command -> key -> limit.
        classes: Class of cases -> key -> limit of ``replay``; they go before its others.

    Example:
        >>> budget = read_limits({"emulated-fp16/rel_l2": "5e-3", "night": {"replay/p99": 3}}, "parity.yaml", Rules())
        >>> budget.of("parity"), budget.of("replay"), budget.of("replay", "night")
        ({'emulated-fp16/rel_l2': 0.005}, {}, {'p99': 3.0})
    """

    source: str = ""
    limits: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    classes: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def of(self, command: str, kind: str = "") -> dict[str, float]:
        """The limits of a command.

        Args:
            command: One of :data:`JUDGES`.
            kind: The class of a case.
        """
        return {**self.limits.get(command, {}), **self.classes.get(kind, {})}


def read_budget(path: str | Path, rules: Rules) -> Budget:
    """Read a file of limits.

    Args:
        path: The YAML file.
        rules: What its keys may be.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is no YAML, holds anything but limits, or one under an unknown or a repeated key.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"Expected a budget file at {path}, but there is no such file.")
    read_yaml(path)  # which keeps its content within bounds, and knows of no key that stands there twice
    return parse_budget(Path(path).read_text(encoding="utf-8-sig"), str(path), rules)


def parse_budget(text: str, source: str, rules: Rules) -> Budget:
    """The same of a text; `source` is what an error and a verdict call it.

    Raises:
        ValueError: As :func:`read_budget`.
    """
    try:
        content = yaml.load(text, _OneOfEach)  # noqa: S506 - it is a SafeLoader
    except (yaml.YAMLError, ValueError) as error:
        problem = " ".join(str(error).split())
        raise ValueError(f"Expected YAML in {source}, but got {problem}") from error
    return read_limits(content, source, rules)


def read_limits(content: Any, source: str, rules: Rules) -> Budget:
    """Limits as a mapping gives them.

    Args:
        content: ``"<subject>/<metric>"`` -> limit, after the command's name but for those of ``parity``. A mapping as a
            value is a command, a target with several metrics, or a class of cases.
        source: What an error and a verdict call it.
        rules: What the keys may be.

    Raises:
        ValueError: If that is not what it is.
    """
    if not isinstance(content, Mapping) or not content:
        got = f"{content!r:.80}" if content else "nothing"
        raise ValueError(f"Expected `<target>/<metric>: limit` in {source}, but got {got}.")
    limits: dict[str, dict[str, float]] = {}
    classes: dict[str, dict[str, float]] = {}
    for key, value in content.items():
        name = str(key)
        try:
            if not isinstance(value, Mapping) or name.split("/")[0] in {*JUDGES, *rules.targets}:
                _add_all(limits, _flatten(name, value), rules)
            else:
                _check_class(name, rules)
                _add_all(classes, _flatten("", value), rules, name)
        except ValueError as error:
            raise ValueError(f"{source}: {name:.80}: {error}") from error
    return Budget(source, limits, classes)


def check_subject(subject: str, known: Collection[str], what: str = "a target") -> None:
    """Refuse the first part of a key that is not known.

    Args:
        subject: The part.
        known: What it may be.
        what: What that is, with its article.

    Raises:
        ValueError: Naming the nearest ones; of a few, all.
    """
    if subject not in known:
        choices = f" ({', '.join(known)})" if len(known) < 15 else ""
        raise ValueError(f"expected {what}{choices}, but got {subject!r}.{did_you_mean(subject, [*known, *JUDGES])}")


def _check_class(name: str, rules: Rules) -> None:
    """Refuse a class of cases that is a misspelt command or target."""
    near = difflib.get_close_matches(name, [*JUDGES, *rules.targets], 1, _ALIKE)
    if near:
        raise ValueError(f"expected a command, a target or a class of cases. Did you mean {near[0]!r}?")


def _flatten(key: str, value: Any, depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Nested keys joined by slashes."""
    if not isinstance(value, Mapping):
        yield key, value
        return
    if depth >= _DEPTH or not value:
        raise ValueError(f"expected limits, but got {'mappings within mappings' if value else 'nothing'}.")
    for name, each in value.items():
        yield from _flatten(f"{key}/{name}" if key else str(name), each, depth + 1)


def _add_all(
    limits: dict[str, dict[str, float]], given: Iterable[tuple[str, Any]], rules: Rules, kind: str = ""
) -> None:
    """Add limits under their full keys to those of their command, or of a class of cases."""
    for path, value in given:
        first, _, rest = path.partition("/")
        default = "replay" if kind else "parity"
        command, key = (first, rest) if first in JUDGES else (default, path)
        if kind and command != "replay":
            raise ValueError(f"expected limits of replay for a class of cases, but got one of {command}.")
        key = rules.keys.get(command, str)(key)
        section = limits.setdefault(kind or command, {})
        if key in section:
            raise ValueError(f"expected one limit, but got two for {key}.")
        section[key] = read_limit(value)


def read_limit(value: Any) -> float:
    """A limit as a file gives it; YAML takes ``5e-3`` for a text.

    Raises:
        ValueError: If it is no number of at least 0.

    Example:
        >>> read_limit(2), read_limit("5e-3")
        (2.0, 0.005)
    """
    try:
        limit = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        limit = math.nan
    if not 0 <= limit < math.inf:
        raise ValueError(f"expected a number of at least 0, but got {value!r:.80}.")
    return limit


class _OneOfEach(yaml.SafeLoader):
    """Refuses a key that a mapping has twice, of which YAML would silently take the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """A mapping whose keys differ."""
        seen: set[str] = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                raise yaml.YAMLError(f"{key.value!r} a second time in line {key.start_mark.line + 1}.")
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)
