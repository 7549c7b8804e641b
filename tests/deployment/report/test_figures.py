"""What the figures of a parity pass show."""

import dataclasses
import io
import itertools
import math

import pytest

from lightning_robust.deployment.parity.links import Basis
from lightning_robust.deployment.report.figures import draw_chain, draw_families, draw_history
from lightning_robust.figures import FONT

from ..reports import link, measured, report

HISTORY = [(0, {"export": 0.1, "fp16": 0.5, "preprocessing": 4.0}), (3, {"export": 0.2, "fp16": 0.25})]
WHAT_IFS = {
    "crop": {"x_px_p99": 9.0, "x_px_mean": 4.0, "beyond_geometry": 1.0},
    "letterbox": {"x_px_p99": 9.0, "x_px_mean": 8.0, "beyond_geometry": 0.5},
    "bgr": {"x_px_p99": 4.2, "x_px_mean": 2.0},
    "gamma_09": {"x_px_p99": 0.2, "x_px_mean": 0.1},
}


def texts(figure):
    """All words of a figure, as they are drawn: ticks beyond the ends of an axis are not."""
    figure.draw_without_rendering()
    (axes,) = figure.axes
    found = [figure._suptitle, axes.xaxis.label, axes.yaxis.label, *axes.texts]
    for axis in (axes.xaxis, axes.yaxis):
        low, high = sorted(axis.get_view_interval())
        found += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    found += [text for legend in figure.legends for text in legend.get_texts()]
    return [text for text in found if text.get_text().strip()]


@pytest.fixture(params=["chain", "history", "families"])
def figure(request):
    full = report(sensitivity=WHAT_IFS)
    draws = {
        "chain": lambda: draw_chain(full),
        "history": lambda: draw_history(HISTORY, "x_px_p99"),
        "families": lambda: draw_families(full),
    }
    return draws[request.param]()


def test_a_figure_is_one_panel_for_a_card(figure):
    """580 pixels, 11 points at least, so 7 on a card of 350 pixels; no word turned but an axis' own, none outside."""
    (axes,) = figure.axes
    assert figure.get_size_inches()[0] == 5.8
    for text in texts(figure):
        assert text.get_fontsize() >= FONT - 1
        assert text.get_rotation() == 0 or text is axes.yaxis.label
        box = text.get_window_extent()
        assert -1 <= box.x0 < box.x1 <= figure.bbox.x1 + 1, text.get_text()


def test_no_word_lies_on_another(figure):
    """Titles, ticks, labels and values; letters of neighbours may touch by two pixels."""
    boxes = [text.get_window_extent().padded(-1) for text in texts(figure)]
    assert not [pair for pair in itertools.combinations(boxes, 2) if pair[0].overlaps(pair[1])]


def test_links_are_rows_with_their_intervals_and_preprocessing_is_none_of_them():
    chain = (*report().chain, link("preprocessing", "torch-fp32", "torch-fp32 on bgr", 4.0))
    (axes,) = draw_chain(report(chain=chain)).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["fp16", "export to ONNX"]
    points = [line for line in axes.lines if line.get_marker() == "o"]
    assert [(float(p.get_xdata()[0]), float(p.get_ydata()[0])) for p in points] == [(0.3, 0.0), (1e-4, 1.0)]
    spans = [list(line.get_xdata()) for line in axes.lines if line.get_marker() == "None"]
    assert spans == [pytest.approx([0.24, 0.36]), pytest.approx([0.8e-4, 1.2e-4])]
    assert axes.get_xscale() == "log"
    assert axes.get_xlabel() == "x px (99th percentile)"


def test_the_history_has_a_line_for_each_link_that_is_measured():
    figure = draw_history(HISTORY, "x_px_p99")
    (axes,) = figure.axes
    lines = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}
    assert lines == {"export to ONNX": ([0, 3], [0.1, 0.2]), "fp16": ([0, 3], [0.5, 0.25])}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(lines)


def test_what_is_lost_is_said():
    lost = (dataclasses.replace(link("fp16", "a", "emulated-fp16", 1.0), value=math.inf),)
    assert "lost: infinite or NaN" in [text.get_text() for text in draw_chain(report(chain=lost)).axes[0].texts]
    (sign,) = draw_history([(0, {"fp16": math.inf}), (1, {"fp16": 0.1})], "rel_l2").axes[0].texts
    assert (sign.get_text(), sign.get_position()[0]) == ("\u221e", 0)
    gone = {"bgr": {"x_px_p99": math.nan, "x_px_mean": math.nan}}
    assert "lost: infinite or NaN" in [t.get_text() for t in draw_families(report(sensitivity=gone)).axes[0].texts]


def test_many_passes_have_few_ticks():
    axes = draw_history([(epoch, {"fp16": 1.0}) for epoch in range(100)], "rel_l2").axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == [str(epoch) for epoch in range(0, 100, 13)]


def test_families_show_their_worst_in_words_and_every_mark_has_a_legend():
    fp16 = dataclasses.replace(measured(0.3), metrics={"rel_l2": 1e-4, "x_px_p99": 0.3, "x_px_mean": 0.25})
    basis = {"sensitivity/bgr/x_px_mean": Basis(16, 1.5, 2.5)}
    figure = draw_families(report(sensitivity=WHAT_IFS, targets={"emulated-fp16": fp16}, basis=basis))
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["gamma 0.9", "crop of 2 %", "BGR for RGB"]
    assert [bar.get_width() for bar in axes.patches] == [0.1, 4.0, 2.0, 0.1, 1.0, 2.0]
    assert "hypothetical" in figure.get_suptitle()
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {
        *("with the motion of the picture", "by the network alone", "95 % interval", "fp16: 0.25")
    }


def test_nothing_perturbed_and_nothing_linked_is_drawn():
    for figure in (draw_families(report()), draw_chain(report(chain=())), draw_history([], "rel_l2")):
        figure.savefig(io.BytesIO(), format="png")
    assert draw_families(report()).axes[0].texts[0].get_text() == "No preprocessing was perturbed."
