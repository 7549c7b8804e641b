"""What the figure of accuracy against latency shows."""

import dataclasses
import io
import math
from itertools import combinations

import pytest

from lightning_robust.deployment.engines.latency import Latency
from lightning_robust.deployment.parity.latency import LatencyPoint
from lightning_robust.deployment.report.latency_figure import draw_latency

from ..reports import measured, report


def timed(px, ms, p99=None):
    return dataclasses.replace(measured(px), latency=Latency(ms / 1e3, (p99 or ms) / 1e3, 100, 1))


def point(px, ms, kept):
    return LatencyPoint("openvino-int8", px, Latency(ms / 1e3, ms / 1e3, 100, 1), kept)


def test_a_point_for_each_timed_target_a_whisker_and_the_front():
    targets = {
        "onnxruntime-fp32": timed(1e-4, 4.0, 5.0),
        "openvino-int8": timed(0.5, 1.0),
        "torch-fp32": timed(1e-4, 8),
    }
    figure = draw_latency(report(targets=targets | {"emulated-fp16": measured(0.3)}))
    (axes,) = figure.axes
    lines = [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines]
    assert lines[0] == ([1.0, 4.0], [0.5, 1e-4])  # neither has a point that is faster and nearer
    assert ([4.0, 5.0], [1e-4, 1e-4]) in lines
    assert [text.get_text() for text in axes.figure.legends[0].get_texts()] == list(targets)
    assert axes.get_xlabel().replace("\n", " ") == "ms for a batch of 1: median, and 99th percentile"


def test_keep_lists_are_joined_and_named_and_stand_for_their_target():
    lists = tuple(point(px, ms, kept) for px, ms, kept in ((0.5, 1.0, 0), (0.2, 1.1, 1), (0.01, 2.0, 7)))
    targets = {"onnxruntime-fp32": timed(1e-4, 4.0), "openvino-int8": timed(0.51, 1.02)}
    (axes,) = draw_latency(report(targets=targets, trade_off=lists)).axes
    assert [text.get_text() for text in axes.texts if text.get_text()] == ["0 kept", "1 kept", "7 kept"]
    joined = [line for line in axes.lines if line.get_linestyle() == ":" and len(line.get_xdata())]
    assert [(list(line.get_xdata()), list(line.get_ydata())) for line in joined] == [
        ([1.0, 1.1, 2.0], [0.5, 0.2, 0.01])
    ]


@pytest.mark.parametrize("spread", [0.3, 0.01, 0.0])
def test_labels_do_not_lie_on_each_other_nor_on_points(spread):
    """Of nine lists that lie close together, or all in one place."""
    lists = tuple(point(0.5 * (1 + spread * k), 1 + spread * k / 3, k) for k in range(9))
    figure = draw_latency(report(targets={"onnxruntime-fp32": timed(1e-4, 4.0)}, trade_off=lists))
    (axes,) = figure.axes
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in axes.texts if text.get_text()]
    assert len(boxes) == 9
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    places = axes.transData.transform([(1e3 * each.latency.median, each.distance) for each in lists])
    assert not any(box.contains(*place) for box in boxes for place in places)
    assert all(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1 for box in boxes)


def test_a_distance_of_zero_is_drawn_and_an_infinite_one_is_not():
    figure = draw_latency(
        report(targets={"a-fp32": timed(0.0, 1.0), "b-fp32": timed(0.1, 2.0), "c-fp32": timed(math.inf, 3)})
    )
    figure.savefig(io.BytesIO(), format="svg")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a-fp32", "b-fp32"]


def test_nothing_is_drawn_where_nothing_can_be_compared():
    assert draw_latency(report()) is None
    assert draw_latency(report(targets={"onnxruntime-fp32": timed(1e-4, 4.0)})) is None
