"""What the figures of a parity pass show."""

import itertools
import math

import pytest

from lightning_robust.deployment.report.figures import draw_chain

HISTORY = [(0, {"export": 0.1, "fp16": 0.5, "preprocessing": 4.0}), (3, {"export": 0.2, "fp16": 0.25})]


def bars(axes):
    """Label -> (middle, bottom, height) of each bar."""
    return {
        group.get_label(): [(b.get_x() + b.get_width() / 2, b.get_y(), b.get_height()) for b in group]
        for group in axes.containers
    }


def test_causes_are_bars_side_by_side():
    """Percentiles do not add, so every bar begins at zero and none covers another."""
    left, right = draw_chain(HISTORY, "x_px_p99").axes
    assert list(bars(left)) == ["export", "fp16", "preprocessing (median what-if)"]
    assert bars(right)["fp16"] == [(pytest.approx(0.2), 0.0, 0.5), (pytest.approx(1.2), 0.0, 0.25)]
    assert [height for _, _, height in bars(left)["preprocessing (median what-if)"]] == [4.0, 0.0]
    edges = sorted((b.get_x(), b.get_x() + b.get_width()) for group in left.containers for b in group)
    assert all(one[1] <= other[0] + 1e-9 for one, other in itertools.pairwise(edges))
    assert [label.get_text() for label in left.get_xticklabels()] == ["0", "3"]
    assert left.get_ylabel() == "x px (99th percentile)"


def test_infinity_is_a_sign_where_the_bar_would_be():
    left, _ = draw_chain([(0, {"fp16": math.inf})], "rel_l2").axes
    (sign,) = left.texts
    assert (sign.get_text(), sign.get_position()) == ("\u221e", (0.0, 0.0))


def test_many_passes_have_few_ticks():
    axes = draw_chain([(epoch, {"fp16": 1.0}) for epoch in range(100)], "rel_l2").axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == [str(epoch) for epoch in range(0, 100, 7)]
