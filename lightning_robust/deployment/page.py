"""One self-contained HTML page and one JSON file of a parity report, the verdict first.

Tables for a terminal and for loggers stand in ``report.py``, pictures in ``figures.py``.
"""

from __future__ import annotations

import dataclasses
import html
import importlib.metadata
import io
import json
import math
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

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
from lightning_robust.utilities.structures import jsonable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Level = Literal["good", "mind", "bad"]
_PACKAGES = (
    "lightning-robust",
    "torch",
    "lightning",
    "onnx",
    "onnxruntime",
    "tensorrt",
    "tensorrt-rtx-cu13",
    "polygraphy",
)
_LARGE = 3.0  # a perturbation that moves the outputs so many times more than fp16 is worth a sentence
_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #59636e; --line: #d1d9e0; --card: #f6f8fa; --page: #fff;
  --good: #1a7f37; --mind: #9a6700; --bad: #cf222e; --bar: #8a94a0; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #9198a1; --line: #3d444d; --card: #161b22;
  --page: #0d1117; --good: #3fb950; --mind: #d29922; --bad: #f85149; --bar: #6e7681; } figure { background: #fff; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); max-width: 1080px;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0 0 .2rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
p, li { max-width: 46rem; } .soft { color: var(--soft); }
.verdict { border-left: 6px solid; padding: .8rem 1.2rem; background: var(--card); margin: 1rem 0; }
.verdict strong { font-size: 1.15rem; } .verdict ul { margin: .5rem 0 0; padding-left: 1.2rem; }
.good { border-color: var(--good); } .mind { border-color: var(--mind); } .bad { border-color: var(--bad); }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem; text-align: right; border-bottom: 1px solid var(--line); }
th { font-weight: 600; color: var(--soft); } th:first-child, td:first-child { text-align: left; }
table.words td, table.words th { text-align: left; vertical-align: top; }
table.noted td:last-child, table.noted th:last-child { text-align: left; min-width: 14rem; }
table.moved td:nth-child(2), table.moved th:nth-child(2) { text-align: left; }
.bar { display: inline-block; height: .7em; background: var(--bar); border-radius: 2px; min-width: 1px; }
td.bars { width: 16rem; text-align: left; }
figure { margin: .5rem 0; } figure svg { max-width: 100%; height: auto; }
pre { background: var(--card); padding: .8rem; overflow-x: auto; font-size: .85rem; }
"""


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
    facts = {**dict(provenance or {}), **_versions()}
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
        f'<p class="soft">{report.samples} samples against {_text(report.reference)}, {report.seconds:.1f} s</p>',
        _verdict(verdict),
        "<h2>Distance of each target</h2>",
        _targets(report),
        *_causes(report, history),
        *_layers(report),
        *_perturbed(report),
        "<h2>What the graph will do on TensorRT</h2>",
        _table(*finding_rows(report), words=True) if report.findings else "<p>Nothing was found in the graph.</p>",
        *(["<h2>Notes</h2>", _list(list(report.notes))] if report.notes else []),
        "<h2>Provenance</h2>",
        _table(["what", "value"], [[key, value] for key, value in facts.items()], words=True),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Deployment parity</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>\n<body>\n'
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _targets(report: ParityReport) -> str:
    columns, rows = target_rows(report)
    told = []
    for row in rows:
        target = report.targets[row[0]]
        size = "-" if target.size is None else f"{target.size / 1e6:.2g}"
        told.append([*row, f"{target.seconds:.1f}", size, target.note])
    return _table([*columns, "s", "engine, MB", "note"], told, last_is_text=True)


def _verdict(verdict: Verdict) -> str:
    exceptions = _list(list(verdict.exceptions))
    return f'<div class="verdict {verdict.level}"><strong>{_text(verdict.headline)}</strong>{exceptions}</div>'


def _causes(report: ParityReport, history: Sequence[tuple[int, dict[str, float]]]) -> list[str]:
    if not report.attribution:
        return []
    passes = list(history) or [(0, report.attribution)]
    return ["<h2>Where the distance comes from</h2>", _svg(draw_causes(passes, report.unit))]


def _layers(report: ParityReport) -> list[str]:
    layers, keep = report.layers, report.keep
    if layers is None:
        return []
    unit = unit_label(report.unit)
    lines = [f"<h2>Which layers {layers.precision} hurts</h2>", _svg(draw_layers(layers, unit))]
    if not layers.complete:
        lines.append("<p>Time was up: bars in a lighter shade belong to blocks of nodes that were not taken apart.</p>")
    if keep is not None:
        lines += _keep(keep.nodes, keep_sentence(report))
    return lines


def _keep(nodes: Sequence[str], sentence: str) -> list[str]:
    listing = f"<pre>{_text(chr(10).join(nodes))}</pre>" if nodes else ""
    return ["<h2>Keep in fp32</h2>", f"<p>{_text(sentence)}</p>{listing}"]


def _perturbed(report: ParityReport) -> list[str]:
    if not report.sensitivity:
        return []
    columns, rows = perturbation_rows(report)
    largest = max((m[report.unit] for m in report.sensitivity.values() if math.isfinite(m[report.unit])), default=0.0)
    cells = []
    for row in rows:
        value = report.sensitivity[row[0]][report.unit]
        width = 100 * min(value / largest, 1.0) if largest > 0 else 0.0
        cells.append("".join(f"<td>{_text(cell)}</td>" for cell in row) + _bar(width))
    head = "".join(f"<th>{_text(column)}</th>" for column in [*columns, ""])
    body = "".join(f"<tr>{cell}</tr>" for cell in cells)
    table = f'<div class="wide"><table class="moved"><tr>{head}</tr>{body}</table></div>'
    return ["<h2>What another preprocessing does to the outputs</h2>", _list(family_sentences(report)), table]


def _bar(width: float) -> str:
    return f'<td class="bars"><span class="bar" style="width:{width:.1f}%"></span></td>'


def _table(
    columns: Sequence[str], rows: Sequence[Sequence[Any]], words: bool = False, last_is_text: bool = False
) -> str:
    head = "".join(f"<th>{_text(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    kind = ' class="words"' if words else ' class="noted"' if last_is_text else ""
    return f'<div class="wide"><table{kind}><tr>{head}</tr>{body}</table></div>'


def _list(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{_text(line)}</li>' for line in lines)}</ul>" if lines else ""


def _svg(figure: Figure) -> str:
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    text = stream.getvalue()
    return f"<figure>{text[text.index('<svg') :]}</figure>"


def _text(value: Any) -> str:
    return html.escape(str(value))


def _versions() -> dict[str, str]:
    facts = {
        "written": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
        "command": " ".join(sys.argv),
        "machine": platform.platform(),
    }
    facts["python"] = platform.python_version()
    for package in _PACKAGES:
        try:
            facts[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return facts
