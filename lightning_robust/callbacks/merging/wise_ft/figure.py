"""The figures of WiSE-FT: the metric from alpha 0 to 1, and with shifted loaders one metric against the other."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from lightning_robust.callbacks.merging.wise_ft.curve import AlphaCurve
from lightning_robust.figures import add_legend, panel, plain
from lightning_robust.harness.directions import Mode
from lightning_robust.statistics import Interval
from lightning_robust.tables import number, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BETWEEN, _CHOSEN, _GREY, _START = "#4c78a8", "#1b1f24", "#8a94a0", "#f58518"
_NAME_WIDTH = 24


def wise_ft_figures(
    curve: AlphaCurve, chosen: float, monitor: str, mode: Mode, start: str
) -> dict[str, Callable[[], Figure]]:
    """What draws each figure, by tag: one for a single loader, else one for each shifted loader.

    Args:
        curve: The metrics at each alpha.
        chosen: The alpha that was chosen.
        monitor: Name of the metric.
        mode: ``"max"`` or ``"min"``; shares to be raised get 95 % intervals where the numbers of samples are known.
        start: What the weights at alpha 0 are, as ``"zero-shot"``.
    """
    if len(curve.names) == 1:
        return {"wise_ft/overview": functools.partial(draw_alphas, curve, chosen, monitor, mode, start)}
    tags = ["wise_ft/overview", *(f"wise_ft/overview_{loader}" for loader in range(2, len(curve.names)))]
    return {
        tag: functools.partial(draw_shift, curve, loader, chosen, monitor, mode, start)
        for loader, tag in enumerate(tags, 1)
    }


def draw_alphas(curve: AlphaCurve, chosen: float, monitor: str, mode: Mode, start: str) -> Figure:
    """The metric of the only loader over alpha; arguments as of :func:`wise_ft_figures`."""
    figure, axes = panel(4.4, "WiSE-FT changes nothing here: one loader measures no shift")
    xs, ys = list(curve.alphas), curve.inside
    intervals = curve.intervals(mode)
    if intervals:
        axes.fill_between(xs, *_limits(intervals, 0), color=_BETWEEN, alpha=0.18, lw=0, label="95 % interval")
    axes.plot(xs, ys, color=_BETWEEN, marker="o", markersize=4, label="mixtures of the two")
    _mark_points(axes, curve, xs, ys, chosen, start)
    axes.set_xlabel(f"alpha: 0 is the {start}, 1 fine-tuned")
    axes.set_ylabel(plain(f"{shorten(monitor, _NAME_WIDTH)} ({_better(mode)})"))
    axes.grid(alpha=0.3)
    add_legend(axes)
    return figure


def draw_shift(curve: AlphaCurve, loader: int, chosen: float, monitor: str, mode: Mode, start: str) -> Figure:
    """The metric on a shifted loader against that in distribution, on logit axes where it is a share.

    Args:
        curve: The metrics at each alpha.
        loader: The shifted loader.
        chosen: The alpha that was chosen.
        monitor: Name of the metric.
        mode: ``"max"`` or ``"min"``.
        start: What the weights at alpha 0 are.
    """
    figure, axes = panel(5.2, _describe_choice(curve, loader, chosen, mode))
    xs, ys = curve.inside, curve.column(loader)
    axes.plot(xs, ys, color=_BETWEEN, marker="o", markersize=4, label="mixtures of the two", zorder=2)
    intervals = curve.intervals(mode)
    if intervals:
        _draw_intervals(axes, curve, loader, intervals)
    _mark_points(axes, curve, xs, ys, chosen, start)
    if all(0 < value < 1 for value in (*xs, *ys)):
        _use_logit_axes(axes, xs, ys)
    axes.set_xlabel(plain(f"{shorten(curve.names[0], _NAME_WIDTH)}, in distribution ({_better(mode)})"))
    axes.set_ylabel(plain(f"{shorten(curve.names[loader], _NAME_WIDTH)}, shifted"))
    axes.grid(alpha=0.3)
    add_legend(axes)
    return figure


def _describe_choice(curve: AlphaCurve, loader: int, chosen: float, mode: str) -> str:
    if chosen == curve.alphas[-1]:
        return "No mixture does better: the fine-tuned weights stay"
    index, sign = curve.alphas.index(chosen), 1 if mode == "max" else -1
    shifted, inside = (sign * (column[index] - column[-1]) for column in (curve.column(loader), curve.inside))
    return f"Alpha {chosen:.2g} {_gain(shifted)} under shift and {_gain(inside)} in distribution"


def _gain(change: float) -> str:
    return f"{'gains' if change >= 0 else 'loses'} {number(abs(change), 2)}"


def _better(mode: str) -> str:
    return f"{'higher' if mode == 'max' else 'lower'} is better"


def _mark_points(
    axes: Axes, curve: AlphaCurve, xs: Sequence[float], ys: Sequence[float], chosen: float, start: str
) -> None:
    """Both ends and the choice."""
    best = curve.alphas.index(chosen)
    last = len(curve.alphas) - 1
    axes.scatter([xs[0]], [ys[0]], marker="*", color=_START, s=190, zorder=4, label=f"{start} (alpha 0)")
    axes.scatter([xs[last]], [ys[last]], marker="D", color=_GREY, s=60, zorder=4, label="fine-tuned (alpha 1)")
    ring: dict[str, Any] = {"facecolors": "none", "edgecolors": _CHOSEN, "linewidths": 1.6}
    axes.scatter([xs[best]], [ys[best]], s=190, zorder=5, label=f"chosen (alpha {chosen:.2g})", **ring)


def _draw_intervals(axes: Axes, curve: AlphaCurve, loader: int, intervals: Sequence[Sequence[Interval]]) -> None:
    xs, ys = curve.inside, curve.column(loader)
    axes.errorbar(
        xs,
        ys,
        xerr=_arms(xs, intervals, 0),
        yerr=_arms(ys, intervals, loader),
        fmt="none",
        ecolor=_BETWEEN,
        alpha=0.35,
        zorder=1,
        label="95 % interval",
    )


def _limits(intervals: Sequence[Sequence[Interval]], loader: int) -> tuple[list[float], list[float]]:
    """Lower and upper ends of a loader's intervals."""
    return [row[loader].low for row in intervals], [row[loader].high for row in intervals]


