"""What the callbacks that choose weights draw: the course of a soup, the curve of WiSE-FT."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lightning_robust.functional.soups import Soup

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BLUE, _ORANGE, _GREY, _RED = "#3b6fb6", "#e08214", "#8a8a8a", "#b2182b"


def draw_soup(soup: Soup, labels: Sequence[str], monitor: str, mode: str) -> Figure:
    """Ingredients in the order in which they were tried, their scores, and the soup's score as it grew."""
    from matplotlib.figure import Figure

    first = soup.ingredients[:1]
    tried = [trial for trial in soup.trials if not trial.dropped]
    order = first + [t.ingredient for t in tried] if tried else list(soup.ingredients)
    figure = Figure(figsize=(max(6.0, 0.7 * len(order) + 2.5), 4.2), layout="constrained")
    axes = figure.subplots()
    places = range(len(order))
    inside = [index in soup.ingredients for index in order]
    for kept, colour, name in ((True, _BLUE, "ingredient in the soup"), (False, _GREY, "ingredient left out")):
        chosen = [place for place in places if inside[place] is kept]
        axes.scatter(chosen, [soup.scores[order[p]] for p in chosen], color=colour, zorder=3, label=name)
    if tried:
        steps, best = [soup.scores[order[0]]], soup.scores[order[0]]
        for trial in tried:
            best = trial.score if trial.accepted and trial.score is not None else best
            steps.append(best)
        axes.step(places, steps, where="post", color=_ORANGE, linewidth=2, label="soup so far")
    if soup.score is not None:
        axes.axhline(soup.score, color=_ORANGE, linestyle="--", linewidth=1, label=f"soup: {soup.score:.5g}")
    axes.set_xticks(list(places), [_short(labels[index]) for index in order], rotation=35, ha="right", fontsize=8)
    axes.set_ylabel(f"{monitor} ({'higher' if mode == 'max' else 'lower'} is better)")
    axes.set_title(f"{len(soup.ingredients)} of {len(labels)} ingredients")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize=8, loc="best")
    return figure


@dataclass(frozen=True)
class Curve:
    """What one shifted loader saw along the way from zero-shot to fine-tuned weights."""

    name: str
    alphas: Sequence[float]
    inside: Sequence[float]
    """In-distribution metric at each alpha."""
    shifted: Sequence[float]
    """Metric under shift at each alpha; the in-distribution one again where there is no such loader."""
    errors: Sequence[tuple[float, float]] = ()
    """Half widths of the 95 % intervals of both, where they are known."""


def draw_wise_ft(curves: Sequence[Curve], chosen: float, monitor: str) -> Figure:
    """In-distribution against shifted metric, on logit axes where both are shares; a panel for each shifted loader."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * len(curves), 4.8), layout="constrained")
    panels = figure.subplots(1, len(curves), squeeze=False)[0]
    for axes, curve in zip(panels, curves, strict=True):
        _draw_curve(axes, curve, chosen)
        axes.set_xlabel(f"{monitor}, in distribution")
        axes.set_ylabel(f"{monitor}, {curve.name}")
    panels[0].legend(fontsize=8, loc="best")
    return figure


def _draw_curve(axes: Axes, curve: Curve, chosen: float) -> None:
    xs, ys = list(curve.inside), list(curve.shifted)
    axes.plot(xs, ys, color=_BLUE, marker="o", markersize=4, linewidth=1.5, label="weights between", zorder=2)
    if curve.errors:
        axes.errorbar(
            xs,
            ys,
            xerr=[e[0] for e in curve.errors],
            yerr=[e[1] for e in curve.errors],
            fmt="none",
            ecolor=_BLUE,
            alpha=0.35,
            zorder=1,
            label="95 % interval",
        )
    middle = min(range(len(xs)), key=lambda i: abs(curve.alphas[i] - 0.5))
    best = min(range(len(xs)), key=lambda i: abs(curve.alphas[i] - chosen))
    for place, marker, colour, name, size in (
        (0, "*", _RED, "zero-shot (alpha 0)", 170),
        (len(xs) - 1, "D", _GREY, "fine-tuned (alpha 1)", 60),
        (middle, "o", _ORANGE, f"alpha {curve.alphas[middle]:.2g}", 60),
    ):
        axes.scatter([xs[place]], [ys[place]], marker=marker, color=colour, s=size, zorder=4, label=name)
    axes.scatter(
        [xs[best]], [ys[best]], marker="o", s=190, facecolors="none", edgecolors="black", linewidths=1.6, zorder=5,
        label=f"chosen (alpha {curve.alphas[best]:.2g})",
    )  # fmt: skip
    if all(0 < value < 1 for value in (*xs, *ys)):
        _logit(axes, xs, ys)
    axes.grid(alpha=0.3)


def _logit(axes: Axes, xs: Sequence[float], ys: Sequence[float]) -> None:
    """Logit scales with percent labels, and the line of equal values where it passes through."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

    axes.set_xscale("logit")
    axes.set_yscale("logit")
    for axis, values, limit in ((axes.xaxis, xs, axes.set_xlim), (axes.yaxis, ys, axes.set_ylim)):
        low, high = _padded(values)
        limit(low, high)
        axis.set_major_locator(FixedLocator(_ticks(low, high)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g}"))
        axis.set_minor_locator(NullLocator())
        axis.set_minor_formatter(NullFormatter())
        axis.set_label_text(axis.get_label_text())
    low, high = max(axes.get_xlim()[0], axes.get_ylim()[0]), min(axes.get_xlim()[1], axes.get_ylim()[1])
    if low < high:
        axes.plot([low, high], [low, high], color=_GREY, linestyle=":", linewidth=1, zorder=0)


def _padded(values: Sequence[float]) -> tuple[float, float]:
    low, high = (math.log(value / (1 - value)) for value in (min(values), max(values)))
    margin = max(0.08 * (high - low), 0.05)
    return tuple(1 / (1 + math.exp(-end)) for end in (low - margin, high + margin))  # type: ignore[return-value]


def _ticks(low: float, high: float) -> list[float]:
    """About six round percentages."""
    for step in (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2):
        first = math.ceil(low / step)
        ticks = [step * index for index in range(first, math.floor(high / step) + 1)]
        if len(ticks) <= 7:
            return [tick for tick in ticks if 0 < tick < 1]
    return [0.5]


def _short(label: str) -> str:
    return label if len(label) <= 24 else "..." + label[-21:]
