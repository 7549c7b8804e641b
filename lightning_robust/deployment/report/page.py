"""One self-contained HTML page and one JSON file of a parity report, the verdict first.

Tables for a terminal and for loggers stand in ``report.py``, pictures in ``figures.py``.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lightning_robust.deployment.parity.distance import DEFAULT_TOLERANCES
from lightning_robust.deployment.parity.measure import ParityReport
from lightning_robust.deployment.report.figures import draw_causes, draw_layers, unit_label
from lightning_robust.deployment.report.tables import (
    family_sentences,
    finding_rows,
    keep_sentence,
    layer_sentences,
    perturbation_rows,
    target_rows,
)
from lightning_robust.pages import environment_facts, render, svg
from lightning_robust.structures import jsonable

Level = Literal["good", "mind", "bad"]
_LARGE = 3.0  # a perturbation that moves the outputs so many times more than fp16 is worth a sentence


@dataclass(frozen=True)
class Verdict:
    """The page's first lines.

    Args:
        level: ``"good"``, ``"mind"`` (read the exceptions) or ``"bad"`` (do not deploy).
        headline: One sentence.
        exceptions: One sentence each.
    """

    level: Level
    headline: str
    exceptions: tuple[str, ...]


def judge(report: ParityReport, tolerance: Mapping[str, float] | None = None) -> Verdict:
    """Say whether the model may be deployed, in what distance, and except for what.

    Args:
        report: A parity pass.
        tolerance: ``"<target>"`` (meaning ``rel_l2``) or ``"<target>/<metric>"`` -> largest allowed value; the default
            is :data:`~.compare.DEFAULT_TOLERANCES`.
    """
    broken = violations(report.scalars(), DEFAULT_TOLERANCES if tolerance is None else tolerance)
    failed = [f"{name} failed: {t.note}" for name, t in report.targets.items() if t.status == "failed"]
    exceptions = [f"{tag} is {value:.3g}, allowed is {limit:.3g}." for tag, value, limit in broken] + failed
    overflowing = [line for line in layer_sentences(report) if "overflow" in line]
    exceptions += [*overflowing, *_preprocessing(report), *_found(report)]
    exceptions += [f"{name} was built only. {t.note}" for name, t in report.targets.items() if t.status == "built"]
    worst = _worst_half(report)
    if worst is None:
        headline = "No half precision was measured: nothing can be said about deployment."
        return Verdict("mind", headline, tuple(exceptions))
    name, distance = worst
    precision = name.rsplit("-", 1)[1]
    unit = unit_label(report.unit)
    # another half precision is another deployment
    if any(tag.split("/")[1].endswith((f"-{precision}", "-fp32")) for tag, _, _ in broken) or failed:
        return Verdict("bad", f"Do not deploy as it is: {name} is {distance:.3g} {unit} away.", tuple(exceptions))
    headline = f"Safe at {precision} within {distance:.3g} {unit}{', except:' if exceptions else '.'}"
    return Verdict("mind" if exceptions else "good", headline, tuple(exceptions))


def violations(scalars: Mapping[str, float], tolerance: Mapping[str, float]) -> list[tuple[str, float, float]]:
    """What lies beyond a tolerance: ``(tag, value, limit)``.

    Args:
        scalars: Values by tag, from :meth:`~.parity.ParityReport.scalars`.
        tolerance: As for :func:`judge`.

    Example:
        >>> violations({"parity/emulated-fp16/rel_l2": 0.1}, {"emulated-fp16": 5e-3})
        [('parity/emulated-fp16/rel_l2', 0.1, 0.005)]
    """
    tags = {f"parity/{key}" if "/" in key else f"parity/{key}/rel_l2": limit for key, limit in tolerance.items()}
    return [(tag, scalars[tag], limit) for tag, limit in tags.items() if tag in scalars and not scalars[tag] <= limit]


def write_report(
    report: ParityReport,
    folder: str | Path,
    *,
    history: Sequence[tuple[int, dict[str, float]]] = (),
    tolerance: Mapping[str, float] | None = None,
    provenance: Mapping[str, str] | None = None,
) -> Path:
    """Write ``parity.html``, ``parity.json`` and, where there is a list, ``keep_fp32.json``.

    Args:
        report: A parity pass.
        folder: Made if it is not there.
        history: ``(epoch, attribution)`` of each pass of the run.
        tolerance: As for :func:`judge`.
        provenance: Further lines on where the model comes from, e.g. its checkpoint.

    Returns:
        The path of the page.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    facts = {**dict(provenance or {}), **environment_facts()}
    verdict = judge(report, tolerance)
    content = {"verdict": dataclasses.asdict(verdict), **dataclasses.asdict(report), "provenance": facts}
    content["history"] = [{"epoch": epoch, "attribution": shares} for epoch, shares in history]
    (folder / "parity.json").write_text(json.dumps(jsonable(content), indent=1) + "\n", encoding="utf-8")
    if report.keep is not None:
        report.keep.write(folder / "keep_fp32.json")
    path = folder / "parity.html"
    path.write_text(_page(report, verdict, history, facts), encoding="utf-8")
    return path


