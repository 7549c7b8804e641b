"""What a criticality map looks like: table, figure, JSON. How it is measured stands elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lightning_robust.callbacks.layer_criticality.measure import CriticalityMap, Row
from lightning_robust.functional.criticality import Verdict
from lightning_robust.statistics import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS: dict[Verdict, str] = {
    "ambient": "#1b7837",
    "critical": "#b2182b",
    "undecided": "#8c6d1f",
    "unchanged": "#8a8a8a",
}
_MOST_NUMBERS = 400
"""Cells of a panel that are labelled with their numbers."""


def scalars(found: CriticalityMap) -> dict[str, float]:
    """What is logged: the metric as trained, how many layers are what, and what each layer keeps."""
    under = "" if found.condition == "clean" else f"{found.condition}/"
    shares = {f"criticality/{under}kept/{row.name}": row.cells[0].kept.value for row in found.rows}
    counts = {f"criticality/{under}{v}": float(len(found.named(v))) for v in ("ambient", "critical")}
    return {
        f"criticality/{under}trained": found.trained,
        **counts,
        **{tag: share for tag, share in shares.items() if math.isfinite(share)},
    }


def table(found: CriticalityMap) -> tuple[list[str], list[list[str]]]:
    """Columns and a line for each layer; the last is the whole network."""
    columns = ["layer", "verdict", "kept at start", f"{found.monitor}, random", *found.labels, "l2", "linf"]
    return columns, [_line(row) for row in (*found.rows, found.whole)]


def summary(found: CriticalityMap) -> str:
    """The verdicts in words."""
    counts = [
        f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} {verdict}"
        for verdict in _COLOURS
        if (names := found.named(verdict))
    ]
    return (
        f"{found.condition}, {found.monitor} {found.trained:.4g} as trained, {found.whole.cells[0].value:.4g} at the "
        f"start; keeping {found.threshold:.0%} of the difference: {'; '.join(counts)}."
    )


def content(found: CriticalityMap) -> dict[str, Any]:
    """All numbers, for a JSON file; what is not finite becomes None."""
    names = ("condition", "monitor", "mode", "threshold", "trained", "evaluations")
    rows = [{**asdict(row), "randomised": asdict(row.randomised)} for row in (*found.rows, found.whole)]
    return _plain({**{name: getattr(found, name) for name in names}, "labels": found.labels, "rows": rows})


def draw(maps: Sequence[CriticalityMap]) -> Figure:
    """Heat maps, layers from top to bottom: the metric under each condition, and the two distances to the start.

    Colours of the former say which share of what training gained is kept, and so mean the same for every metric.

    Args:
        maps: Of one network; the first gives the verdicts.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    first = maps[0]
    rows = [*first.rows, first.whole]
    columns = len(first.labels)
    margin = 0.075 * max(len(_short(row.name)) for row in rows)
    wide = margin + 0.5 * (len(maps) * (columns + 1.3) + 2 * columns) + 0.9 * (len(maps) + 2)
    figure = Figure(figsize=(max(wide, 8), max(3.0, min(0.3 * len(rows) + 1.8, 40))), layout="constrained")
    ratios = [columns + 1.3] * len(maps) + [columns, columns]
    axes = figure.subplots(1, len(ratios), width_ratios=ratios, squeeze=False)[0]
    for panel, found in zip(axes, maps, strict=False):
        _metric(panel, found)
    bar = figure.colorbar(axes[len(maps) - 1].images[-1], ax=axes[len(maps) - 1])
    bar.set_label("share of training's gain kept", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    for panel, title, values in (
        (axes[-2], "distance to start, 2-norm / √n", [row.l2 for row in rows]),
        (axes[-1], "distance to start, max-norm", [row.linf for row in rows]),
    ):
        _distance(panel, first, values)
        panel.set_title(title, fontsize=9)
        figure.colorbar(panel.images[-1], ax=panel).ax.tick_params(labelsize=7)
    for panel in axes[1:]:
        panel.set_yticks([])
    axes[0].set_yticks(range(len(rows)), [_short(row.name) for row in rows], fontsize=8)
    for label, row in zip(axes[0].get_yticklabels(), first.rows, strict=False):
        label.set_color(_COLOURS[row.verdict])
    seen = [verdict for verdict in _COLOURS if first.named(verdict)]
    handles = [Patch(color=_COLOURS[verdict], label=_meaning(verdict, first.threshold)) for verdict in seen]
    figure.legend(handles=handles, loc="outside lower left", ncols=len(handles), fontsize=8, frameon=False)
    title = f"One layer put back to fresh random draws, to the start, or to a checkpoint: {first.monitor}"
    figure.suptitle(f"{title} ({first.trained:.4g} as trained)", fontsize=10)
    return figure


def _metric(axes: Axes, found: CriticalityMap) -> None:
    rows = [*found.rows, found.whole]
    numbers = [[row.randomised.value, *(cell.value for cell in row.cells)] for row in rows]
    start, gain = found.whole.cells[0].value, found.trained - found.whole.cells[0].value
    shares = [[_share(value, start, gain) for value in line] for line in numbers]
    axes.imshow(shares, aspect="auto", cmap="viridis", vmin=0, vmax=1)
    _finish(axes, numbers, shares, ["random", *found.labels])
    axes.axvline(0.5, color="white", linewidth=4)
    axes.set_title(
        found.monitor if found.condition == "clean" else f"{found.monitor} under {found.condition}", fontsize=9
    )


def _distance(axes: Axes, found: CriticalityMap, values: list[tuple[float, ...]]) -> None:
    top = max((value for line in values for value in line if math.isfinite(value)), default=1.0) or 1.0
    axes.imshow(values, aspect="auto", cmap="cividis", vmin=0, vmax=top)
    _finish(axes, values, [[value / top for value in line] for line in values], list(found.labels))


def _finish(
    axes: Axes, numbers: Sequence[Sequence[float]], shades: Sequence[Sequence[float]], labels: list[str]
) -> None:
    """Numbers in the cells, names of the columns, and a line above the whole network."""
    if len(numbers) * len(labels) <= _MOST_NUMBERS:
        for y, line in enumerate(numbers):
            for x, value in enumerate(line):
                colour = "black" if shades[y][x] > 0.6 else "white"
                axes.text(x, y, _number(value), ha="center", va="center", fontsize=7, color=colour)
    axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right", rotation_mode="anchor", fontsize=8)
    axes.axhline(len(numbers) - 1.5, color="white", linewidth=4)
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)


