"""Every case of a book replayed: the numbers of each, now and before, its checks and the picture of its worst frame."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_robust.complaints import one_line
from lightning_robust.deployment.replay.cases import Case
from lightning_robust.deployment.replay.judge import replay_checks, replay_numbers
from lightning_robust.deployment.replay.limits import read_numbers
from lightning_robust.deployment.replay.recording import Recording
from lightning_robust.deployment.replay.results import ReplayReport, worst
from lightning_robust.deployment.replay.scenes import draw_worst_frame
from lightning_robust.gate.check import EXIT_CODES, Check, Judgement, Outcome
from lightning_robust.json_values import jsonable
from lightning_robust.progress import Progress
from lightning_robust.reading import read_json

Measure = Callable[[Case, Recording], ReplayReport]
"""Replays the frames of a case."""
_SEVERITY = {"beyond": 0, "unmeasured": 1, "within": 2}
_QUALITY = 82  # of JPEG: a frame takes about 40 kB


@dataclass(frozen=True)
class ReplayedCase:
    """A case as one checkpoint does it.

    Args:
        numbers: From :func:`~.judge.replay_numbers`.
        picture: The worst frame as JPEG; empty without one.
        caption: What the picture shows.
        problem: Why there are no numbers.
    """

    numbers: Mapping[str, float] = field(default_factory=dict)
    picture: bytes = b""
    caption: str = ""
    problem: str = ""


@dataclass(frozen=True)
class CaseResult:
    """A case, what was measured now and before, and what its bounds say of it.

    Args:
        case: From the book.
        now: With the checkpoint that is judged.
        before: With another one, or as it stands in the file; None where nothing is known.
        checks: The bounds held against the numbers of now.
    """

    case: Case
    now: ReplayedCase
    before: ReplayedCase | None
    checks: tuple[Check, ...]

    @property
    def status(self) -> Outcome:
        """The outcome of its checks together."""
        return Judgement("replay", self.checks).status

    @property
    def load(self) -> float:
        """The largest share of a bound that a number takes."""
        return max((check.load for check in self.checks), default=-1.0)

    def check_before(self, check: Check) -> float | None:
        """The earlier number that belongs to a check; a name without a target is the largest of all targets."""
        numbers = {} if self.before is None else self.before.numbers
        return numbers.get(check.key, numbers.get(check.metric))


Earlier = Callable[[Case, str], ReplayedCase | None]
"""What was measured of a case before, drawn for the target or perturbation of this name."""


def run_cases(cases: Sequence[Case], measure: Measure, earlier: Earlier, batch_size: int = 16) -> list[CaseResult]:
    """Replay every case; one that cannot be read or measured says so, and the others go on.

    Args:
        cases: From :func:`~.cases.read_cases`.
        measure: With the checkpoint that is judged.
        earlier: What was measured before.
        batch_size: Frames at a time.

    Returns:
        What is beyond its bounds first, then what could not be measured, the nearest to its bounds first.
    """
    results = []
    with Progress("Replaying cases", len(cases)) as progress:
        for case in cases:
            results.append(_run_case(case, measure, earlier, batch_size))
            progress.advance(note=f"{case.name}: {results[-1].status}")
    return sorted(results, key=lambda result: (_SEVERITY[result.status], -result.load))


def measure_case(
    case: Case, measure: Measure, subject: str = "", batch_size: int = 16
) -> tuple[ReplayedCase, tuple[Check, ...]]:
    """One case with one checkpoint.

    Args:
        case: The case.
        measure: Replays its frames.
        subject: The target or perturbation to draw; by default the one that is nearest to its bounds or beyond.
        batch_size: Frames at a time.
    """
    try:
        recording = case.open(batch_size)
        report = measure(case, recording)
        return _with_picture(case, recording, report, subject)
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        problem = one_line(error)
        return ReplayedCase(problem=problem), tuple(_not_measured(case, problem))


def _with_picture(
    case: Case, recording: Recording, report: ReplayReport, subject: str
) -> tuple[ReplayedCase, tuple[Check, ...]]:
    """The numbers and checks of a case, and the frame in which the subject is farthest away."""
    checks = tuple(replay_checks(report, case.bounds, case.name))
    numbers = replay_numbers(report)
    drawn = subject if f"{subject}/p99_px" in numbers else _worst_subject(checks) or worst(report.runtimes) or ""
    frame = draw_worst_frame(report, recording, drawn)
    measured = ReplayedCase(numbers) if frame is None else ReplayedCase(numbers, _jpeg(frame.image), frame.caption)
    return measured, checks


def judge_cases(results: Sequence[CaseResult]) -> Judgement:
    """All cases together."""
    checks = tuple(check for result in results for check in result.checks)
    count = len(results)
    return Judgement("replay", checks, f"the bounds of {count} case{'s' if count > 1 else ''}")


def cases_json(results: Sequence[CaseResult]) -> dict[str, Any]:
    """All numbers, for ``json.dump``; what a later run takes as ``--before``."""
    cases = {result.case.name: _case_json(result) for result in results}
    return {"status": judge_cases(results).status, "exit": EXIT_CODES[judge_cases(results).status], "cases": cases}


def read_earlier(path: str | Path) -> dict[str, ReplayedCase]:
    """The cases in the JSON file of an earlier run, by name.

    Raises:
        ValueError: If it is no such file.
    """
    try:
        cases = read_json(path)["cases"]
        return {str(name): _from_json(name, content["now"]) for name, content in cases.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"Expected the cases.json of an earlier run at {path}, but got {one_line(error)}") from error


def _from_json(name: str, content: Mapping[str, Any]) -> ReplayedCase:
    numbers = {key: float(value) for key, value in content["numbers"].items()}
    finite = {key: value for key, value in numbers.items() if value < float("inf")}
    if finite:
        read_numbers(finite, f"cases.{name}.now.numbers")
    picture = base64.b64decode(content["picture"])
    return ReplayedCase(numbers, picture, str(content["caption"]), str(content["problem"]))


def _run_case(case: Case, measure: Measure, earlier: Earlier, batch_size: int) -> CaseResult:
    now, checks = measure_case(case, measure, batch_size=batch_size)
    return CaseResult(case, now, earlier(case, _worst_subject(checks)), checks)


def _not_measured(case: Case, problem: str) -> Iterator[Check]:
    for name, limit in case.bounds.items():
        subject, _, metric = name.rpartition("/")
        yield Check(subject or "any target", metric, float("nan"), limit, note=problem, case=case.name)


def _worst_subject(checks: Sequence[Check]) -> str:
    measured = [check for check in checks if check.status != "unmeasured"]
    return max(measured, key=lambda check: check.load).subject if measured else ""


def _jpeg(image: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "jpeg", quality=_QUALITY)
    return stream.getvalue()


def _case_json(result: CaseResult) -> dict[str, Any]:
    case = result.case
    checks = [
        {
            "name": check.key,
            "value": check.value,
            "limit": check.limit,
            "status": check.status,
            "place": check.place,
            "before": result.check_before(check),
        }
        for check in result.checks
    ]
    content = {
        "status": result.status,
        "why": case.why,
        "class": case.kind,
        "recording": str(case.recording),
        "window": dict(vars(case.window)),
        "checks": checks,
        "now": _measured_json(result.now),
        "before": None if result.before is None else _measured_json(result.before),
    }
    return dict(jsonable(content))


def _measured_json(measured: ReplayedCase) -> dict[str, Any]:
    picture = base64.b64encode(measured.picture).decode("ascii")
    return {**vars(measured), "numbers": dict(measured.numbers), "picture": picture}
