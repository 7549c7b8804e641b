"""Figures of a parity pass: the links of the chain now and over the run, and what other preprocessing would do."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lightning_robust.deployment.parity.attribution import fp16_metrics
from lightning_robust.deployment.parity.links import LINKS, Basis, History
from lightning_robust.deployment.parity.result import BEYOND, ParityReport
from lightning_robust.deployment.parity.scale import unit_label
from lightning_robust.deployment.pixels.catalogue import CATALOGUE
from lightning_robust.deployment.pixels.words import label_of
from lightning_robust.deployment.report.words import link_label
from lightning_robust.figures import FONT, GREY, add_legend, name_axes, panel, plain, use_plain_log_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {
    "export": "#4c78a8",
    "tf32": "#72b7b2",
    "fp16": "#f58518",
    "bf16": "#d4a72c",
    "quantisation": "#54a24b",
}
_ENGINES = ("#e45756", "#a33a3f", "#d67195", "#9d755d", "#b279a2")
_MARKERS = "osD^vPX*"
_LOST = "#e45756"
_MOST_TICKS = 8
_ROW, _FRAME = 0.3, 1.9  # inches
_ROOM = 3.0  # times, beside the values


def has_chain(report: ParityReport) -> bool:
    """Whether there is a link to draw, beside the hypothetical one."""
    return any(link.name != "preprocessing" for link in report.chain)


def draw_chain(report: ParityReport) -> Figure:
    """Draw the links of one pass, each a distance with its 95 % interval; what is hypothetical is left out.

    The axis is logarithmic: links lie decades apart, and do not add up.

    Args:
        report: A pass with a chain.
    """
    links = [link for link in report.chain if link.name != "preprocessing"][::-1]
    figure, axes = panel(_FRAME + _ROW * len(links), "Each step from PyTorch to the engine, with 95 % intervals")
    places = _above_zero([value for link in links for value in (link.value, *link.basis[1:])])
    engines = _engine_colours([link.key for link in links[::-1]])
    for row, link in enumerate(links):
        colour = COLOURS.get(link.key) or engines[link.key]
        _draw_interval(axes, row, link.basis, places, colour)
        _draw_value(axes, row, link.value, places, colour)
    _name_rows(axes, [link_label(link.key) for link in links])
    _scale_links(axes, "x", places)
    name_axes(axes, unit_label(report.unit))
    return figure


def draw_history(history: History, unit: str) -> Figure:
    """Draw the links over the passes of a run, a line for each; what is hypothetical is left out.

    Args:
        history: ``(epoch, attribution)`` of each pass.
        unit: The metric that the links are counted in.
    """
    figure, axes = panel(4.2, "Each step from PyTorch to the engine, over the epochs")
    keys = measured_links(history, LINKS[:-1])
    ends = _above_zero([value for key in keys for _, value in _points(history, key)])
    engines = _engine_colours(keys)
    for key, marker in zip(keys, itertools.cycle(_MARKERS), strict=False):
        _draw_line(axes, key, _points(history, key), ends, COLOURS.get(key) or engines[key], marker)
    _scale_links(axes, "y", ends)
    axes.set_xticks([epoch for epoch, _ in history[:: math.ceil(len(history) / _MOST_TICKS) or 1]])
    name_axes(axes, "epoch", unit_label(unit))
    if keys:
        add_legend(axes)
    return figure


def draw_families(report: ParityReport) -> Figure:
    """Draw what the worst perturbation of each family would do, all of it and what goes beyond the picture's motion.

    Args:
        report: A pass; the figure says so where no preprocessing was perturbed.
    """
    names = worst_of_families(report)[::-1]
    title = "If the deployed side preprocessed otherwise: the worst of each kind (hypothetical)"
    figure, axes = panel(_FRAME + 0.5 + _ROW * max(len(names), 4), title)
    if not names:
        axes.axis("off")
        axes.text(0.5, 0.5, "No preprocessing was perturbed.", ha="center", va="center", fontsize=FONT)
        return figure
    _draw_what_ifs(axes, report, names)
    fp16 = fp16_metrics(report.targets).get(report.moved_unit)
    if fp16 and math.isfinite(fp16):
        axes.axvline(fp16, color=COLOURS["fp16"], linewidth=2, label=f"fp16: {fp16:.2g}")
    _name_rows(axes, [label_of(name) for name in names])
    axes.set_xlim(left=0)
    name_axes(axes, unit_label(report.moved_unit))
    add_legend(axes)
    return figure


def worst_of_families(report: ParityReport) -> list[str]:
    """The perturbation of each family that moves the outputs most, the worst first; those of no family each."""
    worst: dict[str, str] = {}
    for name in report.worst_first():
        worst.setdefault(CATALOGUE[name].family if name in CATALOGUE else name, name)
    return list(worst.values())


def measured_links(history: History, names: Sequence[str] = LINKS) -> list[str]:
    """The keys of the links of these names that any pass has, in the chain's order."""
    keys = dict.fromkeys(key for _, attribution in history for key in attribution)
    return [key for name in names for key in keys if key.split("/")[0] == name]