def _share(value: float, start: float, gain: float) -> float:
    share = (value - start) / gain if gain else math.nan
    return min(max(share, 0.0), 1.0) if math.isfinite(share) else 0.0


def _meaning(verdict: Verdict, threshold: float) -> str:
    return {
        "ambient": f"ambient: keeps at least {threshold:.0%} put back to the start",
        "critical": f"critical: keeps less than {threshold:.0%} put back to the start",
        "undecided": f"undecided: the 95 % interval holds {threshold:.0%}",
        "unchanged": "unchanged by training",
    }[verdict]


def _line(row: Row) -> list[str]:
    return [
        row.name,
        "" if row.name == "whole network" else row.verdict,
        _interval(row.cells[0].kept),
        _interval(row.randomised),
        *(_number(cell.value) + ("" if cell.seen == 1 else f" ({cell.seen:.0%} seen)") for cell in row.cells),
        f"{row.l2[-1]:.3g}",
        f"{row.linf[-1]:.3g}",
    ]


def _interval(estimate: Estimate) -> str:
    value = _number(estimate.value)
    return value if math.isnan(estimate.low) else f"{value} ({_number(estimate.low)} to {_number(estimate.high)})"


def _number(value: float) -> str:
    return f"{value:.3f}" if 0.0995 <= abs(value) < 10 else f"{value:.2g}"


def _short(name: str) -> str:
    return name if len(name) <= 28 else "..." + name[-25:]


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value