def _arms(shares: Sequence[float], intervals: Sequence[Sequence[Interval]], loader: int) -> list[list[float]]:
    """Lengths below and above."""
    low, high = _limits(intervals, loader)
    return [
        [share - end for share, end in zip(shares, low, strict=True)],
        [end - share for share, end in zip(shares, high, strict=True)],
    ]


def _use_logit_axes(axes: Axes, xs: Sequence[float], ys: Sequence[float]) -> None:
    """Logit scales with percent labels, and the line of equal values where it passes through."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

    axes.set_xscale("logit")
    axes.set_yscale("logit")
    for axis, values, limit in ((axes.xaxis, xs, axes.set_xlim), (axes.yaxis, ys, axes.set_ylim)):
        low, high = _padded_limits(values)
        limit(low, high)
        axis.set_major_locator(FixedLocator(_percent_ticks(low, high)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g} %"))
        axis.set_minor_locator(NullLocator())
        axis.set_minor_formatter(NullFormatter())
    low, high = max(axes.get_xlim()[0], axes.get_ylim()[0]), min(axes.get_xlim()[1], axes.get_ylim()[1])
    if low < high:
        axes.plot([low, high], [low, high], color=_GREY, linestyle=":", linewidth=1, zorder=0, label="equal on both")


def _padded_limits(values: Sequence[float]) -> tuple[float, float]:
    low, high = (math.log(value / (1 - value)) for value in (min(values), max(values)))
    margin = max(0.08 * (high - low), 0.05)
    return tuple(1 / (1 + math.exp(-end)) for end in (low - margin, high + margin))  # type: ignore[return-value]


def _percent_ticks(low: float, high: float) -> list[float]:
    """About five round percentages."""
    for step in (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2):
        first = math.ceil(low / step)
        ticks = [step * index for index in range(first, math.floor(high / step) + 1)]
        if len(ticks) <= 6:
            return [tick for tick in ticks if 0 < tick < 1]
    return [0.5]
