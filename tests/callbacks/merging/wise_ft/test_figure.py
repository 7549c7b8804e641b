import math

import pytest

from lightning_robust.callbacks.merging.wise_ft.curve import AlphaCurve
from lightning_robust.callbacks.merging.wise_ft.figure import draw_wise_ft

ALPHAS = [0.0, 0.5, 1.0]
SHARES = [[0.6, 0.9, 0.5], [0.8, 0.85, 0.6], [0.9, 0.7, 0.55]]


def panels(values, samples=(), mode="max"):
    names = ["acc", "acc, night", "acc, rain"][: len(values[0])]
    return draw_wise_ft(AlphaCurve(ALPHAS, names, values, samples), 0.5, "acc", mode).axes


def test_a_panel_for_each_shifted_loader_holds_the_curve():
    axes = panels(SHARES)
    assert [panel.get_ylabel() for panel in axes] == ["acc, acc, night", "acc, acc, rain"]
    for loader, panel in enumerate(axes, 1):
        assert panel.lines[0].get_xydata().tolist() == [[row[0], row[loader]] for row in SHARES]
        assert (panel.get_xscale(), panel.get_yscale()) == ("logit", "logit")
    (alone,) = panels([[row[0]] for row in SHARES])
    assert alone.lines[0].get_xydata().tolist() == [[row[0]] * 2 for row in SHARES]


def test_losses_are_drawn_on_linear_axes_without_intervals():
    (panel,) = panels([[2.0, 3.0], [1.0, 2.5], [0.5, 4.0]], samples=[100, 100], mode="min")
    assert (panel.get_xscale(), panel.get_yscale()) == ("linear", "linear")
    assert not panel.containers


def test_intervals_are_those_of_a_share():
    """Of 100 samples a share of 0.8 has a half width of 1.96 sqrt(0.8 * 0.2 / 100) = 0.0784."""
    panel = panels([row[:2] for row in SHARES], samples=[100, 400])[0]
    _, _, (horizontal, vertical) = panel.containers[0]
    (left, _), (right, _) = horizontal.get_segments()[1]
    assert (right - left) / 2 == pytest.approx(1.96 * math.sqrt(0.8 * 0.2 / 100))
    (_, low), (_, high) = vertical.get_segments()[1]
    assert (high - low) / 2 == pytest.approx(1.96 * math.sqrt(0.85 * 0.15 / 400))
    assert not panels([row[:2] for row in SHARES], samples=[100])[0].containers
