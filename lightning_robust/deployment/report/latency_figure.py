"""The figure of accuracy against latency: targets and keep lists, and the ones that no other is better than."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from lightning_robust.deployment.parity.latency import LatencyPoint, latency_points, pareto
from lightning_robust.deployment.parity.result import ParityReport
from lightning_robust.deployment.parity.scale import unit_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

_COLOURS = ("#4c78a8", "#f58518", "#e45756", "#72b7b2", "#54a24b", "#b279a2", "#9d755d", "#eeca3b")
_FRONT, _TEXT = "#b3b3b3", "#1b1f24"
_LEAST = 1e-12  # of an axis that cannot show zero
_GAPS = (9, 22, 36, 52, 70, 90)  # points


def draw_latency(report: ParityReport) -> Figure | None:
    """Draw the distance of each timed target against its median latency, with a whisker to the 99th percentile.

    Points of one target under several keep lists are joined, and say how many nodes each keeps; those that no other is
    better than lie on the grey line.

    Args:
        report: A parity pass that was timed.

    Returns:
        The figure; None with fewer than two points, of which nothing can be compared.
    """
    points = latency_points(report)
    return _draw(points, unit_label(report.unit)) if len(points) > 1 else None


def _draw(points: Sequence[LatencyPoint], unit: str) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    figure = Figure(figsize=(9, 4.6))
    FigureCanvasAgg(figure)  # labels are measured, to be kept apart
    axes = figure.add_axes((0.09, 0.13, 0.7, 0.78))
    _draw_points(axes, points)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(0.18, 0.15)
    batches = sorted({point.latency.batch for point in points})
    axes.set_xlabel(f"milliseconds for a batch of {' or '.join(map(str, batches))}: median, and 99th percentile")
    axes.set_ylabel(unit, parse_math=False)
    axes.set_title("Accuracy against latency: none is both faster and nearer than those on the grey line", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    _write_counts(axes, points)
    return figure


def _draw_points(axes: Axes, points: Sequence[LatencyPoint]) -> None:
    axes.plot(*_places(pareto(points)), color=_FRONT, linewidth=3, zorder=1)
    targets = list(dict.fromkeys(point.target for point in points))
    for index, target in enumerate(targets):
        ours = [point for point in points if point.target == target]
        _draw_target(axes, ours, _COLOURS[index % len(_COLOURS)])


def _draw_target(axes: Axes, points: Sequence[LatencyPoint], colour: str) -> None:
    """The points of one target; those of keep lists are joined."""
    axes.plot(*_places([point for point in points if point.kept is not None]), ":", color=colour, linewidth=1)
    for point in points:
        axes.plot([_x(point), 1e3 * point.latency.p99], [_y(point)] * 2, color=colour, linewidth=1, alpha=0.5)
    axes.plot(*_places(points), "o", color=colour, markersize=7, zorder=3, label=points[0].target)


def _write_counts(axes: Axes, points: Sequence[LatencyPoint]) -> None:
    """Write how many nodes a point of a keep list keeps, beside it, or further away with a line to it."""
    axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())  # or the labels widen the axes and the places move
    places = [tuple(axes.transData.transform((_x(point), _y(point)))) for point in points]
    taken = [_around(x, y) for x, y in places]
    for point in (point for point in points if point.kept is not None):
        label = axes.annotate(
            f"{point.kept} kept",
            (_x(point), _y(point)),
            xytext=(0, 0),
            textcoords="offset points",
            fontsize=8,
            color=_TEXT,
        )
        box = min((_moved(label, *offset) for offset in _offsets()), key=lambda found: _overlap(found[0], taken, axes))
        _moved(label, *box[1])
        taken.append(box[0])
        if max(map(abs, box[1])) > _GAPS[0]:
            axes.annotate(
                "",
                (_x(point), _y(point)),
                xytext=box[1],
                textcoords="offset points",
                arrowprops={"arrowstyle": "-", "color": _FRONT, "linewidth": 0.7},
            )


def _offsets() -> Iterator[tuple[int, int]]:
    """Places for a label in points, the nearest first: right, left, above and below."""
    for gap in _GAPS:
        yield from ((gap, 2), (-gap, 2), (0, gap), (0, -gap), (gap, gap), (-gap, gap), (gap, -gap), (-gap, -gap))


def _moved(label: Annotation, right: int, up: int) -> tuple[Bbox, tuple[int, int]]:
    """The box that a label takes at an offset, in pixels, and the offset."""
    label.set_position((right, up))
    label.set_horizontalalignment("left" if right > 0 else "right" if right < 0 else "center")
    return label.get_window_extent(), (right, up)


def _overlap(box: Bbox, taken: Sequence[Bbox], axes: Axes) -> float:
    """How many pixels of a box lie on others or outside of the figure."""
    from matplotlib.transforms import Bbox

    shared = [Bbox.intersection(box, other) for other in taken]
    inside = Bbox.intersection(box, axes.figure.bbox)
    outside = box.width * box.height - (0.0 if inside is None else inside.width * inside.height)
    return outside + sum(each.width * each.height for each in shared if each is not None)


def _around(x: float, y: float) -> Bbox:
    from matplotlib.transforms import Bbox

    return Bbox.from_extents(x - 5, y - 5, x + 5, y + 5)


def _places(points: Sequence[LatencyPoint]) -> tuple[list[float], list[float]]:
    return [_x(point) for point in points], [_y(point) for point in points]


def _x(point: LatencyPoint) -> float:
    return 1e3 * point.latency.median


def _y(point: LatencyPoint) -> float:
    return max(point.distance, _LEAST)
