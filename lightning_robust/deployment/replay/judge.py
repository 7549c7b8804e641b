"""A replay held against limits: its numbers by name, and a check for each limit.

The names are ``<subject>/<metric>``: a target, a perturbation or ``torch-fp32`` (PyTorch by itself), and a metric of
:mod:`~.line_metrics`, with ``_px`` where it is counted in pixels. A name without a subject means every target.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterator, Mapping
from typing import Any

from lightning_robust.deployment.engines.targets import TARGETS
from lightning_robust.deployment.pixels.catalogue import CATALOGUE
from lightning_robust.deployment.replay.results import ReplayReport, ReplayResult
from lightning_robust.deployment.replay.scenes import distances
from lightning_robust.gate.check import Check
from lightning_robust.suggest import did_you_mean

_PIXELS = ("swing", "bend", "mean", "p99", "max", "bias", "swing_beyond", "bend_beyond")
_SHARES = ("lost", "gained", "frames_lost")
METRICS = (*(f"{name}_px" for name in _PIXELS), *_SHARES)
"""What can be bounded, each the largest of the lines; shares lie between 0 and 1."""
PYTORCH = "torch-fp32"


def read_numbers(given: Any, what: str) -> dict[str, float]:
    """Numbers by name, as a file gives them: ``swing_px: 2``, ``emulated-fp16/p99_px: 0.5`` or a block for a subject.

    Args:
        given: What the file holds.
        what: Names the file and the key in an error.

    Raises:
        ValueError: For an unknown name, or what is no number of at least 0.

    Example:
        >>> read_numbers({"swing": 2, "emulated-fp16": {"lost": 0.01}}, "bounds")
        {'swing_px': 2.0, 'emulated-fp16/lost': 0.01}
    """
    if not isinstance(given, Mapping) or not given:
        raise ValueError(f"{what}: expected names of metrics with a number each, but got {reprlib.repr(given)}.")
    numbers: dict[str, float] = {}
    for key, value in _flat(given, what):
        try:
            name = replay_key(key)
        except ValueError as error:
            raise ValueError(f"{what}: {key}: {error}") from error
        if name in numbers:
            raise ValueError(f"{what}: expected one number for each name, but got two for {name}.")
        numbers[name] = _number(value, f"{what}: {key}")
    return numbers


def replay_key(key: str) -> str:
    """A name as :func:`replay_numbers` has it, of one in which ``_px`` may be left out.

    Raises:
        ValueError: If it is none; the message says what it may be.

    Example:
        >>> replay_key("emulated-fp16/p99"), replay_key("lost")
        ('emulated-fp16/p99_px', 'lost')
    """
    subject, slash, metric = key.rpartition("/")
    metric = f"{metric}_px" if metric in _PIXELS else metric
    subjects = [*TARGETS, *CATALOGUE]
    if slash and subject not in subjects:
        raise ValueError(f"expected a target or a perturbation, but got {subject!r}.{did_you_mean(subject, subjects)}")
    if metric not in METRICS:
        hint = did_you_mean(metric, METRICS if slash else [*METRICS, *subjects])
        raise ValueError(f"expected a metric out of {', '.join(METRICS)}, but got {metric!r}.{hint}")
    return f"{subject}{slash}{metric}"


def replay_numbers(report: ReplayReport) -> dict[str, float]:
    """All numbers of a replay by name, each the largest of the lines that PyTorch finds, of what was measured.

    Where PyTorch finds no line there is none to lose or to move: such a line has no numbers.
    """
    numbers = {}
    for subject, result in {PYTORCH: report.reference, **report.runtimes, **report.perturbations}.items():
        lines = [line for line, exact in zip(result.lines, report.reference.lines, strict=False) if exact["present"]]
        for metric in METRICS[:2] if result is report.reference else METRICS:
            values = [abs(line[key]) for line in lines if (key := metric.removesuffix("_px")) in line]
            if values:
                numbers[f"{subject}/{metric}"] = max(values)
    return numbers


def replay_checks(report: ReplayReport, limits: Mapping[str, float], case: str = "") -> list[Check]:
    """A check for each limit; one for each target where the limit names none.

    Args:
        report: Of the recording.
        limits: From :func:`read_numbers`.
        case: The case that was replayed.
    """
    numbers = replay_numbers(report)
    checks = []
    for name, limit in limits.items():
        subject, _, metric = name.rpartition("/")
        # a limit of its own goes before that of all targets
        subjects = [subject] if subject else [each for each in report.runtimes if f"{each}/{metric}" not in limits]
        for each in subjects or ([] if report.runtimes else ["any target"]):
            value = numbers.get(f"{each}/{metric}", math.nan)
            note = _absence(report, each, metric) if math.isnan(value) else ""
            checks.append(Check(each, metric, value, limit, place=_farthest_frame(report, each), note=note, case=case))
    return checks


def _flat(given: Mapping[Any, Any], what: str) -> Iterator[tuple[str, Any]]:
    for key, value in given.items():
        if isinstance(value, Mapping):
            if not value:
                raise ValueError(f"{what}: {key}: expected metrics with a number each, but got none.")
            yield from ((f"{key}/{metric}", number) for metric, number in value.items())
        else:
            yield str(key), value


def _number(value: Any, what: str) -> float:
    """A number; YAML takes ``5e-3`` for a text."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number < math.inf:
        raise ValueError(f"{what}: expected a number of at least 0, but got {reprlib.repr(value)}.")
    return number


def _result(report: ReplayReport, subject: str) -> ReplayResult | None:
    found = report.runtimes.get(subject) or report.perturbations.get(subject)
    return report.reference if found is None and subject == PYTORCH else found


def _absence(report: ReplayReport, subject: str, metric: str) -> str:
    """Why there is no such number."""
    result = _result(report, subject)
    if result is None:
        return "nothing was run" if subject == "any target" else "it was not run"
    if result.status != "measured":
        return f"{result.status}: {result.note}" if result.note else result.status
    if not any(line["present"] for line in report.reference.lines):
        return "PyTorch finds no line in these frames"
    if result is report.reference and metric not in METRICS[:2]:
        return "PyTorch is what others are measured against"
    return "it needs a line in three consecutive frames and rows"


def _farthest_frame(report: ReplayReport, subject: str) -> str:
    """The frame in which the lines are farthest from the reference's."""
    result = _result(report, subject)
    if result is None or result is report.reference or result.columns is None or result.reference is None:
        return ""
    position = int(distances(result.columns, result.reference).argmax())
    return f"frame {report.frames[position]}"
