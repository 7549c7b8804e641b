"""The figure of accuracy against latency: targets and keep lists, and the ones that no other is better than."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from lightning_robust.deployment.parity.latency import LatencyPoint, latency_points, pareto
from lightning_robust.deployment.parity.result import ParityReport
from lightning_robust.deployment.parity.scale import unit_label
from lightning_robust.figures import COLOURS, FONT, add_legend, name_axes, panel, use_plain_log_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

_FRONT = "#b3b3b3"
_WIDE = 30.0  # times, beyond which an axis names powers of ten alone
_LEAST = 1e-12  # of an axis that cannot show zero
_GAPS = (10, 26, 44, 62, 80, 100)  # points


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
    figure, axes = panel(4.6, "Accuracy against latency: no target is both faster and nearer than the grey line")
    _draw_points(axes, points)
    for which in ("x", "y"):
        _scale_logarithmically(axes, which)
    axes.margins(0.18, 0.2)
    batches = sorted({point.latency.batch for point in points})
    name_axes(axes, f"ms for a batch of {' or '.join(map(str, batches))}: median, and 99th percentile", unit)
    add_legend(axes)
    figure.draw_without_rendering()  # labels are measured where the panel lies, to be kept apart
    _write_counts(axes, points)
    return figure


def _scale_logarithmically(axes: Axes, which: Literal["x", "y"]) -> None:
    """A logarithmic axis that names powers of ten alone where it has several."""
    use_plain_log_ticks(axes, which)
    low, high = (axes.get_xlim if which == "x" else axes.get_ylim)()
    if high / low > _WIDE:
        use_plain_log_ticks(axes, which, (1,))


def _draw_points(axes: Axes, points: Sequence[LatencyPoint]) -> None:
    axes.plot(*_places(pareto(points)), color=_FRONT, linewidth=3, zorder=1)
    targets = list(dict.fromkeys(point.target for point in points))
    for index, target in enumerate(targets):
        ours = [point for point in points if point.target == target]
        _draw_target(axes, ours, COLOURS[index % len(COLOURS)])


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
            fontsize=FONT - 1,
            in_layout=False,
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
                in_layout=False,
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
