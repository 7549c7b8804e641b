"""The figures of a datapath: how far each layer moves, which channels do, and which channels a prediction rests on."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_robust.callbacks.datapath.measure import Datapath
from lightning_robust.callbacks.datapath.paths import Paths
from lightning_robust.callbacks.datapath.words import condition_words, judge, tell_channels, tell_paths
from lightning_robust.callbacks.layer_panel import layer_panel
from lightning_robust.figures import FONT, add_legend, use_plain_log_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOVED, _NOISE, _CLEAN, _DARK = "#f58518", "#8a94a0", "#4c78a8", "#1b1f24"
_MOST_CHANNELS = 6
_MOST_LAYERS = 24


def datapath_figures(result: Datapath) -> dict[str, Callable[[], Figure]]:
    """What draws each figure, by the end of its tag: none where nothing changes, that of paths for classifiers."""
    if not any(result.values):
        return {}
    figures: dict[str, Callable[[], Figure]] = {
        "growth": functools.partial(draw_growth, result),
        "channels": functools.partial(draw_channels, result),
    }
    if result.paths is not None:
        figures["paths"] = functools.partial(draw_paths, result, result.paths)
    return figures


def draw_growth(result: Datapath) -> Figure:
    """How far each layer's activations move, beside noise of the same size, and as far as the inputs did.

    Right of the dotted line the network makes the perturbation larger, left of it smaller. A ring marks the layer from
    which on clean and perturbed part, if there is one.
    """
    figure, axes = layer_panel([layer.name for layer in result.layers], judge(result))
    drawn = [_draw_curve(axes, result.values, _MOVED, "o", f"under {condition_words(result.condition)}")]
    if result.controls is not None:
        drawn.append(_draw_curve(axes, result.controls, _NOISE, "s", "under noise of that size"))
    if result.start:
        axes.axvline(100 * result.start, color=_DARK, linestyle=":", linewidth=1.2, label="change of the input")
    if result.parting is not None and 0 < result.values[result.parting] < math.inf:
        ring: dict[str, Any] = {"markerfacecolor": "none", "markeredgecolor": _DARK, "markersize": 13}
        place = [100 * result.values[result.parting]], [result.parting]
        axes.plot(*place, linestyle="none", marker="o", label="grows from here on", **ring)
    _set_percent(axes, result, drawable=any(drawn))
    add_legend(axes)
    return figure


def _draw_curve(axes: Axes, values: Sequence[float], colour: str, marker: str, label: str) -> bool:
    """Whether there was anything to draw on an axis without zero."""
    points = [(100 * value, place) for place, value in enumerate(values) if 0 < value < math.inf]
    if points:
        axes.plot(*zip(*points, strict=True), color=colour, marker=marker, markersize=5, label=label)
    return bool(points)


def draw_channels(result: Datapath) -> Figure:
    """The channels of each layer that change most, by their numbers, darker the more they do.

    Of a deep network the layers with the largest change of a channel are drawn.
    """
    import matplotlib

    shown = _most_changed(result)
    figure, axes = layer_panel([result.layers[place].name for place in shown], tell_channels(result))
    orders = [result.layers[place].levels.nan_to_num(posinf=math.inf).argsort(descending=True) for place in shown]
    levels = np.full((len(shown), _MOST_CHANNELS), np.nan)
    for row, (place, order) in enumerate(zip(shown, orders, strict=True)):
        best = result.layers[place].levels[order[:_MOST_CHANNELS]]
        levels[row, : len(best)] = 100 * best.nan_to_num(posinf=math.inf).numpy()
    finite = levels[np.isfinite(levels)]
    top = (float(finite.max()) if finite.size else 0.0) or 1.0
    image = axes.imshow(np.where(np.isinf(levels), top, levels), aspect="auto", cmap="cividis_r", vmin=0, vmax=top)
    dark = matplotlib.colormaps["cividis_r"]
    for row, order in enumerate(orders):
        for column, channel in enumerate(order[:_MOST_CHANNELS].tolist()):
            red, green, blue, _ = dark(min(levels[row, column] / top, 1.0))
            colour = "black" if 0.3 * red + 0.59 * green + 0.11 * blue > 0.5 else "white"
            axes.text(column, row, str(channel), ha="center", va="center", fontsize=FONT, color=colour)
    axes.set_xticks([])
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xlabel("channels that change most")
    if len(shown) < len(result.layers):
        axes.set_ylabel(f"the {len(shown)} of {len(result.layers)} layers that change most")
    bar = figure.colorbar(image, ax=axes)
    bar.set_label("change, % of its usual size", fontsize=FONT)
    bar.ax.tick_params(labelsize=FONT)
    bar.ax.locator_params(nbins=5)
    return figure


def draw_paths(result: Datapath, paths: Paths) -> Figure:
    """How many of the channels that the predictions rest on two samples have in common, in each layer."""
    figure, axes = layer_panel([layer.name for layer in result.layers], tell_paths(result, paths))
    for kind, label, colour, style in (
        ("pair", "with itself, clean", _DARK, "-"),
        ("within", "two clean of a class", _NOISE, "--"),
        ("own", "with its own class", _CLEAN, "-"),
        ("other", "with the wrong class", _MOVED, "-"),
    ):
        values = [100 * getattr(overlap, kind) for overlap in paths.overlaps]
        points = [(value, place) for value, place in zip(values, paths.places, strict=True) if math.isfinite(value)]
        if points:
            axes.plot(*zip(*points, strict=True), style, color=colour, marker="o", markersize=4, label=label)
    if paths.merging is not None:
        axes.axhline(paths.merging - 0.5, color=_MOVED, linestyle=":", label="wrong class leads below")
    axes.set_xlim(-2, 102)
    axes.set_xlabel("deciding channels in common, %")
    axes.grid(alpha=0.3)
    add_legend(axes)
    return figure


def _most_changed(result: Datapath) -> list[int]:
    """The layers to draw, in the order of the computation."""
    tops = [layer.levels.nan_to_num(posinf=math.inf).max().item() for layer in result.layers]
    best = sorted(range(len(tops)), key=lambda place: -tops[place])[:_MOST_LAYERS]
    return sorted(best)


def _set_percent(axes: Axes, result: Datapath, *, drawable: bool) -> None:
    values = [*result.values, *(result.controls or []), result.start or 0.0]
    known = [100 * value for value in values if 0 < value < math.inf]
    if drawable:
        low, high = min(known) / 1.5, max(known) * 1.5
        use_plain_log_ticks(axes, "x", (1, 2, 5) if high / low < 100 else (1,))
        axes.set_xlim(low, high)
    axes.set_xlabel("change of the layer's output, %")
    axes.grid(alpha=0.3)
