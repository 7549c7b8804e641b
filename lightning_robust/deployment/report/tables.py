"""A parity report as a reader wants it: tables and one summary for the terminal. Pictures are in ``figures.py``."""

from __future__ import annotations

from lightning_robust.deployment.graph.export import Origin
from lightning_robust.deployment.parity.distance import DEFAULT_TOLERANCES
from lightning_robust.deployment.parity.measure import ParityReport
from lightning_robust.deployment.pixels.catalogue import CATALOGUE
from lightning_robust.deployment.report.figures import unit_label
from lightning_robust.tables import plain_table


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
        rows.append([name, *numbers, target.status if target.step is None else f"{target.status}, step {target.step}"])
    return ["target", *keys, "status"], rows


def perturbation_rows(report: ParityReport) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table of perturbations, the worst first."""
    ordered = sorted(report.sensitivity.items(), key=lambda item: -item[1][report.unit])
    rows = []
    for name, metrics in ordered:
        family = CATALOGUE[name].family if name in CATALOGUE else "-"
        times = f"{metrics['times_fp16']:.3g}" if "times_fp16" in metrics else "-"
        rows.append([name, family.replace("_", " "), f"{metrics[report.unit]:.3g}", times])
    return ["perturbation", "family", unit_label(report.unit), "times fp16"], rows


def family_sentences(report: ParityReport) -> list[str]:
    """The kinds of preprocessing that move the outputs, as a multiple of what fp16 does, the worst first.

    At most three; none where fp16 was not measured.
    """
    moved = list(report.families("times_fp16").items())[:3]
    unit = unit_label(report.unit)
    return [f"The {family.replace('_', ' ')} moves {unit} {times:.3g} times as far as fp16." for family, times in moved]


def finding_rows(report: ParityReport) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table of what the graph will do on TensorRT."""
    rows = [[f.rule, str(Origin(f.module, f.source)), f.what, f.consequence, f.remedy] for f in report.findings]
    return ["rule", "where", "what", "on TensorRT", "instead"], rows


def layer_rows(report: ParityReport, count: int = 20) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table of nodes, the most expensive in low precision first."""
    columns = ["node", "operator", "where", f"alone, {unit_label(report.unit)}", "drift", "overflow", "flushed"]
    if report.layers is None:
        return columns, []
    rows = []
    for n in report.layers.ranked()[:count]:
        cost = f"{n.isolated:.3g}" if n.exact else f"at most about {n.isolated:.3g}"
        shares = (f"{value:.3g}" for value in (n.trace.drift, n.trace.overflow, n.trace.flushed))
        rows.append([n.name, n.op, str(n.origin), cost, *shares])
    return columns, rows


def keep_rows(report: ParityReport) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table of nodes to keep in fp32, with what that is worth in the header."""
    keep = report.keep
    if keep is None:
        return ["keep in fp32"], []
    return [f"keep in fp32: {keep_sentence(report)}"], [[name] for name in keep.nodes]


def keep_sentence(report: ParityReport) -> str:
    """What keeping nodes in fp32 is worth."""
    keep = report.keep
    if keep is None or not keep.nodes:
        return "No node needs to be kept in fp32 for the tolerance."
    count = f"{len(keep.nodes)} node{'s' if len(keep.nodes) > 1 else ''}"
    outcome = "" if keep.met else "; the tolerance is not met"
    return (
        f"With {count} kept in fp32 the distance falls from {keep.total:.3g} to {keep.error:.3g} "
        f"{unit_label(keep.unit)} on {keep.samples} samples (aimed at: {keep.tolerance:.3g}{outcome})."
    )


def layer_sentences(report: ParityReport) -> list[str]:
    """Where the values first go wrong, which node costs most, and what to keep."""
    layers = report.layers
    if layers is None or not layers.nodes:
        return []
    worst, limit = layers.ranked()[0], DEFAULT_TOLERANCES[f"emulated-{layers.precision}"]
    first = layers.first_diverging(limit)
    lines = []
    if first is not None and first.trace.overflow > 0:
        share = f"{100 * first.trace.overflow:.2g} %"
        lines.append(
            f"{first.place} ({first.op}) is the first to overflow in {layers.precision}: {share} of its values."
        )
    elif first is not None:
        drift = f"{100 * first.trace.drift:.2g} %"
        lines.append(f"{first.place} ({first.op}) is the first whose values drift in {layers.precision}, by {drift}.")
    lines.append(
        f"What {layers.precision} hurts most: {worst.place} ({worst.op}), "
        f"{worst.isolated:.3g} {unit_label(report.unit)} alone."
    )
    partial = [] if layers.complete else ["Time was up before every layer was measured; the order is partial."]
    return [*lines, keep_sentence(report), *partial]


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
        lines += family_sentences(report)
    lines += ["", *layer_sentences(report)] if report.layers else []
    lines += ["", *(str(finding) for finding in report.findings)] if report.findings else []
    return "\n".join([*lines, *report.notes])
