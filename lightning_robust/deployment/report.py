"""A parity report as a reader wants it: tables and one summary for the terminal. Pictures are in ``figures.py``."""

from __future__ import annotations

from lightning_robust.deployment.export import Origin
from lightning_robust.deployment.figures import unit_label
from lightning_robust.deployment.parity import ParityReport
from lightning_robust.utilities.tables import plain_table


def target_rows(report: ParityReport) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table target x metric."""
    wanted = ["rel_l2", "max_abs", "nonfinite", "flip_rate"]
    measured = [target.metrics for target in report.targets.values() if target.metrics]
    keys = [key for key in wanted if any(key in metrics for metrics in measured)]
    extra = dict.fromkeys(k for m in measured for k in m if k.endswith(("_p99", "_max", "_flips")) and k not in keys)
    keys += [key for key in extra if key != "p99_abs"]
    rows = []
    for name, target in report.targets.items():
        numbers = [f"{target.metrics[key]:.3g}" if key in target.metrics else "-" for key in keys]
        rows.append([name, *numbers, target.status])
    return ["target", *keys, "status"], rows


def perturbation_rows(report: ParityReport) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table of perturbations, the worst first."""
    ordered = sorted(report.sensitivity.items(), key=lambda item: -item[1][report.unit])
    rows = [[n, f"{m[report.unit]:.3g}", f"{m['times_fp16']:.3g}" if "times_fp16" in m else "-"] for n, m in ordered]
    return ["perturbation", unit_label(report.unit), "times fp16"], rows


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
    worst = report.worst_perturbation()
    if worst is not None:
        moved = report.sensitivity[worst]
        times = f", {moved['times_fp16']:.3g} times what fp16 does" if "times_fp16" in moved else ""
        lines += ["", plain_table(*perturbation_rows(report)), ""]
        lines.append(
            f"What moves the outputs most: {worst} ({moved[report.unit]:.3g} {unit_label(report.unit)}{times})"
        )
    lines += ["", *(str(finding) for finding in report.findings)] if report.findings else []
    return "\n".join([*lines, *report.notes])
