"""Laziness beside vulnerability in words, numbers and a picture."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lightning_robust.callbacks.diagnostics import Report, Table
from lightning_robust.figures import use_plain_log_ticks
from lightning_robust.tables import number

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
class Measurement:
    """The numbers after so many optimizer steps.

    Args:
        step: Optimizer steps.
        numbers: By tag without its prefix.
    """

    step: int
    numbers: dict[str, float]

    def tags(self) -> dict[str, float]:
        """The numbers as they are logged."""
        return {f"lazy/{name}": value for name, value in self.numbers.items()}


def lazy_report(history: Sequence[Measurement], lazy_below: float, vulnerable_above: float) -> Report:
    """The table of the last measurement and the figure of all; arguments as of :func:`draw_laziness`."""
    return Report(
        tables={"lazy/layers": laziness_table(history[-1].numbers)},
        figures={"lazy/overview": functools.partial(draw_laziness, history, lazy_below, vulnerable_above)},
    )


def longest_step(numbers: Mapping[str, float], name: str = "single_step") -> tuple[float, float] | None:
    """The largest beta and the effect of its step, as a share of right predictions; None if there is no such number.

    Args:
        numbers: By tag without its prefix.
        name: ``"single_step_loss"`` takes the growth of the loss.

    Example:
        >>> longest_step({"single_step@0.5": 0.2, "single_step@2": 0.4, "fgsm": 0.3})
        (2.0, 0.4)
    """
    steps = [tag.partition("@")[2] for tag in numbers if tag.startswith(f"{name}@")]
    return max(((float(beta), numbers[f"{name}@{beta}"]) for beta in steps), default=None)


def describe_danger(numbers: Mapping[str, float], lazy_below: float, vulnerable_above: float) -> str:
    """A warning where training was lazy and one step fools the network; else empty."""
    step, movement = longest_step(numbers), numbers.get("movement", 1.0)
    if step is None or movement >= lazy_below or step[1] <= vulnerable_above:
        return ""
    return (
        f"Training was lazy and the network is easily fooled: its weights moved by {movement:.1%} of their length, and "
        f"one gradient step of {step[0]:g} |x| / sqrt(d) changes {step[1]:.0%} of the right predictions. What helps "
        "most is adversarial training (`adversarial`); a smaller width or a larger learning rate lets the weights "
        "move further, which may help. Thresholds: `lazy_below`, `vulnerable_above`."
    )


def laziness_table(numbers: Mapping[str, float]) -> Table:
    """A line for each layer; the last is the whole network."""
    columns = [
        "layer",
        "moved, share of its length",
        "largest move of a neuron x sqrt(width)",
        "activation signs changed",
    ]
    layers = list(dict.fromkeys(tag.partition("/")[2] for tag in numbers if "/" in tag))
    lines = [("whole network", ""), *((name, f"/{name}") for name in layers)]
    kinds = ("movement", "neuron_movement", "sign_changes")
    rows = [[name, *(number(numbers.get(f"{kind}{end}")) for kind in kinds)] for name, end in lines]
    return columns, [*rows[1:], rows[0]]


def draw_laziness(history: Sequence[Measurement], lazy_below: float, vulnerable_above: float) -> Figure:
    """Laziness over the run, vulnerability over the run, and one against the other.

    Args:
        history: In order.
        lazy_below: Movement under which training counts as lazy.
        vulnerable_above: Share of changed predictions over which a network counts as vulnerable.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14.5, 5.0), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    _draw_movement(left, history)
    _draw_vulnerability(middle, history)
    _draw_path(right, history, lazy_below, vulnerable_above)
    figure.suptitle("Lazy training: does the network leave its initialisation, and does one gradient step fool it?")
    return figure


def _draw_movement(axes: Axes, history: Sequence[Measurement]) -> None:
    for tag, (label, colour) in _LAZINESS.items():
        _draw_history(axes, history, tag, label, colour)
    axes.set_ylim(bottom=0)
    _caption_run(axes, "How far from the initialisation", "lazy is low (for the kernel's cosine: high)")


def _draw_vulnerability(axes: Axes, history: Sequence[Measurement]) -> None:
    tags = [tag for tag in history[-1].numbers if tag.startswith(("single_step", "fgsm"))]
    steps = sorted((tag for tag in tags if "@" in tag), key=lambda tag: float(tag.partition("@")[2]))
    for index, tag in enumerate(steps):
        colour = _REDS[min(index, len(_REDS) - 1)]
        _draw_history(axes, history, tag, f"step of {tag.partition('@')[2]} |x| / √d", colour)
    for tag in tags:
        if "@" not in tag:
            _draw_history(axes, history, tag, "FGSM", _BLUE, "--")
    unit = "relative growth of the loss"
    if not any("_loss" in tag for tag in tags):
        unit = "share of right predictions that change"
        axes.set_ylim(-0.03, 1.03)
    _caption_run(axes, "How easily one gradient step fools it", unit)


def _draw_path(axes: Axes, history: Sequence[Measurement], lazy_below: float, vulnerable_above: float) -> None:
    """Movement against the effect of the longest step, one dot for each measurement."""
    axes.set_title("Laziness against vulnerability", fontsize=10)
    axes.set_xlabel("weights moved, share of their length")
    counted = any(longest_step(each.numbers) is not None for each in history)
    dots = _dots(history, "single_step" if counted else "single_step_loss")
    if not dots:
        axes.text(0.5, 0.5, "nothing was measured", ha="center", transform=axes.transAxes)
        return
    movements, betas, effects, steps = zip(*dots, strict=True)
    edges = [*movements, lazy_below] if lazy_below > 0 else movements
    low, high = min(edges) / 2, max(edges) * 2
    use_plain_log_ticks(axes, "x", (1, 2, 5) if high / low < 300 else (1,))
    axes.set_xlim(low, high)
    axes.set_ylabel(f"{'share changed' if counted else 'growth of the loss'} by the step of {betas[0]:g} |x| / √d")
    if counted:
        axes.set_ylim(-0.03, 1.03)
        _shade_danger(axes, low, lazy_below, vulnerable_above)
    axes.plot(movements, effects, color="#8a8a8a", linewidth=1, zorder=2)
    points = axes.scatter(movements, effects, c=steps, cmap="viridis", s=36, zorder=3)
    axes.figure.colorbar(points, ax=axes, label="optimizer steps")
    axes.grid(alpha=0.3)


def _dots(history: Sequence[Measurement], name: str) -> list[tuple[float, float, float, int]]:
    """Movement, longest beta, its effect and the optimizer steps of each measurement that has them."""
    pairs = [(each, longest_step(each.numbers, name)) for each in history if each.numbers.get("movement", 0) > 0]
    return [(each.numbers["movement"], *step, each.step) for each, step in pairs if step is not None]


def _shade_danger(axes: Axes, low: float, lazy_below: float, vulnerable_above: float) -> None:
    if lazy_below > 0:
        label = f"lazy and easily fooled (below {lazy_below:g}, above {vulnerable_above:g})"
        axes.fill_between([low, lazy_below], vulnerable_above, 1.03, color=_REDS[0], alpha=0.4, lw=0, label=label)
        axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.17), frameon=False)


def _draw_history(
    axes: Axes, history: Sequence[Measurement], tag: str, label: str, colour: str, style: str = "-"
) -> None:
    points = [(each.step, each.numbers[tag]) for each in history if tag in each.numbers]
    if points:
        axes.plot(*zip(*points, strict=True), style, color=colour, marker="o", markersize=3.5, label=label)


def _caption_run(axes: Axes, title: str, ylabel: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("optimizer steps")
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2, frameon=False)
