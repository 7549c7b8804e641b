"""What laziness and vulnerability look like: table and figure. How they are measured stands elsewhere."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LAZINESS = {
    "movement": ("weights moved, share of their length", "#3b6fb6"),
    "linearization_gap": ("gap to the linearised network", "#e08214"),
    "sign_changes": ("activation signs changed, share", "#1b7837"),
    "kernel_alignment": ("tangent kernel, cosine to the start", "#8a8a8a"),
}
_REDS = ("#f4a582", "#d6604d", "#b2182b", "#67001f")
_BLUE = "#2166ac"


@dataclass(frozen=True)
class Point:
    """What was measured after so many optimizer steps.

    Args:
        step: Optimizer steps.
        numbers: By tag without its prefix.
    """

    step: int
    numbers: dict[str, float]


def single_step(numbers: Mapping[str, float]) -> tuple[float, float] | None:
    """The beta nearest to 1 (by ratio) and the share of right predictions that its step changes; None if not measured.

    Example:
        >>> single_step({"single_step@0.5": 0.2, "single_step@1": 0.4, "fgsm": 0.3})
        (1.0, 0.4)
    """
    found = {float(tag.partition("@")[2]): value for tag, value in numbers.items() if tag.startswith("single_step@")}
    return min(found.items(), key=lambda item: abs(math.log(item[0])), default=None)


def table(numbers: Mapping[str, float]) -> tuple[list[str], list[list[str]]]:
    """Columns and a line for each layer; the last is the whole network."""
    kinds = ("movement", "neuron_movement", "sign_changes")
    layers = list(dict.fromkeys(tag.partition("/")[2] for tag in numbers if "/" in tag))
    rows = [[name, *(_number(numbers.get(f"{kind}/{name}")) for kind in kinds)] for name in layers]
    whole = ["whole network", *(_number(numbers.get(kind)) for kind in kinds)]
    columns = ["layer", "|W - W0| / |W0|", "largest movement of a neuron x sqrt(width)", "activation signs changed"]
    return columns, [*rows, whole]


def draw(history: Sequence[Point], lazy_below: float, vulnerable_above: float) -> Figure:
    """Laziness over the run, vulnerability over the run, and one against the other.

    Args:
        history: In order.
        lazy_below: Movement under which training counts as lazy.
        vulnerable_above: Share of changed predictions over which a network counts as vulnerable.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14.5, 4.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    _laziness(left, history)
    _vulnerability(middle, history)
    _path(right, history, lazy_below, vulnerable_above)
    figure.suptitle("Lazy training: does the network leave its initialisation, and does one gradient step fool it?")
    return figure


def _laziness(axes: Axes, history: Sequence[Point]) -> None:
    for tag, (label, colour) in _LAZINESS.items():
        _line(axes, history, tag, label, colour)
    axes.set_ylim(bottom=0)
    _finish(axes, "How far from the initialisation", "lazy is low (for the kernel's cosine: high)")


def _vulnerability(axes: Axes, history: Sequence[Point]) -> None:
    tags = [tag for tag in history[-1].numbers if tag.startswith(("single_step", "fgsm"))]
    steps = sorted((tag for tag in tags if "@" in tag), key=lambda tag: float(tag.partition("@")[2]))
    for index, tag in enumerate(steps):
        colour = _REDS[min(index, len(_REDS) - 1)]
        _line(axes, history, tag, f"step of {tag.partition('@')[2]} |x| / √d", colour)
    for tag in tags:
        if "@" not in tag:
            _line(axes, history, tag, "FGSM", _BLUE, "--")
    grows = any("_loss" in tag for tag in tags)
    if not grows:
        axes.set_ylim(-0.03, 1.03)
    _finish(
        axes,
        "How easily one gradient step fools it",
        "relative growth of the loss" if grows else "share of right predictions that change",
    )


def _path(axes: Axes, history: Sequence[Point], lazy_below: float, vulnerable_above: float) -> None:
    """Movement against success, one point for each measurement."""
    pairs = [
        (point.numbers["movement"], found[1], point.step)
        for point in history
        if (found := single_step(point.numbers)) is not None and point.numbers.get("movement", 0) > 0
    ]
    axes.set_title("Laziness against vulnerability", fontsize=10)
    axes.set_xlabel("weights moved, share of their length")
    axes.set_ylabel("right predictions changed by the step")
    if not pairs:
        axes.text(0.5, 0.5, "no predictions of classes to count", ha="center", transform=axes.transAxes)
        return
    xs, ys, steps = (list(column) for column in zip(*pairs, strict=True))
    axes.set_xscale("log")
    axes.set_xlim(min(*xs, lazy_below) / 2, max(*xs, lazy_below) * 2)
    axes.set_ylim(-0.03, 1.03)
    axes.fill_between([axes.get_xlim()[0], lazy_below], vulnerable_above, 1.03, color=_REDS[0], alpha=0.3, linewidth=0)
    axes.text(
        axes.get_xlim()[0] * 1.1, 1.0, "lazy and easily fooled", va="top", fontsize=8, color=_REDS[3], style="italic"
    )
    axes.plot(xs, ys, color="#8a8a8a", linewidth=1, zorder=2)
    dots = axes.scatter(xs, ys, c=steps, cmap="viridis", s=36, zorder=3)
    axes.figure.colorbar(dots, ax=axes, label="optimizer steps")
    axes.grid(alpha=0.3)


def _line(axes: Axes, history: Sequence[Point], tag: str, label: str, colour: str, style: str = "-") -> None:
    known = [(point.step, point.numbers[tag]) for point in history if tag in point.numbers]
    if known:
        axes.plot(*zip(*known, strict=True), style, color=colour, marker="o", markersize=3.5, label=label)


def _finish(axes: Axes, title: str, ylabel: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("optimizer steps")
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, loc="best")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
