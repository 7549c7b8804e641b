"""What the figures of the layers show."""

import io
import itertools
import math

import pytest

from lightning_robust.deployment.report.layer_figure import draw_costs, draw_drift

from ..reports import layers, node


def test_layers_are_ranked_and_lost_values_marked():
    found = layers(node("a", 0.1), node("b", 0.3, overflow=0.25), node("c", 0.0))
    (costs,), (drift,) = draw_costs(found).axes, draw_drift(found).axes
    assert [label.get_text() for label in costs.get_yticklabels()] == ["neck.a Pow", "neck.b Pow"]
    assert [bar.get_width() for bar in costs.patches] == [0.1, 0.3]
    assert list(drift.lines[1].get_xdata()) == [2]
    assert [text.get_text() for text in drift.figure.legends[0].get_texts()] == ["infinite or NaN"]


def test_the_largest_drift_is_named_by_its_number_and_place():
    found = layers(*(node(name, 0.1) for name in "abc"))
    object.__setattr__(found.nodes[1].trace, "drift", 0.065)
    (axes,) = draw_drift(found).axes
    assert [text.get_text() for text in axes.texts] == ["2: neck.b Pow, 6.5 %"]
    assert list(axes.lines[1].get_xdata()) == [2]


def test_nodes_that_were_not_measured_are_left_out_with_a_note():
    found = layers(node("a", None, exact=False), node("b", 0.3), complete=False)
    (costs,) = draw_costs(found).axes
    assert [label.get_text() for label in costs.get_yticklabels()] == ["neck.b Pow"]
    assert costs.get_xlabel().replace("\n", " ") == "x px (99th percentile); 1 of 2 nodes were not measured"
    assert len(draw_drift(found).axes[0].lines[0].get_xdata()) == 2


def test_pale_bars_have_a_legend():
    figure = draw_costs(layers(node("a", 0.1), node("b", 0.3, exact=False), node("c", 0.2, exact=False)))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        *("alone", "at most: together with its neighbours")
    ]
    assert draw_costs(layers(node("a", 0.1))).legends == []


def test_an_infinite_cost_is_a_bar_that_says_so():
    (costs,) = draw_costs(layers(node("a", math.inf), node("b", 0.3))).axes
    assert [(bar.get_width(), text.get_text()) for bar, text in zip(costs.patches, costs.texts, strict=True)] == [
        *((0.3, "0.3"), (0.3, "infinite"))
    ]


@pytest.mark.parametrize("cost", [2.3e-4, 1.0, 7e5])
def test_ticks_and_values_do_not_touch(cost):
    names = [f"a.very.long.name.of.a.module.{index}" for index in range(12)]
    figure = draw_costs(layers(*(node(name, cost / (index + 1)) for index, name in enumerate(names))))
    figure.draw_without_rendering()
    (axes,) = figure.axes
    ticks = [label.get_window_extent() for label in axes.get_xticklabels() if label.get_text()]
    assert all(one.x1 + 3 <= other.x0 for one, other in itertools.pairwise(ticks))
    assert all(text.get_window_extent().x0 >= 0 for text in axes.get_yticklabels())
    assert all(text.get_window_extent().x1 <= figure.bbox.x1 for text in axes.texts)


def test_names_are_no_mathematics():
    """Matplotlib takes what is between dollars for TeX; these names are none, and are drawn as they are."""
    odd = [r"a$x^{$", r"$\\frac{$", "b$", "c_$d$"]
    found = layers(*(node(name, 0.1) for name in odd))
    object.__setattr__(found, "unit", "x$^{$_px_p99")
    for draw in (draw_costs, draw_drift):
        draw(found).savefig(io.StringIO(), format="svg")
    axes = draw_costs(found).axes[0]
    drawn = [label._preprocess_math(label.get_text()) for label in (*axes.get_yticklabels(), axes.xaxis.label)]
    assert drawn == [(f"neck.{name} Pow", False) for name in odd[::-1]] + [("x$^{$ px (99th percentile)", False)]


def test_a_sweep_of_nothing_and_of_lost_values_alone_is_drawn():
    for nodes in ((), (node("a", math.inf, overflow=1.0),), (node("a", None, exact=False),)):
        for draw in (draw_costs, draw_drift):
            draw(layers(*nodes)).savefig(io.BytesIO(), format="png")
