"""The verdict on a parity pass: tolerances, what violates them, and whether the model may be deployed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from lightning_robust.deployment.numerics.sensitivity import overflow_sentence
from lightning_robust.deployment.parity.result import ParityReport
from lightning_robust.deployment.parity.scale import unit_label

DEFAULT_TOLERANCES: dict[str, float] = {
    "torch-fp32": 1e-5,
    "torch-fp16": 5e-3,
    "torch-bf16": 4e-2,
    "onnxruntime-fp32": 1e-5,
    "emulated-tf32": 3e-3,
    "emulated-fp16": 5e-3,
    "emulated-bf16": 4e-2,
    "tensorrt-fp32": 1e-4,
    "tensorrt-fp16": 5e-3,
    "tensorrt-bf16": 4e-2,
    "tensorrt_rtx-fp32": 1e-4,
    "tensorrt_rtx-fp16": 5e-3,
}
"""Largest ``rel_l2`` of a sound model: about three times what small untrained networks show. Those of TensorRT are set
by the arithmetic, not by measurement. Set your own in the task's units."""
Level = Literal["good", "mind", "bad"]
_LARGE = 3.0  # a perturbation that moves the outputs this many times more than fp16 is worth a sentence


@dataclass(frozen=True)
class Verdict:
    """Whether a model may be deployed, in words.

    Args:
        level: ``"good"``, ``"mind"`` (read the exceptions) or ``"bad"`` (do not deploy).
        headline: One sentence.
        exceptions: One sentence each.
    """

    level: Level
    headline: str
    exceptions: tuple[str, ...]


class Violation(NamedTuple):
    """A number beyond its tolerance."""

    tag: str
    value: float
    limit: float

    def __str__(self) -> str:
        """One clause for a message."""
        return f"{self.tag} is {self.value:.3g}, allowed is {self.limit:.3g}"


def judge_parity(report: ParityReport, tolerance: Mapping[str, float] | None = None) -> Verdict:
    """Say whether the model may be deployed, at what distance, and with which exceptions.

    Args:
        report: A parity pass.
        tolerance: ``"<target>"`` (meaning ``rel_l2``) or ``"<target>/<metric>"`` -> largest allowed value; None takes
            :data:`DEFAULT_TOLERANCES`.
    """
    broken = violations(report.scalars(), tolerance)
    failed = [f"{name} failed: {t.note}" for name, t in report.targets.items() if t.status == "failed"]
    exceptions = tuple([f"{violation}." for violation in broken] + failed + _exception_sentences(report))
    worst = _worst_half(report)
    if worst is None:
        return Verdict("mind", "No half precision was measured: nothing can be said about deployment.", exceptions)
    name, distance = worst
    precision = name.rsplit("-", 1)[1]
    unit = unit_label(report.unit)
    if failed or _concerns(precision, broken):
        return Verdict("bad", f"Do not deploy as it is: {name} is {distance:.3g} {unit} away.", exceptions)
    headline = f"Safe at {precision} within {distance:.3g} {unit}{', except:' if exceptions else '.'}"
    return Verdict("mind" if exceptions else "good", headline, exceptions)


def violations(scalars: Mapping[str, float], tolerance: Mapping[str, float] | None = None) -> list[Violation]:
    """The numbers beyond their tolerance, NaN included.

    Args:
        scalars: Values by tag, from :meth:`~.result.ParityReport.scalars`.
        tolerance: As for :func:`judge_parity`.

    Example:
        >>> [str(violation) for violation in violations({"parity/emulated-fp16/rel_l2": 0.1})]
        ['parity/emulated-fp16/rel_l2 is 0.1, allowed is 0.005']
    """
    limits = DEFAULT_TOLERANCES if tolerance is None else tolerance
    tags = {f"parity/{key}" if "/" in key else f"parity/{key}/rel_l2": limit for key, limit in limits.items()}
    return [
        Violation(tag, scalars[tag], limit)
        for tag, limit in tags.items()
        if tag in scalars and not scalars[tag] <= limit
    ]


def _concerns(precision: str, broken: list[Violation]) -> bool:
    """Whether a violation concerns this precision or fp32; another half precision is another deployment."""
    return any(violation.tag.split("/")[1].endswith((f"-{precision}", "-fp32")) for violation in broken)


def _worst_half(report: ParityReport) -> tuple[str, float] | None:
    measured = {n: t.metrics[report.unit] for n, t in report.targets.items() if report.unit in t.metrics}
    for precision in ("-fp16", "-bf16"):
        half = {name: value for name, value in measured.items() if name.endswith(precision)}
        if half:
            return max(half.items(), key=lambda item: item[1])
    return None


def _exception_sentences(report: ParityReport) -> list[str]:
    """What a reader must know beside tolerances and failures."""
    count = len(report.findings)
    sentences = [
        overflow_sentence(report.layers) if report.layers else "",
        _preprocessing_sentence(report),
        f"{count} finding{'s' if count > 1 else ''} in the graph, see below." if count else "",
    ]
    built = [f"{name} was built only. {t.note}" for name, t in report.targets.items() if t.status == "built"]
    return [sentence for sentence in sentences if sentence] + built


def _preprocessing_sentence(report: ParityReport) -> str:
    """Names the worst perturbation, unless it moves the outputs about as much as fp16 does."""
    name = report.worst_perturbation()
    if name is None:
        return ""
    metrics = report.sensitivity[name]
    times = metrics.get("times_fp16")
    if times is not None and times < _LARGE:
        return ""
    comparison = f", {times:.3g} times what fp16 does" if times is not None else ""
    return f"Preprocessing {name} moves the outputs {metrics[report.unit]:.3g} {unit_label(report.unit)}{comparison}."
