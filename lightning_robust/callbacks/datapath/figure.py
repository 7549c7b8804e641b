"""The picture of a datapath: divergence over depth, the channels of both paths, the overlap of critical channels."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from lightning_robust.callbacks.datapath.measure import CARRIED_SHARE, Datapath
from lightning_robust.callbacks.datapath.paths import Paths
from lightning_robust.figures import use_plain_log_ticks
from lightning_robust.tables import shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import PatchCollection
    from matplotlib.figure import Figure

_CLEAN, _PERTURBED, _GREY = "#2166ac", "#c51b7d", "#8a8a8a"
_MOST_CELLS = 8
"""Channels of a kind that are drawn in one layer."""
_MOST_LABELLED_LAYERS = 26
"""With more layers, cells have no room for numbers."""
_MOST_NAMES = 70


def draw_datapath(result: Datapath, title: str) -> Figure:
    """Depth from left to right: divergence above, the channels of both paths in the middle, their overlap below.

    In the middle each column is a layer, each cell a channel, darker the further it moves. Blue goes through the
    channels of the clean path, pink through those of the perturbed one; where both go through the same channels they
    lie on each other. At most eight channels of each kind are drawn for a layer, those that move most.
    """
    from matplotlib.figure import Figure

    count, rows = len(result.layers), 2 if result.paths is None else 3
    figure = Figure(figsize=(max(8.5, min(0.3 * count + 2.6, 40)), 3.2 + 2.4 * rows), layout="constrained")
    panels = figure.subplots(rows, 1, sharex=True, height_ratios=[1.2, 2.6, 1.1][:rows], squeeze=False)[:, 0]
    _draw_divergence(panels[0], result)
    _draw_channels(panels[1], result)
    if result.paths is not None:
        _draw_overlaps(panels[2], result.paths)
    step = -(-count // _MOST_NAMES)
    shown = sorted({*range(0, count, step), *([] if result.parting is None else [result.parting])})
    names = [shorten(result.layers[i].name) for i in shown]
    panels[-1].set_xticks(shown, names, rotation=60, ha="right", rotation_mode="anchor", fontsize=7)
    panels[-1].set_xlim(-0.7, count - 0.3)
    lines = textwrap.wrap(title.replace("`", ""), max(int(figure.get_figwidth() * 13), 60))
    figure.suptitle("\n".join(lines), fontsize=9.5, x=0.01, ha="left")
    return figure


@dataclass(frozen=True)
class _Column:
    """The channels of a layer from the bottom up: of the perturbed path alone, of both, of the clean path alone.

    Args:
        place: The layer.
        clean: Lowest and highest point of the clean path.
        perturbed: Lowest and highest point of the perturbed path.
        cells: Bottom and channel of each cell.
        notes: Where to say how many channels are not drawn.
    """

    place: int
    clean: tuple[float, float]
    perturbed: tuple[float, float]
    cells: list[tuple[float, int]]
    notes: list[tuple[float, str]]


def _stack(place: int, order: Sequence[int], clean: set[int], perturbed: set[int]) -> _Column:
    """Place the channels of both paths, in this order within each kind."""
    kinds = [[c for c in order if c in kind] for kind in (clean & perturbed, clean - perturbed, perturbed - clean)]
    shared, only_clean, only_perturbed = (kind[:_MOST_CELLS] for kind in kinds)
    half = len(shared) / 2
    top, bottom = half + len(only_clean), -half - len(only_perturbed)
    blocks = ((-half, shared), (half, only_clean), (bottom, only_perturbed))
    cells = [(low + row, channel) for low, channels in blocks for row, channel in enumerate(channels)]
    hidden = [len(kind) - _MOST_CELLS for kind in kinds]
    notes = ((bottom - 1.0, hidden[0], " both"), (top + 0.4, hidden[1], ""), (bottom - 0.4, hidden[2], ""))
    texts = [(y, f"+{count}{kind}") for y, count, kind in notes if count > 0]
    return _Column(place, (-half, top), (bottom, half), cells, texts)


def _columns(result: Datapath) -> list[_Column]:
    """Critical channels of the sample that is shown, or without paths the channels that hold most of the energy."""
    orders = [layer.moved.argsort(descending=True).tolist() for layer in result.layers]
    paths = result.paths
    if paths is None:
        return [
            _stack(place, order, set(layer.active(CARRIED_SHARE)), set(layer.carriers(CARRIED_SHARE)))
            for place, (layer, order) in enumerate(zip(result.layers, orders, strict=True))
        ]
    clean, perturbed = (
        [set(channels[paths.shown].nonzero().flatten().tolist()) for channels in side.sets]
        for side in (paths.clean, paths.perturbed)
    )
    return [_stack(p, orders[p], c, d) for p, c, d in zip(paths.places, clean, perturbed, strict=True)]


def _draw_divergence(axes: Axes, result: Datapath) -> None:
    curves = [(result.values, _PERTURBED, result.condition)]
    if result.controls is not None:
        curves.append((result.controls, _GREY, "noise of the same norm"))
    drawable = False
    for values, colour, label in curves:
        points = [value if 0 < value < math.inf else math.nan for value in values]
        axes.plot(range(len(points)), points, color=colour, marker="o", ms=3, label=label)
        drawable |= not np.isnan(points).all()
    if result.start:
        axes.axhline(result.start, color=_GREY, linestyle=":", linewidth=1, label="of the inputs")
    if drawable:
        use_plain_log_ticks(axes, "y")
    axes.set_ylabel("‖A(x') - A(x)‖ / ‖A(x)‖", fontsize=8)
    _mark(axes, result.parting, "parts", _PERTURBED)
    axes.grid(alpha=0.3)
    axes.tick_params(labelsize=7)
    axes.legend(fontsize=8, loc="best", frameon=False)


def _draw_channels(axes: Axes, result: Datapath) -> None:
    columns = _columns(result)
    _draw_stream(axes, columns, "clean", _CLEAN)
    _draw_stream(axes, columns, "perturbed", _PERTURBED)
    bar = axes.figure.colorbar(_draw_cells(axes, result, columns), ax=axes, pad=0.01, fraction=0.03)
    bar.set_label("channel's move / layer's rms", fontsize=7)
    bar.ax.tick_params(labelsize=6)
    axes.set_yticks([])
    bottom = min((column.perturbed[0] for column in columns), default=-1.0)
    axes.set_ylim(bottom - 1.6, max((column.clean[1] for column in columns), default=1.0) + 1)
    _mark(axes, result.parting, "", _PERTURBED)
    caption = "critical channels of one sample\nclean (blue), perturbed (pink)"
    if result.paths is None:
        caption = f"channels with {CARRIED_SHARE:.0%} of\nactivity (blue), difference (pink)"
    axes.set_ylabel(caption, fontsize=7.5)


def _draw_cells(axes: Axes, result: Datapath, columns: Sequence[_Column]) -> PatchCollection:
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    cells = [(column.place, y, channel) for column in columns for y, channel in column.cells]
    levels = np.array([result.layers[place].levels[channel].item() for place, _, channel in cells])
    finite = levels[np.isfinite(levels)]
    top = (float(np.quantile(finite, 0.97, method="lower")) if finite.size else 0.0) or 1.0
    levels = np.where(levels <= top, levels, top)
    rectangles = [Rectangle((place - 0.33, y + 0.06), 0.66, 0.88) for place, y, _ in cells]
    patches = PatchCollection(rectangles, cmap="YlOrBr", edgecolor="#555555", linewidth=0.4, zorder=3)
    patches.set_array(levels)
    patches.set_clim(0, top)
    axes.add_collection(patches)
    if len(result.layers) <= _MOST_LABELLED_LAYERS:
        _label_cells(axes, cells, (levels >= 0.6 * top).tolist())
        for column in columns:
            for y, text in column.notes:
                axes.text(column.place, y, text, fontsize=5, ha="center", va="center", zorder=4)
    return patches


def _label_cells(axes: Axes, cells: Sequence[tuple[int, float, int]], dark: Sequence[bool]) -> None:
    for (x, y, channel), is_dark in zip(cells, dark, strict=True):
        colour = "white" if is_dark else "black"
        axes.text(x, y + 0.5, str(channel), fontsize=5.5, ha="center", va="center", zorder=4, color=colour)


def _draw_stream(axes: Axes, columns: Sequence[_Column], side: Literal["clean", "perturbed"], colour: str) -> None:
    """A band through the channels of one path, eased from column to column."""
    if not columns:
        return
    index = np.arange(len(columns))
    steps = np.linspace(0, len(columns) - 1, 12 * (len(columns) - 1) + 1)
    fraction = steps % 1
    eased = steps - fraction + fraction**2 * (3 - 2 * fraction)
    low, high = (np.interp(eased, index, edge) for edge in zip(*(getattr(c, side) for c in columns), strict=True))
    x = np.interp(steps, index, [column.place for column in columns])
    axes.fill_between(x, low, high, color=colour, alpha=0.28, linewidth=0, zorder=1)
    for edge in (low, high):
        axes.plot(x, edge, color=colour, linewidth=0.9, zorder=2)


def _draw_overlaps(axes: Axes, paths: Paths) -> None:
    for name, label, colour, style in (
        ("pair", "perturbed and itself clean", "black", "-"),
        ("within", "two clean of a class", _GREY, "--"),
        ("own", "perturbed and its own class", _CLEAN, "-"),
        ("other", "perturbed and the wrong class", _PERTURBED, "-"),
    ):
        values = [getattr(overlap, name) for overlap in paths.overlaps]
        axes.plot(paths.places, values, style, color=colour, marker="o", ms=2.5, linewidth=1.2, label=label)
    _mark(axes, paths.diverging, "diverging", "black")
    _mark(axes, paths.merging, "merging", _PERTURBED, low=True)
    axes.set_ylim(0, 1.02)
    axes.set_ylabel("overlap of\ncritical channels", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=4, frameon=False, borderaxespad=0.1)


def _mark(axes: Axes, place: int | None, text: str, colour: str, *, low: bool = False) -> None:
    """A dotted line before a layer, with its name."""
    if place is None:
        return
    axes.axvline(place - 0.5, color=colour, linestyle=":", linewidth=1.3, zorder=0)
    height, align = (0.04, "bottom") if low else (0.96, "top")
    axes.text(place - 0.45, height, text, transform=axes.get_xaxis_transform(), color=colour, fontsize=8, va=align)
