"""Figures of a parity pass: the links of the chain over the run, and the perturbations that move the outputs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lightning_robust.deployment.parity.attribution import fp16_metrics
from lightning_robust.deployment.parity.links import LINKS, History
from lightning_robust.deployment.parity.result import BEYOND, ParityReport
from lightning_robust.deployment.parity.scale import unit_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {
    "export": "#4c78a8",
    "tf32": "#72b7b2",
    "fp16": "#f58518",
    "bf16": "#eeca3b",
    "quantisation": "#54a24b",
    "preprocessing": "#b3b3b3",
}
_ENGINES = ("#e45756", "#a33a3f", "#ff9d98", "#6e2529", "#d67195")
_MOTION, _DEEP = "#dcdcdc", "#8a94a0"
_MOST_TICKS = 16
_MARGINS = {"left": 0.06, "right": 0.975, "bottom": 0.09, "top": 0.94}


def draw_parity(history: History, report: ParityReport) -> Figure:
    """Draw three panels: all links, those without preprocessing, and the perturbations of the last pass.

    Args:
        history: ``(epoch, attribution)`` of each pass so far.
        report: The last pass.
    """
    from matplotlib.figure import Figure

    # placed by hand: matplotlib's constrained layout takes longer than all else in a figure that each pass draws
    figure = Figure(figsize=(12, 5.6))
    grid = figure.add_gridspec(2, 2, width_ratios=[1, 1], hspace=0.3, wspace=0.36, **_MARGINS)
    upper, lower = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[1, 0])
    unit = unit_label(report.unit)
    _draw_links(upper, history, _measured_links(history), unit)
    upper.set_title("Each step from PyTorch to the deployed engine")
    _draw_links(lower, history, _measured_links(history, LINKS[:-1]), unit)
    lower.set_title("The same without preprocessing")
    lower.set_xlabel("epoch")
    _draw_perturbations(figure.add_subplot(grid[:, 1]), report, unit_label(report.moved_unit))
    return figure


def draw_chain(history: History, unit: str) -> Figure:
    """Draw the links over the passes, with preprocessing and without.

    Args:
        history: ``(epoch, attribution)`` of each pass.
        unit: The metric that the links are counted in.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, names, title in ((left, LINKS, "Each step of the chain"), (right, LINKS[:-1], "Without preprocessing")):
        _draw_links(axes, history, _measured_links(history, names), unit_label(unit))
        axes.set_title(title)
        axes.set_xlabel("epoch")
    return figure


def _measured_links(history: History, names: Sequence[str] = LINKS) -> list[str]:
    """The keys of the links of these names that any pass has, in the chain's order."""
    keys = dict.fromkeys(key for _, attribution in history for key in attribution)
    return [key for name in names for key in keys if key.split("/")[0] == name]


def _draw_links(axes: Axes, history: History, measured: Sequence[str], unit: str) -> None:
    """Bars side by side, never on top of each other: each is a distance of its own, and percentiles do not add."""
    engines = dict(zip((key for key in measured if key not in COLOURS), itertools.cycle(_ENGINES), strict=False))
    width = 0.8 / max(len(measured), 1)
    for index, link in enumerate(measured):
        offset = (index - (len(measured) - 1) / 2) * width
        values = [attribution.get(link, math.nan) for _, attribution in history]
        _draw_link(axes, link, values, offset, width, COLOURS.get(link) or engines[link])
    ticks = range(0, len(history), math.ceil(len(history) / _MOST_TICKS))
    axes.set_xticks(list(ticks), [str(history[tick][0]) for tick in ticks])
    axes.set_ylabel(unit, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    if measured:
        axes.legend(frameon=False, fontsize=8, loc="upper left", ncols=2)
        axes.margins(y=0.1 + 0.12 * math.ceil(len(measured) / 2))  # the legend stands above the bars


def _draw_link(axes: Axes, link: str, values: Sequence[float], offset: float, width: float, colour: str) -> None:
    label = "preprocessing (median what-if)" if link == "preprocessing" else link.replace("/", " ")
    positions = [place + offset for place in range(len(values))]
    axes.bar(positions, [_finite(value) for value in values], width, color=colour, label=label)
    for position, value in zip(positions, values, strict=True):
        if math.isinf(value):
            axes.text(position, 0.0, "\u221e", ha="center", va="bottom", fontsize=14, color=_ENGINES[0])


def _draw_perturbations(axes: Axes, report: ParityReport, unit: str) -> None:
    """Two bars for each: all of it, and in front what goes beyond the motion of the picture, with its interval."""
    names = sorted(report.sensitivity, key=lambda name: _finite(report.moved(name)))
    if not names:
        axes.axis("off")
        axes.text(0.5, 0.5, "no preprocessing was perturbed", ha="center", va="center")
        return
    everything = [_finite(report.sensitivity[name][report.moved_unit]) for name in names]
    beyond = [_finite(report.sensitivity[name].get(BEYOND, 0.0)) for name in names]
    axes.barh(names, everything, color=_MOTION, label="with the motion of the picture")
    axes.barh(names, beyond, 0.5, color=_DEEP, label="beyond it, 95 % interval")
    _draw_perturbation_intervals(axes, report, names)
    fp16 = fp16_metrics(report.targets).get(report.moved_unit)
    if fp16 and math.isfinite(fp16):
        axes.axvline(fp16, color=COLOURS["fp16"], linewidth=2, label=f"fp16: {fp16:.2g}")
    axes.legend(frameon=False, loc="lower right", fontsize=8)
    if min(everything) > 0:
        axes.set_xscale("log")
    for position, name in enumerate(names):
        value = max(everything[position], beyond[position], _upper(report, name))
        note = f"{_finite(report.moved(name)):.2g}"
        axes.annotate(note, (value, position), (4, 0), textcoords="offset points", va="center", fontsize=8)
    axes.margins(x=0.12)
    axes.set_ylim(-3.2, len(names) - 0.4)  # the legend stands below the bars
    axes.set_title("How far each preprocessing difference moves the outputs")
    axes.set_xlabel(unit)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_perturbation_intervals(axes: Axes, report: ParityReport, names: Sequence[str]) -> None:
    for position, name in enumerate(names):
        basis = report.basis.get(f"sensitivity/{name}/{BEYOND}")
        if basis is not None and math.isfinite(basis.high) and basis.low > 0:
            axes.plot([basis.low, basis.high], [position, position], color="#1b1f24", linewidth=1)


def _upper(report: ParityReport, name: str) -> float:
    basis = report.basis.get(f"sensitivity/{name}/{BEYOND}")
    return basis.high if basis is not None and math.isfinite(basis.high) else 0.0


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0
