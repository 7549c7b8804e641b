"""What every figure keeps: names as they are, ticks that lie apart, a card that is readable."""

import io
import itertools

import pytest
from PIL import Image

from lightning_robust.figures import FONT, add_legend, panel, plain, use_plain_log_ticks

ODD = ["a$x^{$", r"$\frac{$", "b$", "c_$d$", r"\$", "plain"]


def drawn(figure):
    figure.draw_without_rendering()
    return figure


@pytest.mark.parametrize("name", ODD)
def test_names_are_no_mathematics(name):
    """Wherever a name may stand: matplotlib would raise on half of these, and lose the dollars of the others."""
    figure, axes = panel(title=f"Title of {name}")
    axes.plot([0, 1], label=name)
    axes.set_xlabel(plain(name))
    text = axes.text(0, 0, plain(name))
    add_legend(axes)
    figure.savefig(io.BytesIO(), format="svg")
    assert text._preprocess_math(text.get_text()) == (name, False)


@pytest.mark.parametrize(("low", "high"), [(0, 2.3e-4), (0, 1), (-1e-7, 3e-7), (1.00001, 1.00002), (0, 123456)])
def test_ticks_do_not_touch_each_other(low, high):
    figure, axes = panel()
    axes.plot([low, high], [low, high])
    boxes = [label.get_window_extent() for label in drawn(figure).axes[0].get_xticklabels() if label.get_text()]
    assert 2 <= len(boxes) <= 7
    assert all(one.x1 + 4 <= other.x0 for one, other in itertools.pairwise(boxes))


def test_a_panel_fits_a_card():
    """At most 700 pixels in TensorBoard and in a file, all text of 12 points, nothing outside of the picture."""
    figure, axes = panel(title="A title that is so long that it needs more than the one line that a figure is wide")
    axes.plot([0, 1], label="one")
    axes.plot([1, 0], label="another")
    legend = add_legend(axes)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=120)
    assert Image.open(stream).width == 696
    assert figure.get_suptitle().count("\n") == 1
    texts = [*axes.get_xticklabels(), *axes.get_yticklabels(), *legend.get_texts()]
    assert {text.get_fontsize() for text in texts} == {FONT}
    box = figure.get_tightbbox().transformed(figure.dpi_scale_trans)
    assert min(box.x0, box.y0) >= 0
    assert box.x1 <= figure.bbox.x1
    assert box.y1 <= figure.bbox.y1


def test_log_ticks_say_their_value():
    figure, axes = panel()
    axes.plot([0.02, 30], [1, 2])
    use_plain_log_ticks(axes, "x", (1,))
    texts = [label.get_text() for label in drawn(figure).axes[0].get_xticklabels()]
    assert {"0.1", "1", "10"} <= set(texts)
