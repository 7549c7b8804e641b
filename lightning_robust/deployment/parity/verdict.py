"""The verdict on a parity pass: whether the model may be deployed, and what that rests on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from lightning_robust.deployment.engines.base import HALF
from lightning_robust.deployment.numerics.sensitivity import overflow_sentence
from lightning_robust.deployment.parity.links import Basis
from lightning_robust.deployment.parity.result import BEYOND, ParityReport
from lightning_robust.deployment.parity.scale import unit_label
from lightning_robust.deployment.parity.tolerances import Violation, limits_by_tag, violations
from lightning_robust.deployment.pixels.catalogue import CATALOGUE, Perturbation
from lightning_robust.tables import short

Level = Literal["good", "mind", "bad"]
_WHAT_IFS = 3
_LOW = (*HALF, "int8")
_BOUNDS = ("emulated-fp16", "emulated-fp16acc")
_NOT_EXECUTED = ("emulated-", "torch-", "deployed-fp16", "deployed-bf16")
_FINGERPRINT = "Whether the deployed side does any of this: lightning-robust fingerprint training.npy deployed.npy"
_MEND = "Mend it on the deployed side; training can only lessen what goes beyond the motion."
_TRAIN = "Mend it on the deployed side, or train with it: augment with that difference, or switch on `adversarial`."


@dataclass(frozen=True)
class Verdict:
    """Whether a model may be deployed, in words.

    Args:
        level: ``"good"`` (the user's tolerance was met, with its interval, by an engine that was executed), ``"mind"``
            (read what was measured and what was not) or ``"bad"`` (do not deploy).
        headline: One sentence.
        exceptions: What was found to be wrong, one sentence each.
        measured: What was measured, on what, and what was not, one sentence each.
        what_ifs: What other preprocessing would do and what to do about it, as :func:`what_if_sentences` says.
    """

    level: Level
    headline: str
    exceptions: tuple[str, ...]
    measured: tuple[str, ...] = ()
    what_ifs: tuple[str, ...] = ()


def judge_parity(report: ParityReport, tolerance: Mapping[str, float] | None = None) -> Verdict:
    """Say whether the model may be deployed, at what distance, and what that rests on.

    Args:
        report: A parity pass.
        tolerance: ``"<target>"`` (meaning ``rel_l2``) or ``"<target>/<metric>"`` -> largest allowed value; None takes
            :data:`~.tolerances.DEFAULT_TOLERANCES`, which can find a model unsound, but none fit to deploy.
    """
    broken = violations(report.scalars(), tolerance)
    failed = [f"{name} failed: {t.note}" for name, t in report.targets.items() if t.status == "failed"]
    overflow = overflow_sentence(report.layers) if report.layers else ""
    exceptions = (*(f"{violation}." for violation in broken), *failed, *filter(None, [overflow]))
    worst = _worst_low(report)
    if worst is None:
        headline = "No low precision was measured: nothing can be said about deployment."
        return Verdict("mind", headline, exceptions, _measured_sentences(report), what_if_sentences(report))
    name, distance = worst
    if failed or _concerns(name.rsplit("-", 1)[1], broken):
        judged: tuple[Level, str] = "bad", f"Do not deploy as it is: {name} is {distance} away."
    else:
        judged = _judge_sound(report, tolerance, broken, name, distance)
    return Verdict(*judged, exceptions, _measured_sentences(report), what_if_sentences(report))


def what_if_sentences(report: ParityReport) -> tuple[str, ...]:
    """The perturbations that would move the outputs most, one of each family, and what to do about each.

    The last line names the command that tells whether the deployed side has any of them; empty without perturbations.
    """
    worst: dict[str, str] = {}
    for name in report.worst_first():
        worst.setdefault(CATALOGUE[name].family if name in CATALOGUE else name, name)
    lines = tuple(_what_if(report, name) for name in list(worst.values())[:_WHAT_IFS])
    return (*lines, _FINGERPRINT) if lines else ()


def _concerns(precision: str, broken: list[Violation]) -> bool:
    """Whether a violation concerns this precision or fp32; another half precision is another deployment."""
    return any(violation.tag.split("/")[1].endswith((f"-{precision}", "-fp32")) for violation in broken)


def _judge_sound(
    report: ParityReport, tolerance: Mapping[str, float] | None, broken: list[Violation], name: str, distance: str
) -> tuple[Level, str]:
    """Level and headline where the worst target is sound: good by the user's tolerances, all kept, and an engine."""
    unkept = _unkept(report, tolerance, broken)
    if unkept:
        return "mind", f"{name} is {distance} away; {unkept}."
    executed = _executed_limits(report, tolerance or {})
    uncertain = [tag for tag, limit in executed.items() if not _is_certain(report, tag, limit)]
    told = [f"{tag} is {_told(report, tag)}, allowed is {executed[tag]:.3g}" for tag in uncertain or executed]
    if uncertain:
        return "mind", f"{name} is {distance} away; {told[0]}: more samples are needed to be sure."
    if any(tag.split("/")[1].endswith(_LOW) for tag in executed):
        return "good", f"Within your tolerance, executed: {'; '.join(told)}."
    return "mind", f"{name} is {distance} away; no engine in low precision with a tolerance was executed."


def _unkept(report: ParityReport, tolerance: Mapping[str, float] | None, broken: list[Violation]) -> str:
    """Why the user's tolerances are not all kept, in a clause; empty where they are."""
    if not tolerance:
        return "no tolerance was set"
    if broken:
        return str(broken[0])
    scalars = report.scalars()
    lost = [tag for tag in limits_by_tag(tolerance) if tag not in scalars and _was_measured(report, tag.split("/")[1])]
    return f"{lost[0]} was not measured" if lost else ""


def _executed_limits(report: ParityReport, tolerance: Mapping[str, float]) -> dict[str, float]:
    """Tag -> limit, of the engines that were executed."""
    return {tag: limit for tag, limit in limits_by_tag(tolerance).items() if _executed(report, tag.split("/")[1])}


def _is_certain(report: ParityReport, tag: str, limit: float) -> bool:
    """Whether a number lies within its limit with its whole interval; one that has no interval counts by itself."""
    basis = report.basis.get(tag)
    return basis is None or math.isnan(basis.high) or max(abs(basis.low), abs(basis.high)) <= limit


def _executed(report: ParityReport, target: str) -> bool:
    return _was_measured(report, target) and not target.startswith(_NOT_EXECUTED)


def _was_measured(report: ParityReport, target: str) -> bool:
    result = report.targets.get(target)
    return result is not None and result.status == "measured"


def _told(report: ParityReport, tag: str) -> str:
    return with_interval(report.scalars()[tag], report.basis.get(tag))


def with_interval(value: float, basis: Basis | None) -> str:
    """A number and its interval for readers.

    Example:
        >>> with_interval(0.628, Basis(16, 0.41, 0.9)), with_interval(181.5, Basis(256, 105.4, 216.7))
        ('0.628 (0.41 to 0.9)', '182 (105 to 217)')
    """
    if basis is None or math.isnan(basis.low):
        return short(value, 3)
    return f"{short(value, 3)} ({short(basis.low, 2)} to {short(basis.high, 2)})"


def _worst_low(report: ParityReport) -> tuple[str, str] | None:
    """The target in low precision that is furthest away, half before int8 and executed before others; and how far."""
    measured = {n: t.metrics[report.unit] for n, t in report.targets.items() if report.unit in t.metrics}
    for precision in _LOW:
        half = {name: value for name, value in measured.items() if name.endswith(f"-{precision}")}
        if half:
            executed = [name for name in half if _executed(report, name)]
            name = max(executed or half, key=lambda name: (half[name] != half[name], half[name]))
            basis = report.basis.get(f"parity/{name}/{report.unit}")
            return name, f"{with_interval(half[name], basis)} {unit_label(report.unit)}"
    return None


def _measured_sentences(report: ParityReport) -> tuple[str, ...]:
    """What was measured, on what, and what was not."""
    by_status: dict[str, list[str]] = {}
    for name, target in report.targets.items():
        runs = "executed" if _executed(report, name) else name.split("-")[0]
        kind = runs if target.status == "measured" else target.status
        by_status.setdefault(kind, []).append(name)
    words = {
        "executed": "Executed",
        "emulated": "Emulated, not executed",
        "deployed": "The deployed file, emulated and not executed",
        "torch": "Executed by PyTorch, not by an engine",
        "built": "Built, not executed",
        "skipped": "Skipped, the time was up",
        "unavailable": "Not available here",
        "failed": "Failed",
    }
    of_weights = f", {report.weights}" if str(report.weights) else ""
    lines = [f"Measured against {report.reference} on up to {report.samples} samples{of_weights}."]
    lines += [f"{words[kind]}: {', '.join(by_status[kind])}." for kind in words if kind in by_status]
    lines += _bounds_sentence(report)
    count = len(report.sensitivity)
    tested = f"{count} what-ifs" if count else "not tested"
    lines.append(f"Preprocessing: {tested}; what the deployed side really feeds was not seen.")
    return tuple(lines)


def _bounds_sentence(report: ParityReport) -> list[str]:
    """Between which two numbers an engine's fp16 lies, where both ways to accumulate were emulated."""
    metrics = [report.targets[name].metrics for name in _BOUNDS if name in report.targets]
    values = [f"{each[report.unit]:.3g}" for each in metrics if report.unit in each]
    if len(values) < len(_BOUNDS):
        return []
    span = f"{values[0]} and {values[1]} {unit_label(report.unit)}"
    return [f"fp16 lies between {span}: with accumulators in fp32, and in fp16."]


def _what_if(report: ParityReport, name: str) -> str:
    """What one perturbation would do, and what to do about it."""
    metrics, unit, most = report.sensitivity[name], report.moved_unit, report.unit
    entry = CATALOGUE.get(name)
    what = f"If the deployed side {entry.description}" if entry else f"Under {name}"
    moved = f"the outputs move by {with_interval(metrics[unit], report.basis.get(f'sensitivity/{name}/{unit}'))} "
    moved += unit_label(unit) + (f", one point in a hundred by {metrics[most]:.3g}" if most != unit else "")
    beyond = f"; {metrics[BEYOND]:.3g} go beyond the motion of the picture" if _moves(entry, metrics) else ""
    remedy = _MEND if entry is not None and entry.motion is not None else _TRAIN
    return f"{what} ({name}), {moved}{beyond}. {remedy}"


def _moves(entry: Perturbation | None, metrics: Mapping[str, float]) -> bool:
    return entry is not None and entry.motion is not None and BEYOND in metrics
