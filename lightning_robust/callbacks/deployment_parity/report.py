"""A parity pass for loggers: its scalars, figures and tables, and those of its layers."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from lightning_robust.callbacks.diagnostics import Report, Table
from lightning_robust.deployment.parity.links import History
from lightning_robust.deployment.parity.readout import PLAIN_UNIT
from lightning_robust.deployment.parity.result import ParityReport
from lightning_robust.deployment.pixels.words import label_of
from lightning_robust.deployment.report.figures import draw_chain, draw_families, draw_history, has_chain
from lightning_robust.deployment.report.layer_figure import draw_costs, draw_drift
from lightning_robust.deployment.report.layers import keep_rows, layer_rows
from lightning_robust.deployment.report.scenes import draw_scene
from lightning_robust.deployment.report.tables import (
    chain_rows,
    finding_rows,
    narrow,
    perturbation_rows,
    target_rows,
)
from lightning_robust.deployment.report.words import link_label

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PRECISIONS = {"fp16": "fp16(acc)?", "bf16": "bf16", "int8": "int8", "fp32 and TF32": "(fp32|tf32)"}
_FAMILIES = {
    "geometry": ("resize_filter", "shift", "crop"),
    "colour": ("channel_order", "color_matrix", "color_range", "gamma"),
    "values": ("gain_offset", "noise", "rounding", "compression"),
}


def charts(decoded: bool, targets: Sequence[str] = ()) -> dict[str, list[str]]:
    """The page of custom scalars: title of a chart -> its tags, of which each has about four.

    Args:
        decoded: Whether distances are in the task's unit.
        targets: Names of targets; of all precisions but int8 where none are given.
    """
    unit = r"(?!.*_guessed_)[^/]+_p99" if decoded else PLAIN_UNIT
    named = [title for title, end in _PRECISIONS.items() if any(re.search(f"-{end}$", name) for name in targets)]
    distances = {
        f"distance to PyTorch, {title}": [rf"^parity/[^/]+-{_PRECISIONS[title]}/{unit}$"]
        for title in named or [title for title in _PRECISIONS if title != "int8"]
    }
    what_ifs = {
        f"if the deployed side differed in {title}": [rf"^sensitivity/family/({'|'.join(names)})$"]
        for title, names in _FAMILIES.items()
    }
    return distances | what_ifs


def pass_report(report: ParityReport | None, history: History) -> Report:
    """Tables and figures of one pass; nothing on ranks that did not measure it."""
    if report is None:
        return Report()
    what_ifs = narrow(perturbation_rows(report))
    tables: dict[str, Table] = {
        "parity/targets": narrow(target_rows(report), 5),
        "parity/chain": _in_words(narrow(chain_rows(report)), [link_label(link.key) for link in report.chain]),
        "sensitivity/perturbations": _in_words(what_ifs, [label_of(row[0]) for row in what_ifs[1]]),
    }
    if report.findings:
        tables["parity/findings"] = narrow(finding_rows(report))
    return Report({}, tables, dict(_pass_figures(report, history)))


def _in_words(table: Table, words: Sequence[str]) -> Table:
    """A table with words for the names of its rows."""
    columns, rows = table
    return columns, [[word, *row[1:]] for word, row in zip(words, rows, strict=True)]


def _pass_figures(report: ParityReport, history: History) -> Iterator[tuple[str, Callable[[], Figure]]]:
    """What draws a figure, by tag; over the epochs once there are two."""
    if has_chain(report):
        yield "parity/chain", functools.partial(draw_chain, report)
    if has_chain(report) and len(history) > 1:
        yield "parity/over_epochs", functools.partial(draw_history, tuple(history), report.unit)
    for place, scene in enumerate(report.scenes, 1):
        yield f"parity/worst_pictures/{place}", functools.partial(draw_scene, scene)
    if report.sensitivity:
        yield "sensitivity/families", functools.partial(draw_families, report)


def layers_report(report: ParityReport) -> Report:
    """What each node costs in half precision and in int8; nothing where that was not measured."""
    figures: dict[str, Callable[[], Figure]] = {}
    tables: dict[str, Table] = {}
    for each in report.examined:
        int8 = each.layers.precision == "int8"
        name, drift = ("parity/layers_int8", "parity/drift_int8") if int8 else ("parity/layers", "parity/drift")
        figures[name] = functools.partial(draw_costs, each.layers)
        figures[drift] = functools.partial(draw_drift, each.layers)
        tables |= {
            name: narrow(layer_rows(each.layers)),
            f"parity/{'exclude_int8' if int8 else 'keep_fp32'}": keep_rows(each),
        }
    return Report(tables=tables, figures=figures)
