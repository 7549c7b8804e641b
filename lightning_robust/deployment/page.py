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
from typing import Literal

from lightning_robust.deployment.compare import DEFAULT_TOLERANCES
from lightning_robust.deployment.figures import draw_causes, draw_layers, unit_label
from lightning_robust.deployment.parity import ParityReport
from lightning_robust.deployment.report import (
    family_sentences,
    finding_rows,
    keep_sentence,
    layer_sentences,
    perturbation_rows,
    target_rows,
)
from lightning_robust.utilities.html_page import bullets, document, svg, table, text, versions
from lightning_robust.utilities.structures import jsonable

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
    facts = {**dict(provenance or {}), **versions()}
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
    parts = [
        "<h1>Deployment parity</h1>",
        f'<p class="soft">{report.samples} samples against {text(report.reference)}, {report.seconds:.1f} s</p>',
        _verdict(verdict),
        "<h2>Distance of each target</h2>",
        _targets(report),
        *_causes(report, history),
        *_layers(report),
        *_perturbed(report),
        "<h2>What the graph will do on TensorRT</h2>",
        table(*finding_rows(report), words=True) if report.findings else "<p>Nothing was found in the graph.</p>",
        *(["<h2>Notes</h2>", bullets(list(report.notes))] if report.notes else []),
        "<h2>Provenance</h2>",
        table(["what", "value"], [[key, value] for key, value in facts.items()], words=True),
    ]
    return document("Deployment parity", parts)


def _targets(report: ParityReport) -> str:
    columns, rows = target_rows(report)
    told = []
    for row in rows:
        target = report.targets[row[0]]
        size = "-" if target.size is None else f"{target.size / 1e6:.2g}"
        told.append([*row, f"{target.seconds:.1f}", size, target.note])
    return table([*columns, "s", "engine, MB", "note"], told, last_is_text=True)


def _verdict(verdict: Verdict) -> str:
    exceptions = bullets(list(verdict.exceptions))
    return f'<div class="verdict {verdict.level}"><strong>{text(verdict.headline)}</strong>{exceptions}</div>'


def _causes(report: ParityReport, history: Sequence[tuple[int, dict[str, float]]]) -> list[str]:
    if not report.attribution:
        return []
    passes = list(history) or [(0, report.attribution)]
    return ["<h2>Where the distance comes from</h2>", svg(draw_causes(passes, report.unit))]


def _layers(report: ParityReport) -> list[str]:
    layers, keep = report.layers, report.keep
    if layers is None:
        return []
    unit = unit_label(report.unit)
    lines = [f"<h2>Which layers {layers.precision} hurts</h2>", svg(draw_layers(layers, unit))]
    if not layers.complete:
        lines.append("<p>Time was up: bars in a lighter shade belong to blocks of nodes that were not taken apart.</p>")
    if keep is not None:
        lines += _keep(keep.nodes, keep_sentence(report))
    return lines


def _keep(nodes: Sequence[str], sentence: str) -> list[str]:
    listing = f"<pre>{text(chr(10).join(nodes))}</pre>" if nodes else ""
    return ["<h2>Keep in fp32</h2>", f"<p>{text(sentence)}</p>{listing}"]


def _perturbed(report: ParityReport) -> list[str]:
    if not report.sensitivity:
        return []
    columns, rows = perturbation_rows(report)
    largest = max((m[report.unit] for m in report.sensitivity.values() if math.isfinite(m[report.unit])), default=0.0)
    cells = []
    for row in rows:
        value = report.sensitivity[row[0]][report.unit]
        width = 100 * min(value / largest, 1.0) if largest > 0 else 0.0
        cells.append("".join(f"<td>{text(cell)}</td>" for cell in row) + _bar(width))
    head = "".join(f"<th>{text(column)}</th>" for column in [*columns, ""])
    body = "".join(f"<tr>{cell}</tr>" for cell in cells)
    table = f'<div class="wide"><table class="moved"><tr>{head}</tr>{body}</table></div>'
    return ["<h2>What another preprocessing does to the outputs</h2>", bullets(family_sentences(report)), table]


def _bar(width: float) -> str:
    return f'<td class="bars"><span class="bar" style="width:{width:.1f}%"></span></td>'