def _worst_half(report: ParityReport) -> tuple[str, float] | None:
    measured = {n: t.metrics[report.unit] for n, t in report.targets.items() if report.unit in t.metrics}
    for precision in ("-fp16", "-bf16"):
        half = {name: value for name, value in measured.items() if name.endswith(precision)}
        if half:
            return max(half.items(), key=lambda item: item[1])
    return None


def _preprocessing(report: ParityReport) -> list[str]:
    name = report.worst_perturbation()
    if name is None:
        return []
    moved = report.sensitivity[name]
    times = moved.get("times_fp16")
    if times is not None and times < _LARGE:
        return []
    told = f", {times:.3g} times what fp16 does" if times is not None else ""
    return [f"Preprocessing {name} moves the outputs {moved[report.unit]:.3g} {unit_label(report.unit)}{told}."]


def _found(report: ParityReport) -> list[str]:
    count = len(report.findings)
    return [f"{count} finding{'s' if count > 1 else ''} in the graph, see below."] if count else []


def _page(
    report: ParityReport,
    verdict: Verdict,
    history: Sequence[tuple[int, dict[str, float]]],
    facts: Mapping[str, str],
) -> str:
    passes = list(history) or [(0, report.attribution)]
    return render(
        __package__,
        "parity.html.j2",
        "Deployment parity",
        report=report,
        verdict=verdict,
        targets=_targets(report),
        causes=svg(draw_causes(passes, report.unit)) if report.attribution else None,
        layers=report.layers and svg(draw_layers(report.layers, unit_label(report.unit))),
        keep=report.keep and keep_sentence(report),
        families=family_sentences(report),
        perturbed=_perturbed(report),
        findings=finding_rows(report),
        facts=facts,
    )


def _targets(report: ParityReport) -> tuple[list[str], list[list[str]]]:
    columns, rows = target_rows(report)
    noted = []
    for row in rows:
        target = report.targets[row[0]]
        size = "-" if target.size is None else f"{target.size / 1e6:.2g}"
        noted.append([*row, f"{target.seconds:.1f}", size, target.note])
    return [*columns, "s", "engine, MB", "note"], noted


def _perturbed(report: ParityReport) -> dict[str, Any] | None:
    """The table of perturbations, each row with the width of its bar in per cent."""
    if not report.sensitivity:
        return None
    columns, rows = perturbation_rows(report)
    values = [report.sensitivity[row[0]][report.unit] for row in rows]
    largest = max(filter(math.isfinite, values), default=0.0)
    widths = [100 * min(value / largest, 1.0) if largest > 0 else 0.0 for value in values]
    return {"columns": columns, "rows": list(zip(rows, widths, strict=True))}
