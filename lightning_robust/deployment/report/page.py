"""A parity report as one self-contained HTML page, the verdict first, and as JSON."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_robust.deployment.parity.links import History
from lightning_robust.deployment.parity.result import Examination, ParityReport
from lightning_robust.deployment.parity.scale import unit_label
from lightning_robust.deployment.parity.verdict import Verdict, judge_parity
from lightning_robust.deployment.report.figures import draw_chain
from lightning_robust.deployment.report.latency_figure import draw_latency
from lightning_robust.deployment.report.layer_figure import draw_layers
from lightning_robust.deployment.report.layers import keep_sentence, unmeasured_sentence
from lightning_robust.deployment.report.tables import (
    chain_rows,
    engine_rows,
    finding_rows,
    perturbation_rows,
    target_rows,
)
from lightning_robust.pages import environment_facts, render, svg
from lightning_robust.structures import jsonable


def write_report(
    report: ParityReport,
    folder: str | Path,
    *,
    history: History = (),
    tolerance: Mapping[str, float] | None = None,
    provenance: Mapping[str, str] | None = None,
) -> Path:
    """Write ``parity.html``, ``parity.json`` and, where there are lists, ``keep_fp32.json`` and ``exclude_int8.json``.

    Args:
        report: A parity pass.
        folder: Created if it does not exist.
        history: ``(epoch, attribution)`` of each pass of the run.
        tolerance: As for :func:`~.verdict.judge_parity`.
        provenance: Further lines on where the model comes from, e.g. its checkpoint.

    Returns:
        The path of the page.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    facts = {**dict(provenance or {}), **environment_facts()}
    verdict = judge_parity(report, tolerance)
    content = {"verdict": dataclasses.asdict(verdict), **dataclasses.asdict(report), "provenance": facts}
    content["attribution"] = report.attribution
    content["history"] = [{"epoch": epoch, "attribution": attribution} for epoch, attribution in history]
    (folder / "parity.json").write_text(json.dumps(jsonable(content), indent=1) + "\n", encoding="utf-8")
    for keep in filter(None, (examined.keep for examined in report.examined)):
        keep.write(folder / f"{keep.setting}.json")
    path = folder / "parity.html"
    path.write_text(_render_page(report, verdict, history, facts), encoding="utf-8")
    return path


def _render_page(
    report: ParityReport,
    verdict: Verdict,
    history: History,
    facts: Mapping[str, str],
) -> str:
    passes = list(history) or [(0, report.attribution)]
    latencies = draw_latency(report)
    return render(
        __package__,
        "parity.html.j2",
        "Deployment parity",
        report=report,
        verdict=verdict,
        unit=unit_label(report.unit),
        moved_unit=unit_label(report.moved_unit),
        targets=_target_table(report),
        told=[f"{name}: {target.note}." for name, target in report.targets.items() if target.note],
        engines=engine_rows(report),
        latencies=latencies and svg(latencies),
        chain=chain_rows(report),
        links=svg(draw_chain(passes, report.unit)) if report.chain else None,
        examined=[_examined_part(each) for each in report.examined],
        perturbed=_perturbation_table(report),
        findings=finding_rows(report),
        facts=facts,
    )


def _examined_part(examined: Examination) -> dict[str, Any]:
    """What the page says of the layers in one precision."""
    layers, keep = examined.layers, examined.keep
    return {
        "precision": layers.precision,
        "figure": svg(draw_layers(layers, unit_label(layers.unit))),
        "unmeasured": unmeasured_sentence(layers),
        "keep": keep_sentence(examined),
        "nodes": keep.nodes if keep else (),
    }


def _target_table(report: ParityReport) -> tuple[list[str], list[list[str]]]:
    columns, rows = target_rows(report)
    for row, target in zip(rows, report.targets.values(), strict=True):
        row.append(f"{target.seconds:.1f}")
    return [*columns, "s"], rows


def _perturbation_table(report: ParityReport) -> dict[str, Any] | None:
    """The table of perturbations, each row with the width of its bar in per cent."""
    if not report.sensitivity:
        return None
    columns, rows = perturbation_rows(report)
    values = [report.moved(row[0]) for row in rows]
    largest = max(filter(math.isfinite, values), default=0.0)
    widths = [100 * min(value / largest, 1.0) if largest > 0 else 0.0 for value in values]
    return {"columns": columns, "rows": list(zip(rows, widths, strict=True))}