def _points(history: History, key: str) -> list[tuple[int, float]]:
    """``(epoch, distance)`` of a link, of the passes that have it."""
    return [(epoch, links[key]) for epoch, links in history if key in links]


def _draw_line(
    axes: Axes, key: str, points: Sequence[tuple[int, float]], ends: tuple[float, float], colour: str, marker: str
) -> None:
    """A link over the epochs, with a sign where it is infinite or NaN."""
    finite = [(epoch, max(value, ends[0])) for epoch, value in points if math.isfinite(value)]
    epochs, values = [epoch for epoch, _ in finite], [value for _, value in finite]
    axes.plot(epochs, values, marker=marker, color=colour, label=link_label(key))
    for epoch in (epoch for epoch, value in points if not math.isfinite(value)):
        axes.text(epoch, ends[1], "\u221e", ha="center", va="bottom", fontsize=16, color=colour)


def _engine_colours(keys: Sequence[str]) -> dict[str, str]:
    return dict(zip((key for key in keys if key not in COLOURS), itertools.cycle(_ENGINES), strict=False))


def _above_zero(values: Sequence[float]) -> tuple[float, float]:
    """The ends of a logarithmic axis: the smallest and the largest of the positive finite values."""
    found = [value for value in values if 0 < value < math.inf]
    return (min(found), max(found)) if found else (1e-12, 1.0)


def _draw_interval(axes: Axes, row: int, basis: Basis, ends: tuple[float, float], colour: str) -> None:
    if math.isfinite(basis.high):
        low, high = (max(value, ends[0]) for value in (basis.low, basis.high))
        axes.plot([low, high], [row, row], color=colour, linewidth=3, alpha=0.45, solid_capstyle="round")


def _draw_value(axes: Axes, row: int, value: float, ends: tuple[float, float], colour: str) -> None:
    if math.isfinite(value):
        axes.plot(max(value, ends[0]), row, "o", color=colour, markersize=8)
        note = f"{value:.2g}"
    else:
        note = "lost: infinite or NaN"
        axes.plot(ends[1], row, "x", color=_LOST, markersize=9, markeredgewidth=2)
    place = max(value, ends[0]) if math.isfinite(value) else ends[1]
    axes.annotate(note, (place, row), (0, 7), textcoords="offset points", ha="center", fontsize=FONT - 1)


def _draw_what_ifs(axes: Axes, report: ParityReport, names: Sequence[str]) -> None:
    """Two bars for each: all of it, and in front what goes beyond the motion of the picture, with its interval."""
    everything = [_finite(report.sensitivity[name][report.moved_unit]) for name in names]
    beyond = [_finite(report.moved(name)) for name in names]
    if everything != beyond:
        axes.barh(range(len(names)), everything, color=GREY, alpha=0.35, label="with the motion of the picture")
    axes.barh(range(len(names)), beyond, 0.5, color=GREY, label="by the network alone")
    _draw_whiskers(axes, report, names)
    for row in (row for row, name in enumerate(names) if not math.isfinite(report.moved(name))):
        axes.text(0, row, "lost: infinite or NaN", va="center", fontsize=FONT, color=_LOST)


def _draw_whiskers(axes: Axes, report: ParityReport, names: Sequence[str]) -> None:
    label = "95 % interval"
    for row, name in enumerate(names):
        key = BEYOND if BEYOND in report.sensitivity[name] else report.moved_unit
        basis = report.basis.get(f"sensitivity/{name}/{key}")
        if basis is not None and math.isfinite(basis.high):
            axes.plot([basis.low, basis.high], [row, row], color="black", linewidth=1.5, label=label)
            label = "_"


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), [plain(name) for name in names], fontsize=FONT)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(-0.6, max(len(names), 1) - 0.3)


def _scale_links(axes: Axes, which: str, ends: tuple[float, float]) -> None:
    """A logarithmic axis a bit wider than its values."""
    decades = math.log10(ends[1] / ends[0])
    use_plain_log_ticks(axes, "x" if which == "x" else "y", (1,) if decades > 1 else (1, 2, 5))
    axes.set(**{f"{which}lim": (ends[0] / _ROOM, ends[1] * _ROOM)})


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0
