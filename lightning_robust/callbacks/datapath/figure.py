"""The picture of a datapath. What it says in words and numbers is ``datapath_report.py``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from lightning_robust.callbacks.datapath.measure import Datapath, Paths
from lightning_robust.callbacks.datapath.report import summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import PatchCollection
    from matplotlib.figure import Figure

_CLEAN, _MOVED, _GREY = "#2166ac", "#c51b7d", "#8a8a8a"
_MOST_CELLS = 8
"""Channels of a group that are drawn in one layer."""
_LABELLED_LAYERS = 26
"""Up to so many layers, cells have room for numbers."""
_MOST_NAMES = 70


def draw(found: Datapath) -> Figure:
    """Depth from left to right: divergence above, the channels of both paths in the middle, their overlap below.

    In the middle each column is a layer, each cell a channel, darker the further it moves. Blue goes through the
    channels of the clean path, pink through those of the perturbed one; where both go through the same channels they
    lie on each other. At most eight channels of each kind are drawn for a layer, those that move most.
    """
    from matplotlib.figure import Figure

    count = len(found.layers)
    rows = 2 if found.paths is None else 3
    figure = Figure(figsize=(max(8.5, min(0.3 * count + 2.6, 40)), 3.2 + 2.4 * rows), layout="constrained")
    panels = figure.subplots(rows, 1, sharex=True, height_ratios=[1.2, 2.6, 1.1][:rows], squeeze=False)[:, 0]
    _draw_divergence(panels[0], found)
    _draw_paths(figure, panels[1], found)
    if found.paths is not None:
        _draw_overlaps(panels[2], found, found.paths)
    every = -(-count // _MOST_NAMES)
    shown = [i for i in range(count) if i % every == 0 or i == found.parting]
    panels[-1].set_xticks(shown, [_short(found.layers[i].name) for i in shown], rotation=60, ha="right", fontsize=7)
    for label in panels[-1].get_xticklabels():
        label.set_rotation_mode("anchor")
    panels[-1].set_xlim(-0.7, count - 0.3)
    wide = int(figure.get_figwidth() * 13)
    figure.suptitle(_wrapped(summary(found).replace("`", ""), wide), fontsize=9.5, x=0.01, ha="left")
    return figure


@dataclass(frozen=True)
class _Column:
    """The channels of a layer: on both paths, on the clean one alone, on the perturbed one alone."""

    place: int
    shared: list[int]
    clean: list[int]
    moved: list[int]

    def blocks(self) -> list[tuple[float, list[int]]]:
        """Bottom and channels, from the bottom up, of each kind."""
        ends = ((self.reach("clean")[0], self.shared), (self.reach("moved")[1], self.clean))
        blocks = (*ends, (self.reach("moved")[0], self.moved))
        return [(low, channels[:_MOST_CELLS]) for low, channels in blocks]

    def left_out(self) -> list[tuple[float, str]]:
        """Where to say how many channels of a kind are not drawn."""
        more = [len(each) - _MOST_CELLS for each in (self.clean, self.moved, self.shared)]
        ends = (self.reach("clean")[1] + 0.4, self.reach("moved")[0] - 0.4, self.reach("moved")[0] - 1.0)
        texts = (f"+{more[0]}", f"+{more[1]}", f"+{more[2]} both")
        return [(y, text) for y, text, count in zip(ends, texts, more, strict=True) if count > 0]

    def reach(self, side: str) -> tuple[float, float]:
        """Lowest and highest point of a path."""
        half = min(len(self.shared), _MOST_CELLS) / 2
        if side == "clean":
            return -half, half + min(len(self.clean), _MOST_CELLS)
        return -half - min(len(self.moved), _MOST_CELLS), half


def _columns(found: Datapath) -> list[_Column]:
    paths, columns = found.paths, []
    for place, layer in enumerate(found.layers):
        if paths is None:
            before, after = set(layer.active(found.share)), set(layer.carriers(found.share))
        elif place in paths.places:
            at = paths.places.index(place)
            before, after = (
                set(side.sets[at][paths.shown].nonzero().flatten().tolist()) for side in (paths.clean, paths.perturbed)
            )
        else:
            continue
        order = layer.moved.argsort(descending=True).tolist()
        kinds = (before & after, before - after, after - before)
        columns.append(_Column(place, *([channel for channel in order if channel in kind] for kind in kinds)))
    return columns


def _draw_divergence(axes: Axes, found: Datapath) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    curves = [([layer.relative for layer in found.layers], _MOVED, found.condition)]
    if found.controls is not None:
        curves.append((found.controls, _GREY, "noise of the same norm"))
    for values, colour, label in curves:
        drawn = [value if 0 < value < math.inf else math.nan for value in values]
        axes.plot(range(len(drawn)), drawn, color=colour, marker="o", ms=3, label=label)
    if found.start:
        axes.axhline(found.start, color=_GREY, linestyle=":", linewidth=1, label="of the inputs")
    if any(0 < value < math.inf for values, *_ in curves for value in values):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(10, (1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylabel("‖A(x') - A(x)‖ / ‖A(x)‖", fontsize=8)
    _mark(axes, found.parting, "parts", _MOVED)
    axes.grid(alpha=0.3)
    axes.tick_params(labelsize=7)
    axes.legend(fontsize=8, loc="best", frameon=False)


def _draw_paths(figure: Figure, axes: Axes, found: Datapath) -> None:
    columns = _columns(found)
    for side, colour in (("clean", _CLEAN), ("moved", _MOVED)):
        _draw_stream(axes, columns, side, colour)
    bar = figure.colorbar(_draw_cells(axes, found, columns), ax=axes, pad=0.01, fraction=0.03)
    bar.set_label("channel's move / layer's rms", fontsize=7)
    bar.ax.tick_params(labelsize=6)
    axes.set_yticks([])
    ends = [column.reach(side) for column in columns for side in ("clean", "moved")]
    axes.set_ylim(min((end[0] for end in ends), default=-1) - 1.6, max((end[1] for end in ends), default=1) + 1)
    _mark(axes, found.parting, "", _MOVED)
    axes.set_ylabel(_caption(found), fontsize=7.5)


def _draw_cells(axes: Axes, found: Datapath, columns: list[_Column]) -> PatchCollection:
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    places = [
        (column.place, low + row, channel, found.layers[column.place].levels[channel].item())
        for column in columns
        for low, channels in column.blocks()
        for row, channel in enumerate(channels)
    ]
    finite = sorted(level for *_, level in places if math.isfinite(level))
    top = (finite[int(0.97 * (len(finite) - 1))] if finite else 0.0) or 1.0
    rectangles = [Rectangle((x - 0.33, y + 0.06), 0.66, 0.88) for x, y, *_ in places]
    cells = PatchCollection(rectangles, cmap="YlOrBr", edgecolor="#555555", linewidth=0.4, zorder=3)
    cells.set_array([level if level <= top else top for *_, level in places])
    cells.set_clim(0, top)
    axes.add_collection(cells)
    if len(found.layers) > _LABELLED_LAYERS:
        return cells
    for x, y, channel, level in places:
        colour = "black" if level < 0.6 * top else "white"
        axes.text(x, y + 0.5, str(channel), fontsize=5.5, ha="center", va="center", zorder=4, color=colour)
    for column in columns:
        for y, text in column.left_out():
            axes.text(column.place, y, text, fontsize=5, ha="center", va="center", zorder=4)
    return cells


def _draw_stream(axes: Axes, columns: list[_Column], side: str, colour: str) -> None:
    """A band through the channels of one path."""
    xs, lows, highs = [], [], []
    for one, other in pairwise(columns):
        for step in range(12):
            t = step / 12
            ease = t * t * (3 - 2 * t)
            (low, high), (next_low, next_high) = one.reach(side), other.reach(side)
            xs.append(one.place + t * (other.place - one.place))
            lows.append(low + ease * (next_low - low))
            highs.append(high + ease * (next_high - high))
    if columns:
        low, high = columns[-1].reach(side)
        xs, lows, highs = [*xs, columns[-1].place], [*lows, low], [*highs, high]
    axes.fill_between(xs, lows, highs, color=colour, alpha=0.28, linewidth=0, zorder=1)
    for edge in (lows, highs):
        axes.plot(xs, edge, color=colour, linewidth=0.9, zorder=2)


def _draw_overlaps(axes: Axes, found: Datapath, paths: Paths) -> None:
    for name, label, colour, style in (
        ("pair", "perturbed and itself clean", "black", "-"),
        ("within", "two clean of a class", _GREY, "--"),
        ("own", "perturbed and its own class", _CLEAN, "-"),
        ("other", "perturbed and the wrong class", _MOVED, "-"),
    ):
        axes.plot(
            paths.places,
            [getattr(overlap, name) for overlap in paths.overlaps],
            color=colour,
            linestyle=style,
            marker="o",
            ms=2.5,
            linewidth=1.2,
            label=label,
        )
    _mark(axes, paths.diverging, "diverging", "black")
    _mark(axes, paths.merging, "merging", _MOVED, low=True)
    axes.set_ylim(0, 1.02)
    axes.set_ylabel("overlap of\ncritical channels", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=4, frameon=False, borderaxespad=0.1)


def _mark(axes: Axes, place: int | None, text: str, colour: str, *, low: bool = False) -> None:
    if place is None:
        return
    axes.axvline(place - 0.5, color=colour, linestyle=":", linewidth=1.3, zorder=0)
    height = 0.04 if low else 0.96
    transform = axes.get_xaxis_transform()
    axes.text(place - 0.45, height, text, transform=transform, color=colour, fontsize=8, va="bottom" if low else "top")


def _caption(found: Datapath) -> str:
    if found.paths is None:
        return f"channels with {found.share:.0%} of\nactivity (blue), difference (pink)"
    return "critical channels of one sample\nclean (blue), perturbed (pink)"


def _short(name: str) -> str:
    return name if len(name) <= 24 else "..." + name[-21:]


def _wrapped(text: str, width: int) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, max(width, 60)))
