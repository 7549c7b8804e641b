"""Limits that are written from measured values: one block a command in the budget file, and all else as it was.

# measured: parity (lightning-robust parity --onnx=net.onnx --write-budget)
# 2026-11-27, lightning_robust 0.1.0, weights 9f2c51d0; the limits are the measured values and 25 % more
emulated-fp16/rel_l2: 0.00125  # measured 0.001 (0.0009 to 0.0011)
# end of measured: parity
"""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from lightning_robust.gate.budget import Rules, parse_budget
from lightning_robust.gate.check import Check, on_one_line, size
from lightning_robust.version import package_version

_LEAST = 1e-6  # of a limit: another machine rounds fp32 differently
_DIGITS = 3
_PLAIN_KEY = re.compile(r"\w[\w./@-]*")


def write_budget(
    path: str | Path,
    command: str,
    checks: Iterable[Check],
    rules: Rules,
    *,
    margin: float = 0.25,
    line: str = "",
    origin: str = "",
) -> list[str]:
    """Write the measured values with a margin as limits.

    The block that an earlier call wrote for the command is replaced, but for limits in it that were not measured now.
    What stands elsewhere in the file was written by hand or for another command: it stays, and goes before what is
    measured.

    Args:
        path: The budget file; made where there is none.
        command: Whose values they are.
        checks: What was measured.
        rules: What the keys of the file may be.
        margin: How much more than the measured value is allowed, as a share of it; a limit is at least 1e-6.
        line: The command line, for a comment.
        origin: What was measured, for a comment, such as the digest of the weights.

    Returns:
        What was written, changed and left, a sentence each.

    Raises:
        OSError: If the file cannot be written.
        ValueError: If it exists and is no budget file, or nothing was measured.
    """
    path = Path(path).resolve()
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    before, old, after = _cut(text, command)
    by_hand = _limits_of(before + after, path, command, rules)
    earlier = _entries(old, path, command, rules)
    measured = _worst_of_each(checks)
    if not measured:
        raise ValueError(f"Expected measured values for {path.name}, but nothing was measured.")
    ours = {key: (_limit_of(check, margin), check.told()) for key, check in measured.items() if key not in by_hand}
    kept = {key: entry for key, (_, entry) in earlier.items() if key not in measured}
    share = f"{100 * margin:g} %"
    head = [
        f"# measured: {command} ({on_one_line(line) or f'lightning-robust {command}'})",
        f"# {_measured_with(origin)}; the limits are the measured values and {share} more",
    ]
    block = [*head, *_lines_of(command, ours), *kept.values(), f"# end of measured: {command}"]
    _replace(path, before, "\n".join(block) + "\n" + after)
    told = f"wrote {len(ours)} limit{'s' * (len(ours) != 1)} to {path.name} with a margin of {share}"
    return [told, *_changes(earlier, ours), *_left(measured, by_hand, kept)]


def _worst_of_each(checks: Iterable[Check]) -> dict[str, Check]:
    """Key -> the check of the largest value that is a number."""
    worst: dict[str, Check] = {}
    for check in filter(lambda check: math.isfinite(check.value), checks):
        if check.key not in worst or _size_of(check) > _size_of(worst[check.key]):
            worst[check.key] = check
    return worst


def _size_of(check: Check) -> float:
    return size(check.metric, check.value)


def _lines_of(command: str, ours: Mapping[str, tuple[float, str]]) -> list[str]:
    lines = ((_key(command, key), limit, value) for key, (limit, value) in ours.items())
    return [f"{key}: {limit:.{_DIGITS}g}  # measured {value}" for key, limit, value in lines]


def _left(measured: Iterable[str], by_hand: Mapping[str, float], kept: Iterable[str]) -> list[str]:
    """The limits that stay as they were."""
    lines = [f"left {key} at {by_hand[key]:.3g}, which was set by hand" for key in measured if key in by_hand]
    return lines + [f"left {key}, which was not measured now" for key in kept]


def _changes(earlier: Mapping[str, tuple[float, str]], ours: Mapping[str, tuple[float, str]]) -> list[str]:
    """What became of the limits that an earlier call wrote."""
    both = [(key, f"{earlier[key][0]:.3g}", f"{ours[key][0]:.3g}") for key in ours if key in earlier]
    return [f"changed {key} from {before} to {after}" for key, before, after in both if before != after]


def _measured_with(origin: str) -> str:
    parts = [time.strftime("%Y-%m-%d"), f"lightning_robust {package_version()}", on_one_line(origin)]
    return ", ".join(filter(None, parts))


def _cut(text: str, command: str) -> tuple[str, str, str]:
    """What stands before a command's block, the block, and what stands after it."""
    found = re.search(rf"^# measured: {command}\b.*?^# end of measured: {command}$\n?", text, re.MULTILINE | re.DOTALL)
    return (text, "", "") if found is None else (text[: found.start()], found[0], text[found.end() :])


def _limits_of(text: str, path: Path, command: str, rules: Rules) -> Mapping[str, float]:
    """The limits of a command in a text, which may have none."""
    has_any = any(line.strip() and not line.lstrip().startswith("#") for line in text.splitlines())
    return parse_budget(text, str(path), rules).of(command) if has_any else {}


def _entries(block: str, path: Path, command: str, rules: Rules) -> dict[str, tuple[float, str]]:
    """Key -> limit and line, of a command's block."""
    lines = [line for line in block.splitlines() if line.strip() and not line.startswith("#")]
    found = [(line, _limits_of(line, path, command, rules)) for line in lines]
    return {key: (limit, line) for line, limits in found for key, limit in limits.items()}


def _limit_of(check: Check, margin: float) -> float:
    """The value with its margin, rounded up to three digits.

    Example:
        >>> _limit_of(Check("emulated-fp16", "bias", -0.12345), 0.25)
        0.155
    """
    limit = max(_size_of(check) * (1 + margin), _LEAST)
    step = 10.0 ** (math.floor(math.log10(limit)) - _DIGITS + 1)
    return float(f"{math.ceil(limit / step - 1e-9) * step:.{_DIGITS}g}")


def _key(command: str, key: str) -> str:
    """A key as the file has it: with the command's name, but for those of ``parity``."""
    whole = key if command == "parity" else f"{command}/{key}"
    return whole if _PLAIN_KEY.fullmatch(whole) else json.dumps(whole)


def _replace(path: Path, before: str, after: str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_text(f"{before}\n{after}" if before and before[-1] != "\n" else before + after, encoding="utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
