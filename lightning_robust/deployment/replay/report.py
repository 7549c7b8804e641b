"""A replay as a reader wants it: one table and one JSON. Pictures are in ``replay_pictures.py``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lightning_robust.deployment.replay.measure import Replayed, ReplayReport
from lightning_robust.structures import jsonable
from lightning_robust.tables import markdown, plain_table

_COLUMNS = {
    "swing": "swing px",
    "bend": "bend px",
    "p99": "p99 px",
    "swing_beyond": "swing beyond px",
    "bend_beyond": "bend beyond px",
    "lost": "lost %",
    "frames_lost": "frames lost %",
}
_LEGEND = (
    "Numbers of several lines are divided by slashes. Swing is the mean movement from frame to frame less its trend, "
    "bend the mean second difference along the rows. Against PyTorch (for a perturbation: against PyTorch on what "
    "training makes of the pixels): the 99th percentile of the deviation, swing and bend of the "
    "deviation alone, points lost, frames in which all of the line is lost."
)


def replay_rows(report: ReplayReport) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table: PyTorch, the runtimes, then the perturbations, the worst first."""
    ordered = sorted(report.perturbations.items(), key=lambda item: -item[1].p99)
    own = tuple({key: v for key, v in line.items() if key in ("swing", "bend")} for line in report.reference.lines)
    entries = [("torch-fp32", replace(report.reference, lines=own)), *report.runtimes.items(), *ordered]
    return ["", *_COLUMNS.values(), "status"], [_row(name, result) for name, result in entries]


def replay_markdown(report: ReplayReport) -> str:
    """The report as one Markdown page."""
    lines = ["# Replay", "", _headline(report), "", markdown(*replay_rows(report)), "", _LEGEND]
    return "\n".join([*lines, *_remarks(report, "- ")]) + "\n"


def replay_summary(report: ReplayReport) -> str:
    """The report for a terminal."""
    return "\n".join([_headline(report), "", plain_table(*replay_rows(report)), *_remarks(report, "")])


def replay_json(report: ReplayReport) -> dict[str, Any]:
    """All numbers, for ``json.dump``; infinite ones, where every point of the line is lost, as "inf"."""
    return {
        "value": report.value,
        "unit": "pixels of the module's frame",
        "frames": len(report.numbers),
        "skipped": report.skipped,
        "seconds": report.seconds,
        "torch-fp32": _plain(report.reference),
        "runtimes": {name: _plain(result) for name, result in report.runtimes.items()},
        "perturbations": {name: _plain(result) for name, result in report.perturbations.items()},
        "notes": list(report.notes),
    }


def _headline(report: ReplayReport) -> str:
    count = len(report.numbers)
    return (
        f"{count} frame{'s' if count != 1 else ''}, {len(report.skipped)} skipped, `{report.value}` in pixels of the "
        f"module's frame, {report.seconds:.1f} s"
    )


def _row(name: str, result: Replayed) -> list[str]:
    return [name, *(_cell(result, key, "%" in head) for key, head in _COLUMNS.items()), result.status]


def _cell(result: Replayed, key: str, percent: bool) -> str:
    numbers = [line.get(key) for line in result.lines]
    if all(number is None for number in numbers):
        return "-"
    return " / ".join("-" if n is None else f"{n * 100 if percent else n:.3g}" for n in numbers)


def _remarks(report: ReplayReport, mark: str) -> list[str]:
    """Why something was not measured, and what the reader should know, after an empty line."""
    results: Mapping[str, Replayed] = report.runtimes | report.perturbations
    reasons = [f"{name}: {r.note}" for name, r in results.items() if r.status != "measured" and r.note]
    remarks = [mark + line for line in [*reasons, *report.notes]]
    return ["", *remarks] if remarks else []


def _plain(result: Replayed) -> dict[str, Any]:
    return {"status": result.status, "note": result.note, "seconds": result.seconds, "lines": jsonable(result.lines)}
