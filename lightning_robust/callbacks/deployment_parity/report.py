"""A parity pass for loggers: its scalars, figures and tables, and those of its layers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from lightning_robust.callbacks.diagnostics import Report, Table
from lightning_robust.deployment.parity.links import History
from lightning_robust.deployment.parity.result import ParityReport
from lightning_robust.deployment.parity.scale import unit_label
from lightning_robust.deployment.report.figures import draw_parity
from lightning_robust.deployment.report.layer_figure import draw_layers
from lightning_robust.deployment.report.layers import keep_rows, layer_rows
from lightning_robust.deployment.report.tables import (
    chain_rows,
    finding_rows,
    perturbation_rows,
    target_rows,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHARTS = {
    "distance to PyTorch": [r"parity/.*/rel_l2"],
    "attribution": [r"attribution/[a-z0-9]+$"],
    "preprocessing, as a multiple of fp16": [r"sensitivity/.*/times_fp16"],
}
"""The page of custom scalars: title -> tags."""


def pass_report(scalars: Mapping[str, float], report: ParityReport | None, history: History) -> Report:
    """One pass; the numbers alone on ranks that did not measure it."""
    if report is None:
        return Report(scalars)
    tables: dict[str, Table] = {
        "parity/targets": target_rows(report),
        "parity/chain": chain_rows(report),
        "sensitivity/perturbations": perturbation_rows(report),
    }
    if report.findings:
        tables["parity/findings"] = finding_rows(report)
    return Report(scalars, tables, {"parity/overview": functools.partial(draw_parity, history, report)})


def layers_report(report: ParityReport) -> Report:
    """What each node costs in half precision and in int8; nothing where that was not measured."""
    figures: dict[str, Callable[[], Figure]] = {}
    tables: dict[str, Table] = {}
    for each in report.examined:
        int8 = each.layers.precision == "int8"
        name = "parity/layers_int8" if int8 else "parity/layers"
        figures[name] = functools.partial(draw_layers, each.layers, unit_label(each.layers.unit))
        tables |= {name: layer_rows(each.layers), f"parity/{'exclude_int8' if int8 else 'keep_fp32'}": keep_rows(each)}
    return Report(tables=tables, figures=figures)
