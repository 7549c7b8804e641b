"""What laziness and vulnerability look like: table and figure. How they are measured stands elsewhere."""

from __future__ import annotations

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


def longest_step(numbers: Mapping[str, float], name: str = "single_step") -> tuple[float, float] | None:
    """The largest beta and what its step did, as a share of right predictions; None if that was not measured.

    Args:
        numbers: By tag without its prefix.
        name: ``"single_step_loss"`` takes the growth of the loss.

    Example:
        >>> longest_step({"single_step@0.5": 0.2, "single_step@2": 0.4, "fgsm": 0.3})
        (2.0, 0.4)
    """
    steps = [tag.partition("@")[2] for tag in numbers if tag.startswith(f"{name}@")]
    return max(((float(beta), numbers[f"{name}@{beta}"]) for beta in steps), default=None)


def table(numbers: Mapping[str, float]) -> tuple[list[str], list[list[str]]]:
    """Columns and a line for each layer; the last is the whole network."""
    kinds = ("movement", "neuron_movement", "sign_changes")
    layers = list(dict.fromkeys(tag.partition("/")[2] for tag in numbers if "/" in tag))
    rows = [[name, *(_number(numbers.get(f"{kind}/{name}")) for kind in kinds)] for name in layers]
    whole = ["whole network", *(_number(numbers.get(kind)) for kind in kinds)]
    columns = [
        "layer",
        "moved, share of its length",
        "largest move of a neuron x sqrt(width)",
        "activation signs changed",
    ]
    return columns, [*rows, whole]


def draw(history: Sequence[Point], lazy_below: float, vulnerable_above: float) -> Figure:
    """Laziness over the run, vulnerability over the run, and one against the other.

    Args:
        history: In order.
        lazy_below: Movement under which training counts as lazy.
        vulnerable_above: Share of changed predictions over which a network counts as vulnerable.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14.5, 5.0), layout="constrained")
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
    """Movement against what the longest step does, one dot for each measurement."""
    axes.set_title("Laziness against vulnerability", fontsize=10)
    axes.set_xlabel("weights moved, share of their length")
    counted = any(longest_step(point.numbers) is not None for point in history)
    name = "single_step" if counted else "single_step_loss"
    found = [(point, longest_step(point.numbers, name)) for point in history if point.numbers.get("movement", 0) > 0]
    dots = [(point.numbers["movement"], *step, point.step) for point, step in found if step is not None]
    if not dots:
        axes.text(0.5, 0.5, "nothing was measured", ha="center", transform=axes.transAxes)
        return
    xs, betas, ys, steps = (list(column) for column in zip(*dots, strict=True))
    edges = [*xs, lazy_below] if lazy_below > 0 else xs
    low, high = min(edges) / 2, max(edges) * 2
    _logarithmic(axes, low, high)
    what = "share changed" if counted else "growth of the loss"
    axes.set_ylabel(f"{what} by the step of {betas[0]:g} |x| / √d")
    if counted:
        axes.set_ylim(-0.03, 1.03)
    if counted and lazy_below > 0:
        label = f"lazy and easily fooled (below {lazy_below:g}, above {vulnerable_above:g})"
        axes.fill_between([low, lazy_below], vulnerable_above, 1.03, color=_REDS[0], alpha=0.4, lw=0, label=label)
        axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.17), frameon=False)
    axes.plot(xs, ys, color="#8a8a8a", linewidth=1, zorder=2)
    points = axes.scatter(xs, ys, c=steps, cmap="viridis", s=36, zorder=3)
    axes.figure.colorbar(points, ax=axes, label="optimizer steps")
    axes.grid(alpha=0.3)


def _logarithmic(axes: Axes, low: float, high: float) -> None:
    """With ticks that say their value."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 300 else (1,)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())


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
        axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2, frameon=False)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
