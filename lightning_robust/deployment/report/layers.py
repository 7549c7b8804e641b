"""What each layer costs in low precision and what to keep in fp32, as tables and as sentences."""

from __future__ import annotations

from lightning_robust.deployment.numerics.sensitivity import (
    NodeSensitivity,
    Sensitivity,
    first_divergence,
    overflow_sentence,
)
from lightning_robust.deployment.parity.result import ParityReport
from lightning_robust.deployment.parity.scale import unit_label


def layer_rows(report: ParityReport, count: int = 20) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table of nodes, the most expensive in low precision first."""
    columns = ["node", "operator", "where", f"alone, {unit_label(report.unit)}", "drift", "overflow", "flushed"]
    nodes = report.layers.ranked()[:count] if report.layers else []
    return columns, [_layer_row(node) for node in nodes]


def keep_rows(report: ParityReport) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table of nodes to keep in fp32; the header says what that gains."""
    keep = report.keep
    if keep is None:
        return ["keep in fp32"], []
    return [f"keep in fp32: {keep_sentence(report)}"], [[name] for name in keep.nodes]


def keep_sentence(report: ParityReport) -> str:
    """What keeping nodes in fp32 gains."""
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
    """Where the values first go wrong, which node costs most, and what to keep in fp32."""
    layers = report.layers
    if layers is None or not layers.nodes:
        return []
    worst = layers.ranked()[0]
    cost = (
        f"What {layers.precision} hurts most: {worst.place} ({worst.op}), "
        f"{worst.isolated:.3g} {unit_label(report.unit)} alone."
    )
    partial = "" if layers.complete else "Time was up before every layer was measured; the order is partial."
    sentences = [overflow_sentence(layers) or _drift_sentence(layers), cost, keep_sentence(report), partial]
    return [sentence for sentence in sentences if sentence]


def _layer_row(node: NodeSensitivity) -> list[str]:
    cost = f"{node.isolated:.3g}" if node.exact else f"at most about {node.isolated:.3g}"
    shares = (f"{value:.3g}" for value in (node.trace.drift, node.trace.overflow, node.trace.flushed))
    return [node.name, node.op, str(node.origin), cost, *shares]


def _drift_sentence(layers: Sensitivity) -> str:
    node = first_divergence(layers)
    if node is None:
        return ""
    drift = f"{100 * node.trace.drift:.2g} %"
    return f"{node.place} ({node.op}) is the first whose values drift in {layers.precision}, by {drift}."
