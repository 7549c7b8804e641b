"""The figure of WiSE-FT: the metric under shift against the metric in distribution, from alpha 0 to 1."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lightning_robust.callbacks.merging.wise_ft.curve import AlphaCurve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BETWEEN, _HALF, _FINE_TUNED, _ZERO_SHOT = "#3b6fb6", "#e08214", "#8a8a8a", "#b2182b"


def draw_wise_ft(curve: AlphaCurve, chosen: float, monitor: str, mode: str) -> Figure:
    """A panel for each shifted loader, on logit axes where the metric is a share.

    Args:
        curve: The metrics at each alpha.
        chosen: The alpha that was chosen.
        monitor: Name of the metric.
        mode: ``"max"`` or ``"min"``; shares to be raised get 95 % intervals where the numbers of samples are known.
    """
    from matplotlib.figure import Figure

    loaders = range(1, len(curve.names)) if len(curve.names) > 1 else range(1)
    figure = Figure(figsize=(5.2 * len(loaders), 4.8), layout="constrained")
    panels = figure.subplots(1, len(loaders), squeeze=False)[0]
    for axes, loader in zip(panels, loaders, strict=True):
        _draw_mixtures(axes, curve, loader, chosen)
        if mode == "max" and _are_shares(curve) and len(curve.samples) == len(curve.names):
            _draw_intervals(axes, curve, loader)
        axes.set_xlabel(f"{monitor}, in distribution")
        axes.set_ylabel(f"{monitor}, {curve.names[loader]}")
    panels[0].legend(fontsize=8, loc="best")
    return figure


def _draw_mixtures(axes: Axes, curve: AlphaCurve, loader: int, chosen: float) -> None:
    xs, ys, last = curve.inside, curve.column(loader), len(curve.alphas) - 1
    axes.plot(xs, ys, color=_BETWEEN, marker="o", markersize=4, linewidth=1.5, label="weights between", zorder=2)
    half, best = _nearest(curve.alphas, 0.5), _nearest(curve.alphas, chosen)
    for index, marker, colour, name, size in (
        (0, "*", _ZERO_SHOT, "zero-shot (alpha 0)", 170),
        (last, "D", _FINE_TUNED, "fine-tuned (alpha 1)", 60),
        (half, "o", _HALF, f"alpha {curve.alphas[half]:.2g}", 60),
    ):
        axes.scatter([xs[index]], [ys[index]], marker=marker, color=colour, s=size, zorder=4, label=name)
    axes.scatter(
        [xs[best]], [ys[best]], marker="o", s=190, facecolors="none", edgecolors="black", linewidths=1.6, zorder=5,
        label=f"chosen (alpha {curve.alphas[best]:.2g})",
    )  # fmt: skip
    if all(0 < value < 1 for value in (*xs, *ys)):
        _use_logit_axes(axes, xs, ys)
    axes.grid(alpha=0.3)


def _draw_intervals(axes: Axes, curve: AlphaCurve, loader: int) -> None:
    xs, ys = curve.inside, curve.column(loader)
    axes.errorbar(
        xs,
        ys,
        xerr=[_half_width(x, curve.samples[0]) for x in xs],
        yerr=[_half_width(y, curve.samples[loader]) for y in ys],
        fmt="none",
        ecolor=_BETWEEN,
        alpha=0.35,
        zorder=1,
        label="95 % interval",
    )


def _are_shares(curve: AlphaCurve) -> bool:
    return all(0 <= value <= 1 for row in curve.values for value in row)


def _half_width(share: float, count: int) -> float:
    """Half of the 95 % interval of a share of ``count`` samples, by the normal approximation."""
    return 1.96 * math.sqrt(share * (1 - share) / count)


def _nearest(alphas: Sequence[float], alpha: float) -> int:
    return min(range(len(alphas)), key=lambda index: abs(alphas[index] - alpha))


def _use_logit_axes(axes: Axes, xs: Sequence[float], ys: Sequence[float]) -> None:
    """Logit scales with percent labels, and the line of equal values where it passes through."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

    axes.set_xscale("logit")
    axes.set_yscale("logit")
    for axis, values, limit in ((axes.xaxis, xs, axes.set_xlim), (axes.yaxis, ys, axes.set_ylim)):
        low, high = _padded_limits(values)
        limit(low, high)
        axis.set_major_locator(FixedLocator(_percent_ticks(low, high)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g}"))
        axis.set_minor_locator(NullLocator())
        axis.set_minor_formatter(NullFormatter())
        axis.set_label_text(axis.get_label_text())
    low, high = max(axes.get_xlim()[0], axes.get_ylim()[0]), min(axes.get_xlim()[1], axes.get_ylim()[1])
    if low < high:
        axes.plot([low, high], [low, high], color=_FINE_TUNED, linestyle=":", linewidth=1, zorder=0)


def _padded_limits(values: Sequence[float]) -> tuple[float, float]:
    low, high = (math.log(value / (1 - value)) for value in (min(values), max(values)))
    margin = max(0.08 * (high - low), 0.05)
    return tuple(1 / (1 + math.exp(-end)) for end in (low - margin, high + margin))  # type: ignore[return-value]


def _percent_ticks(low: float, high: float) -> list[float]:
    """About six round percentages."""
    for step in (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2):
        first = math.ceil(low / step)
        ticks = [step * index for index in range(first, math.floor(high / step) + 1)]
        if len(ticks) <= 7:
            return [tick for tick in ticks if 0 < tick < 1]
    return [0.5]
