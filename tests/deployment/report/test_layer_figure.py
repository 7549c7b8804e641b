"""What the figure of the layers shows."""

import io
import math

from lightning_robust.deployment.report.layer_figure import draw_layers

from ..reports import layers, node


def test_layers_are_ranked_and_lost_values_marked():
    figure = draw_layers(layers(node("a", 0.1), node("b", 0.3, overflow=0.25), node("c", 0.0)), "px")
    costs, drift = figure.axes
    assert [label.get_text() for label in costs.get_yticklabels()] == ["neck.a  Pow", "neck.b  Pow"]
    assert [bar.get_width() for bar in costs.patches] == [0.1, 0.3]
    assert list(drift.lines[1].get_xdata()) == [1]


def test_nodes_that_were_not_measured_are_left_out_with_a_note():
    costs, drift = draw_layers(layers(node("a", None, exact=False), node("b", 0.3), complete=False), "px").axes
    assert [label.get_text() for label in costs.get_yticklabels()] == ["neck.b  Pow"]
    assert costs.get_xlabel() == "px\n1 of 2 nodes were not measured"
    assert len(drift.lines[0].get_xdata()) == 2


def test_an_infinite_cost_is_a_bar_that_says_so():
    costs, _ = draw_layers(layers(node("a", math.inf), node("b", 0.3)), "px").axes
    assert [(bar.get_width(), text.get_text()) for bar, text in zip(costs.patches[1:], costs.texts, strict=True)] == [
        (0.3, "infinite")
    ]
    assert [text.get_position()[1] for text in costs.texts] == [1]


def test_names_are_no_mathematics():
    """Matplotlib takes what is between dollars for TeX; these names are none, and are drawn as they are."""
    odd = [r"a$x^{$", r"$\\frac{$", "b$", "c_$d$"]
    figure = draw_layers(layers(*(node(name, 0.1) for name in odd)), "x$^{$ px")
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg")
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [
        f"neck.{name}  Pow" for name in odd[::-1]
    ]
    assert figure.axes[0].get_xlabel() == "x$^{$ px"


def test_a_sweep_of_nothing_and_of_lost_values_alone_is_drawn():
    for nodes in ((), (node("a", math.inf, overflow=1.0),), (node("a", None, exact=False),)):
        draw_layers(layers(*nodes), "px").savefig(io.BytesIO(), format="png")
