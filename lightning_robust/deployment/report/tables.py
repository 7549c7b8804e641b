"""A parity report as tables, and as one summary for a terminal."""

from __future__ import annotations

from collections.abc import Mapping

from lightning_robust.deployment.graph.export import Origin
from lightning_robust.deployment.parity.result import ParityReport
from lightning_robust.deployment.parity.scale import unit_label
from lightning_robust.deployment.pixels.catalogue import CATALOGUE
from lightning_robust.deployment.report.layers import layer_sentences
from lightning_robust.tables import plain_table


def target_rows(report: ParityReport) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table target x metric."""
    keys = _target_metrics(report)
    rows = []
    for name, target in report.targets.items():
        status = target.status if target.step is None else f"{target.status}, step {target.step}"
        rows.append([name, *(_format_metric(target.metrics, key) for key in keys), status])
    return ["target", *keys, "status"], rows


def perturbation_rows(report: ParityReport) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table of perturbations, the worst first."""
    rows = []
    for name, metrics in sorted(report.sensitivity.items(), key=lambda item: -item[1][report.unit]):
        family = CATALOGUE[name].family if name in CATALOGUE else "-"
        distances = (_format_metric(metrics, key) for key in (report.unit, "times_fp16"))
        rows.append([name, family.replace("_", " "), *distances])
    return ["perturbation", "family", unit_label(report.unit), "times fp16"], rows


def family_sentences(report: ParityReport) -> list[str]:
    """The kinds of preprocessing that move the outputs, as a multiple of what fp16 does, the worst first.

    At most three; none where fp16 was not measured.
    """
    worst = list(report.families("times_fp16").items())[:3]
    unit = unit_label(report.unit)
    return [f"The {family.replace('_', ' ')} moves {unit} {times:.3g} times as far as fp16." for family, times in worst]


def finding_rows(report: ParityReport) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table of what the graph will do on TensorRT."""
    rows = [[f.rule, str(Origin(f.module, f.source)), f.what, f.consequence, f.remedy] for f in report.findings]
    return ["rule", "where", "what", "on TensorRT", "instead"], rows


def summary(report: ParityReport) -> str:
    """The report for a terminal: both tables, what moves the outputs most, and what the graph will do on TensorRT."""
    lines = [
        f"Deployment parity, {report.samples} samples against {report.reference}, {report.seconds:.1f} s",
        "",
        plain_table(*target_rows(report)),
    ]
    lines += [f"{name}: {t.note}" for name, t in report.targets.items() if t.note and t.status != "measured"]
    lines += _perturbation_lines(report)
    lines += ["", *layer_sentences(report)] if report.layers else []
    lines += ["", *map(str, report.findings)] if report.findings else []
    return "\n".join([*lines, *report.notes])


def _target_metrics(report: ParityReport) -> list[str]:
    """The columns of the table of targets: the plain metrics that were measured, then those in the task's units."""
    measured = dict.fromkeys(key for target in report.targets.values() for key in target.metrics)
    plain = [key for key in ("rel_l2", "max_abs", "nonfinite", "flip_rate") if key in measured]
    decoded = [key for key in measured if key.endswith(("_p99", "_max", "_flips"))]
    return [*plain, *decoded]


def _format_metric(metrics: Mapping[str, float], key: str) -> str:
    return f"{metrics[key]:.3g}" if key in metrics else "-"


def _perturbation_lines(report: ParityReport) -> list[str]:
    name = report.worst_perturbation()
    if name is None:
        return []
    metrics = report.sensitivity[name]
    times = f", {metrics['times_fp16']:.3g} times what fp16 does" if "times_fp16" in metrics else ""
    worst = f"What moves the outputs most: {name} ({metrics[report.unit]:.3g} {unit_label(report.unit)}{times})"
    return ["", plain_table(*perturbation_rows(report)), "", worst, *family_sentences(report)]
