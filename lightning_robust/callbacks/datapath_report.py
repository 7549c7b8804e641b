"""What a datapath looks like: scalars, table, sentence, figure. How it is measured stands elsewhere."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from lightning_robust.callbacks.datapath_probe import Datapath, Paths

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


def scalars(found: Datapath) -> dict[str, float]:
    """What is logged; what is not finite is left out."""
    stem = f"datapath/{found.condition}"
    values = {f"{stem}/parting_depth": found.depth(found.parting)}
    values |= {} if found.start is None else {f"{stem}/inputs": found.start}
    for layer in found.layers:
        values[f"{stem}/divergence/{layer.name}"] = layer.relative
        values[f"{stem}/noise/{layer.name}"] = math.nan if layer.control is None else layer.control
    if found.paths is not None:
        values |= {
            f"{stem}/changed": found.paths.changed.float().mean().item(),
            f"{stem}/critical": found.paths.clean.share,
            f"{stem}/diverging_depth": found.depth(found.paths.diverging),
            f"{stem}/merging_depth": found.depth(found.paths.merging),
        }
        for place, overlap in zip(found.paths.places, found.paths.overlaps, strict=True):
            values[f"{stem}/overlap/{found.layers[place].name}"] = overlap.pair
    return {tag: value for tag, value in values.items() if math.isfinite(value)}


def table(found: Datapath) -> tuple[list[str], list[list[str]]]:
    """Columns and a line for each layer, in the order of the computation."""
    columns = ["layer", "divergence", "same-norm noise", "ratio", f"carry {found.share:.0%}", "most diverging channels"]
    rows = []
    for layer, ratio in zip(found.layers, _ratios(found), strict=True):
        carriers = layer.carriers(found.share)
        top = layer.levels.nan_to_num(posinf=math.inf).argsort(descending=True)[:10].tolist()
        rows.append(
            [
                layer.name,
                _number(layer.relative),
                "" if layer.control is None else _number(layer.control),
                _number(ratio),
                f"{len(carriers)} of {len(layer.clean)}",
                ", ".join(map(str, top)),
            ]
        )
    if found.paths is not None:
        columns += ["critical, clean", "critical, perturbed", "overlap", "in its class", "own class", "wrong class"]
        for place, row in enumerate(rows):
            row += _of_paths(found.paths, place)
    return columns, rows


def summary(found: Datapath) -> str:
    """The finding in a few sentences."""
    if not any(layer.relative for layer in found.layers):
        return f"{found.condition} moves nothing."
    values, names, growth = [layer.relative for layer in found.layers], [e.name for e in found.layers], _growth(found)
    place = found.parting if found.parting is not None else max(range(len(names)), key=growth.__getitem__)
    layer = found.layers[place]
    carriers = f"{len(layer.carriers(found.share))} of {len(layer.clean)} channels carry {found.share:.0%} of it"
    begun = (
        f"{_number(values[0])} at the first layer" if found.start is None else f"{_number(found.start)} in the inputs"
    )
    against = [""] * len(values)
    if found.controls is not None:
        against = [f", {_number(ratio)} times noise of the same norm" for ratio in _ratios(found)]
    if found.parting is not None:
        text = (
            f"clean and {found.condition} part at `{layer.name}` (layer {place + 1} of {len(names)}), where the "
            f"divergence is {_number(values[place])} after {begun}{against[place]}; {carriers}."
        )
        if place + 1 < len(values):
            text += f" At the end it is {_number(values[-1])}{against[-1]}."
    else:
        text = (
            f"clean and {found.condition} do not part. The divergence is {begun} and {_number(values[place])} at "
            f"`{layer.name}`{against[place]}, where {carriers}; at the end {_number(values[-1])}{against[-1]}."
        )
    return text if found.paths is None else f"{text} {_on_predictions(found, found.paths)}"


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


def _on_predictions(found: Datapath, paths: Paths) -> str:
    changed = int(paths.changed.sum())
    if not changed:
        return f"None of {len(paths.changed)} predictions changes."
    where = [
        f"{name} at `{found.layers[place].name}`" if place is not None else f"{name} nowhere"
        for name, place in (("diverging", paths.diverging), ("merging with the wrong class", paths.merging))
    ]
    return (
        f"{changed} of {len(paths.changed)} predictions change; their critical channels ({paths.clean.share:.0%} of a "
        f"layer, {paths.perturbed.share:.0%} perturbed): {', '.join(where)}."
    )


def _of_paths(paths: Paths, place: int) -> list[str]:
    if place not in paths.places:
        return [""] * 6
    at = paths.places.index(place)
    sizes = [side.sets[at].float().sum(1).mean().item() for side in (paths.clean, paths.perturbed)]
    overlap = paths.overlaps[at]
    return [
        *(f"{size:.1f}" for size in sizes),
        *(_number(value) for value in (overlap.pair, overlap.within, overlap.own, overlap.other)),
    ]


def _ratios(found: Datapath) -> list[float]:
    """Divergence over that under noise; over that of the first layer where there is no such control."""
    values = [layer.relative for layer in found.layers]
    return _quotients(values, found.controls or [values[0]] * len(values))


def _growth(found: Datapath) -> list[float]:
    """Divergence over what it is compared with to say where the two part."""
    values = [layer.relative for layer in found.layers]
    start = values[0] if found.start is None else found.start
    return _quotients(values, [max(start, each) for each in found.controls or [start] * len(values)])


def _quotients(values: list[float], others: list[float]) -> list[float]:
    return [v / o if o > 0 else math.inf if v else 0.0 for v, o in zip(values, others, strict=True)]


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3g}"


def _short(name: str) -> str:
    return name if len(name) <= 24 else "..." + name[-21:]


def _wrapped(text: str, width: int) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, max(width, 60)))
