"""The figures of lazy training: how far the network is from its start, how easily it is fooled, and both together."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lightning_robust.figures import FONT, add_legend, panel, use_plain_log_ticks
from lightning_robust.tables import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DISTANCES = {
    "movement": ("weights, of their length", "#4c78a8", "o"),
    "linearization_gap": ("gap to linear network", "#f58518", "s"),
    "sign_changes": ("activation signs changed", "#1b1f24", "^"),
    "kernel_alignment": ("kernel, 1 - cosine", "#8a94a0", "D"),
}
_STEPS = ("#fdbe85", "#f58518", "#b45309", "#5c2a04")
_NOT_FINITE = "The weights are not finite"
_BLUE, _GREY = "#4c78a8", "#8a94a0"


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


def laziness_figures(
    history: Sequence[Measurement], lazy_below: float, vulnerable_above: float
) -> dict[str, Callable[[], Figure]]:
    """What draws each figure, by tag; those of a step only where one was measured.

    Args:
        history: In order, at least one.
        lazy_below: Movement under which training counts as lazy.
        vulnerable_above: Share of changed predictions over which a network counts as vulnerable.
    """
    figures: dict[str, Callable[[], Figure]] = {
        "lazy/distance_from_start": functools.partial(draw_distance, history, lazy_below)
    }
    if any(tag.startswith(("single_step", "fgsm")) for tag in history[-1].numbers):
        figures["lazy/fooled_by_one_step"] = functools.partial(draw_vulnerability, history)
    if _dots(history, _effect_name(history)):
        figures["lazy/both"] = functools.partial(draw_both, history, lazy_below, vulnerable_above)
    return figures


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


def draw_distance(history: Sequence[Measurement], lazy_below: float) -> Figure:
    """Each measure of the distance from the start over the run; at 0 nothing has changed."""
    movement = history[-1].numbers.get("movement")
    title = "How far training leaves its start"
    if movement is not None:
        verdict = "lazy" if movement < lazy_below else "not lazy"
        title = f"The weights moved by {number(100 * movement)} % of their length: {verdict}"
    if movement is not None and not math.isfinite(movement):
        title = _NOT_FINITE
    figure, axes = panel(4.3, title)
    for tag, (label, colour, marker) in _DISTANCES.items():
        _draw_history(axes, _distances(history, tag), label, colour, marker)
    if lazy_below > 0 and movement is not None:
        axes.axhline(lazy_below, color=_BLUE, linestyle=":", label=f"weights: lazy below {lazy_below:g}")
    axes.set_ylim(bottom=0)
    _label_run(axes, "distance from the start")
    return figure


def draw_vulnerability(history: Sequence[Measurement]) -> Figure:
    """The effect of one gradient step over the run, a line for each length."""
    name = _effect_name(history)
    counted = name == "single_step"
    figure, axes = panel(4.3, _tell_effect(longest_step(history[-1].numbers, name), counted=counted))
    tags = [tag for tag in history[-1].numbers if tag.startswith(("single_step", "fgsm"))]
    betas = sorted((tag for tag in tags if "@" in tag), key=lambda tag: float(tag.partition("@")[2]))
    for index, tag in enumerate(betas):
        colour = _STEPS[min(index, len(_STEPS) - 1)]
        _draw_history(axes, _run_points(history, tag), f"step of {tag.partition('@')[2]} |x| / √d", colour, "o")
    for tag in sorted({*tags} - {*betas}):
        _draw_history(axes, _run_points(history, tag), "FGSM", _BLUE, "s")
    if counted:
        axes.set_ylim(-0.03, 1.03)
    _label_run(axes, "share of predictions changed" if counted else "growth of the loss, share")
    return figure


def _tell_effect(last: tuple[float, float] | None, *, counted: bool) -> str:
    if last is None:
        return "How easily one gradient step fools the network"
    if not math.isfinite(last[1]):
        return _NOT_FINITE
    effect = "of the right predictions" if counted else "more loss"
    return f"One step of {last[0]:g} |x| / √d {'changes' if counted else 'makes'} {number(100 * last[1])} % {effect}"


def draw_both(history: Sequence[Measurement], lazy_below: float, vulnerable_above: float) -> Figure:
    """Movement against the effect of the longest step, one dot for each measurement; there is at least one."""
    counted = _effect_name(history) == "single_step"
    dots = _dots(history, _effect_name(history))
    movements, betas, effects, steps = zip(*dots, strict=True)
    figure, axes = panel(4.6, _tell_both(movements[-1], effects[-1], lazy_below, vulnerable_above, counted=counted))
    low, high = min(*movements, lazy_below or movements[0]) / 2, max(*movements, lazy_below) * 2
    use_plain_log_ticks(axes, "x", (1, 2, 5) if high / low < 60 else (1,))
    axes.set_xlim(low, high)
    axes.set_xlabel("movement of the weights, share of their length")
    axes.set_ylabel(f"{'changed' if counted else 'loss grows'} by {betas[0]:g} |x| / √d, share")
    if counted:
        axes.set_ylim(-0.03, 1.03)
    if counted and lazy_below > 0:
        area = [low, lazy_below], vulnerable_above, 1.03
        axes.fill_between(*area, color=_STEPS[0], alpha=0.5, lw=0, label="lazy and easily fooled")
    points = axes.scatter(movements, effects, c=steps, cmap="viridis", s=46, zorder=3, label="measurements")
    if len(dots) > 1:
        axes.plot(movements, effects, color=_GREY, linewidth=1, zorder=2, label="course of the run")
        bar = figure.colorbar(points, ax=axes)
        bar.set_label("optimizer steps", fontsize=FONT)
        bar.ax.tick_params(labelsize=FONT)
        bar.ax.locator_params(nbins=5)
    axes.grid(alpha=0.3)
    add_legend(axes)
    return figure


def _tell_both(movement: float, effect: float, lazy_below: float, vulnerable_above: float, *, counted: bool) -> str:
    if not math.isfinite(movement + effect):
        return _NOT_FINITE
    if not counted:
        return f"The longest step makes {number(100 * effect)} % more loss"
    lazy, fooled = movement < lazy_below, effect > vulnerable_above
    if lazy and fooled:
        return "Lazy and easily fooled: adversarial training helps most"
    return f"{'Lazy' if lazy else 'Not lazy'}, {'but easily' if fooled else 'and not easily'} fooled"


def _effect_name(history: Sequence[Measurement]) -> str:
    """Predictions are counted where there are classes; else the loss grows."""
    return "single_step" if any(longest_step(each.numbers) is not None for each in history) else "single_step_loss"


def _run_points(history: Sequence[Measurement], tag: str) -> list[tuple[int, float]]:
    return [(each.step, each.numbers[tag]) for each in history if tag in each.numbers]


def _distances(history: Sequence[Measurement], tag: str) -> list[tuple[int, float]]:
    """The cosine becomes a distance, as the others are."""
    points = _run_points(history, tag)
    return [(step, 1 - value) for step, value in points] if tag == "kernel_alignment" else points


def _dots(history: Sequence[Measurement], name: str) -> list[tuple[float, float, float, int]]:
    """Movement, longest beta, its effect and the optimizer steps of each measurement that has them."""
    pairs = [(each, longest_step(each.numbers, name)) for each in history if each.numbers.get("movement", 0) > 0]
    return [(each.numbers["movement"], *step, each.step) for each, step in pairs if step is not None]


def _draw_history(axes: Axes, points: Sequence[tuple[int, float]], label: str, colour: str, marker: str) -> None:
    if points:
        axes.plot(*zip(*points, strict=True), color=colour, marker=marker, markersize=5, label=label)


def _label_run(axes: Axes, ylabel: str) -> None:
    axes.set_xlabel("optimizer steps")
    axes.set_xlim(left=0)
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        add_legend(axes)
