"""A parity report as one self-contained HTML page, the verdict first, and as JSON."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from lightning_robust.deployment.numerics.sensitivity import Sensitivity
from lightning_robust.deployment.parity.links import History
from lightning_robust.deployment.parity.result import Examination, ParityReport
from lightning_robust.deployment.parity.scale import unit_label
from lightning_robust.deployment.parity.verdict import Verdict, judge_parity
from lightning_robust.deployment.pixels.words import label_of, remedy_of
from lightning_robust.deployment.report.figures import draw_chain, draw_history, has_chain
from lightning_robust.deployment.report.latency_figure import draw_latency
from lightning_robust.deployment.report.layer_figure import draw_costs, draw_drift
from lightning_robust.deployment.report.layers import (
    keep_sentence,
    kept_places,
    layer_rows,
    layer_sentences,
    using_sentence,
)
from lightning_robust.deployment.report.scenes import draw_scene
from lightning_robust.deployment.report.tables import (
    Table,
    chain_rows,
    engine_rows,
    finding_rows,
    perturbation_rows,
    target_rows,
)
from lightning_robust.deployment.report.words import link_label, link_remedy
from lightning_robust.json_values import jsonable
from lightning_robust.pages import environment_facts, render, svg
from lightning_robust.tables import short

_NODES = 20  # in the table of the page
_IDLE = ("overflow", "flushed")


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
    given = {name: value for name, value in (provenance or {}).items() if value}
    facts = {**_facts(report), **given, **environment_facts()}
    verdict = judge_parity(report, tolerance)
    numbers = dataclasses.asdict(dataclasses.replace(report, scenes=()))
    content = {"verdict": dataclasses.asdict(verdict), **numbers, "provenance": facts}
    del content["scenes"]
    content |= {"attribution": report.attribution, "families": report.families()}
    content["history"] = [{"epoch": epoch, "attribution": attribution} for epoch, attribution in history]
    (folder / "parity.json").write_text(json.dumps(jsonable(content), indent=1) + "\n", encoding="utf-8")
    for of_before in ("keep_fp32.json", "exclude_int8.json"):
        (folder / of_before).unlink(missing_ok=True)
    for keep in filter(None, (examined.keep for examined in report.examined)):
        keep.write(folder / f"{keep.setting}.json")
    path = folder / "parity.html"
    path.write_text(_render_page(report, verdict, history, facts), encoding="utf-8")
    return path


def _facts(report: ParityReport) -> dict[str, str]:
    """Which weights were measured, of which model, on what."""
    weights = report.weights
    facts = {
        "epoch": "" if weights.epoch is None else str(weights.epoch),
        "step": "" if weights.step is None else str(weights.step),
        "checkpoint": weights.checkpoint,
        "weights (SHA-256)": weights.digest,
        **report.about,
        "samples": f"up to {report.samples}",
        "reference": report.reference,
        "pass": f"{short(report.seconds, 2)} s",
    }
    return {name: value for name, value in facts.items() if value}


def _render_page(
    report: ParityReport,
    verdict: Verdict,
    history: History,
    facts: Mapping[str, str],
) -> str:
    latencies = draw_latency(report)
    return render(
        __package__,
        "parity.html.j2",
        "Deployment parity",
        report=report,
        verdict=verdict,
        unit=unit_label(report.unit),
        moved_unit=unit_label(report.moved_unit),
        targets=target_rows(report),
        told=list(_notes_of_targets(report)),
        engines=engine_rows(report),
        latencies=latencies and svg(latencies),
        chain=_chain_table(report),
        links=list(_link_figures(report, history)),
        scenes=[svg(draw_scene(scene)) for scene in report.scenes],
        examined=[_examined_part(each) for each in report.examined],
        perturbed=_perturbation_table(report),
        findings=finding_rows(report),
        facts=facts,
    )


def _notes_of_targets(report: ParityReport) -> Iterator[str]:
    """What is to say of targets, those of which the same is to say together."""
    names: dict[str, list[str]] = {}
    for name, target in report.targets.items():
        if target.note:
            names.setdefault(target.note.rstrip("."), []).append(name)
    for note, those in names.items():
        yield f"{', '.join(those)}: {note}."


def _link_figures(report: ParityReport, history: History) -> Iterator[Markup]:
    """The links of this pass, and over the run where that has several."""
    if has_chain(report):
        yield svg(draw_chain(report))
    if has_chain(report) and len(history) > 1:
        yield svg(draw_history(history, report.unit))


def _chain_table(report: ParityReport) -> Table:
    """The links, in words and with what to do about each."""
    columns, rows = chain_rows(report)
    told = [
        [link_label(link.key), *row[1:4], f"{row[4]} \u2192 {row[5]}", link_remedy(report, link)]
        for row, link in zip(rows, report.chain, strict=True)
    ]
    return [*columns[:4], "between", "what to do"], told


def _examined_part(examined: Examination) -> dict[str, Any]:
    """What the page says of the layers in one precision."""
    layers, keep = examined.layers, examined.keep
    return {
        "precision": layers.precision,
        "samples": layers.samples,
        "figures": [svg(draw_costs(layers)), svg(draw_drift(layers))],
        "sentences": [line for line in layer_sentences(examined) if line != keep_sentence(examined)],
        "unit": unit_label(layers.unit),
        "nodes": _node_table(layers),
        "more": len(layers.nodes) - _NODES,
        "keep": keep_sentence(examined),
        "use": using_sentence(keep) if keep and keep.nodes else "",
        "kept": kept_places(keep, layers) if keep else [],
    }


def _node_table(layers: Sensitivity) -> Table:
    """The nodes that cost most, lines of code as code; without the columns in which all is zero."""
    columns, rows = layer_rows(layers, _NODES)
    shown = [
        place for place, column in enumerate(columns) if not (column in _IDLE and all(r[place] == "0" for r in rows))
    ]
    told = [[f"`{row[place]}`" if columns[place] == "line" else row[place] for place in shown] for row in rows]
    return [columns[place] for place in shown], told


def _perturbation_table(report: ParityReport) -> dict[str, Any] | None:
    """The table of perturbations in words, each row with the width of its bar in per cent, and what to do."""
    if not report.sensitivity:
        return None
    columns, rows = perturbation_rows(report)
    values = [report.moved(row[0]) for row in rows]
    largest = max(filter(math.isfinite, values), default=0.0)
    widths = [100 * min(value / largest, 1.0) if largest > 0 and value == value else 0.0 for value in values]
    told = [
        {"label": label_of(name), "cells": cells[:-1], "width": width, "name": name, "remedy": remedy_of(name)}
        for (name, *cells), width in zip(rows, widths, strict=True)
    ]
    return {"columns": columns[1:-1], "rows": told}
