"""A replay held against limits: its numbers by name, and a check for each limit."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from lightning_robust.deployment.replay.limits import METRICS, PYTORCH
from lightning_robust.deployment.replay.results import ReplayReport, ReplayResult
from lightning_robust.deployment.replay.scenes import distances
from lightning_robust.gate.check import Check, Judgement

_TOLD = ("p99_px", "swing_beyond_px", "bend_beyond_px", "lost")


def replay_numbers(report: ReplayReport) -> dict[str, float]:
    """All numbers of a replay by name, each the largest of the lines that PyTorch finds, of what was measured.

    Where PyTorch finds no line there is none to lose or to move: such a line has ``gained`` alone.
    """
    numbers = {}
    for subject, result in {PYTORCH: report.reference, **report.runtimes, **report.perturbations}.items():
        present = [line for line, exact in zip(result.lines, report.reference.lines, strict=False) if exact["present"]]
        for metric in METRICS[:2] if result is report.reference else METRICS:
            lines = result.lines if metric == "gained" else present
            values = [abs(line[key]) for line in lines if (key := metric.removesuffix("_px")) in line]
            if values:
                numbers[f"{subject}/{metric}"] = max(values)
    return numbers


def replay_checks(report: ReplayReport, limits: Mapping[str, float], case: str = "") -> list[Check]:
    """A check for each limit; one for each target where the limit names none.

    Args:
        report: Of the recording.
        limits: From :func:`~.limits.read_numbers`.
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


def judge_replay(
    report: ReplayReport, limits: Mapping[str, float], budget: str = "", demanded: Collection[str] = ()
) -> Judgement:
    """Say whether a replay keeps to a budget; the main numbers of every target that no limit is for are told.

    Args:
        report: Of the recording.
        limits: From :func:`~.limits.read_numbers`, or the ``replay`` part of a budget.
        budget: Where the limits are from.
        demanded: Targets that somebody asked for by name: it counts that one could not be measured.
    """
    checks = replay_checks(report, limits)
    numbers, judged = replay_numbers(report), {check.key for check in checks}
    for subject in report.runtimes or report.perturbations:
        for metric in _TOLD:
            value = numbers.get(f"{subject}/{metric}", math.nan)
            if f"{subject}/{metric}" in judged or (math.isnan(value) and metric != _TOLD[0]):
                continue
            note = _absence(report, subject, metric) if math.isnan(value) else ""
            place = _farthest_frame(report, subject)
            checks.append(Check(subject, metric, value, place=place, note=note, demanded=subject in demanded))
    return Judgement("replay", tuple(checks), budget if limits else "")


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
    if metric != "gained" and not any(line["present"] for line in report.reference.lines):
        return "PyTorch finds no line in these frames"
    if result is report.reference and metric not in METRICS[:2]:
        return "PyTorch is what others are measured against"
    return _lack(metric)


def _lack(metric: str) -> str:
    """What a metric needs."""
    if metric.startswith(("known_", "guessed_")):
        return "`decode` gives no confidence, or there is no such point"
    if metric.endswith("_beyond_motion_px"):
        return "the picture was not moved, or the module has no `moved`"
    return "it needs a line in three consecutive frames and rows"


def _farthest_frame(report: ReplayReport, subject: str) -> str:
    """The frame in which the lines are farthest from the reference's."""
    result = _result(report, subject)
    if result is None or result is report.reference or result.columns is None or result.reference is None:
        return ""
    position = int(distances(result.columns, result.reference).argmax())
    return f"frame {report.frames[position]}"
