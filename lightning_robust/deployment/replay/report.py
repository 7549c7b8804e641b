"""A replay as one table, for a terminal and for Markdown, and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lightning_robust.deployment.replay.results import ReplayReport, ReplayResult
from lightning_robust.json_values import jsonable
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
_PARTS = {"known_p99": "known p99 px", "p99_beyond_motion": "p99 beyond motion px"}
"""Columns that are shown where a module tells such parts."""
_PARTS_LEGEND = {
    "known_p99": "Known points are those whose confidence is at least a half.",
    "p99_beyond_motion": "Beyond motion: against where the right lines are in the moved picture.",
}
_LEGEND = (
    "Slashes divide the numbers of several lines. Swing is the mean movement from frame to frame less its trend, bend "
    "the mean second difference along the rows. Against PyTorch (for a perturbation: against PyTorch on training's "
    "pixels): the 99th percentile of the deviation, swing and bend of the deviation alone, points lost, frames "
    "in which the whole line is lost."
)


def replay_rows(report: ReplayReport) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table: PyTorch, the runtimes, then the perturbations, the worst first."""
    columns = _COLUMNS | {key: _PARTS[key] for key in _parts_of(report)}
    ordered = sorted(report.perturbations.items(), key=lambda item: -item[1].p99)
    alone = tuple({key: v for key, v in line.items() if key in ("swing", "bend")} for line in report.reference.lines)
    entries = [("torch-fp32", replace(report.reference, lines=alone)), *report.runtimes.items(), *ordered]
    return ["", *columns.values(), "status"], [_result_row(name, result, columns) for name, result in entries]


def replay_markdown(report: ReplayReport) -> str:
    """The report as one Markdown page."""
    legend = " ".join([_LEGEND, *(_PARTS_LEGEND[key] for key in _parts_of(report))])
    lines = ["# Replay", "", _replay_headline(report), "", markdown(*replay_rows(report)), "", legend]
    return "\n".join([*lines, *_remark_lines(report, "- ")]) + "\n"


def replay_summary(report: ReplayReport) -> str:
    """The report for a terminal."""
    return "\n".join([_replay_headline(report), "", plain_table(*replay_rows(report)), *_remark_lines(report, "")])


def replay_json(report: ReplayReport) -> dict[str, Any]:
    """All numbers, for ``json.dump``; infinite ones, where every point of the line is lost, as "inf"."""
    return {
        "value": report.value,
        "unit": "pixels of the module's frame",
        "frames": len(report.frames),
        "skipped": report.skipped,
        "seconds": report.seconds,
        "torch-fp32": _result_json(report.reference),
        "runtimes": {name: _result_json(result) for name, result in report.runtimes.items()},
        "perturbations": {name: _result_json(result) for name, result in report.perturbations.items()},
        "notes": list(report.notes),
    }


def _replay_headline(report: ReplayReport) -> str:
    count = len(report.frames)
    return (
        f"{count} frame{'s' if count != 1 else ''}, {len(report.skipped)} skipped, `{report.value}` in pixels of the "
        f"module's frame, {report.seconds:.1f} s"
    )


def _parts_of(report: ReplayReport) -> list[str]:
    """The parts that some result tells."""
    results = [*report.runtimes.values(), *report.perturbations.values()]
    return [key for key in _PARTS if any(key in line for result in results for line in result.lines)]


def _result_row(name: str, result: ReplayResult, columns: Mapping[str, str]) -> list[str]:
    return [name, *(_lines_cell(result, key, "%" in head) for key, head in columns.items()), result.status]


def _lines_cell(result: ReplayResult, key: str, percent: bool) -> str:
    numbers = [line.get(key) for line in result.lines]
    if all(number is None for number in numbers):
        return "-"
    return " / ".join("-" if n is None else f"{n * 100 if percent else n:.3g}" for n in numbers)


def _remark_lines(report: ReplayReport, mark: str) -> list[str]:
    """Why something was not measured, and what the reader should know, after an empty line."""
    results: Mapping[str, ReplayResult] = report.runtimes | report.perturbations
    reasons = [f"{name}: {r.note}" for name, r in results.items() if r.status != "measured" and r.note]
    remarks = [mark + line for line in [*reasons, *report.notes]]
    return ["", *remarks] if remarks else []


def _result_json(result: ReplayResult) -> dict[str, Any]:
    return {"status": result.status, "note": result.note, "seconds": result.seconds, "lines": jsonable(result.lines)}
