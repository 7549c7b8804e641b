"""What the figure of the layers shows."""

from lightning_robust.deployment.report.layer_figure import draw_layers

from ..reports import layers, node


def test_layers_are_ranked_and_lost_values_marked():
    figure = draw_layers(layers(node("a", 0.1), node("b", 0.3, overflow=0.25), node("c", 0.0)), "px")
    costs, drift = figure.axes
    assert [label.get_text() for label in costs.get_yticklabels()] == ["neck.a  Pow", "neck.b  Pow"]
    assert [bar.get_width() for bar in costs.patches] == [0.1, 0.3]
    assert list(drift.lines[1].get_xdata()) == [1]
