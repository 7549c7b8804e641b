"""Whether a figure can be read, asked of the picture itself: every word is where it was drawn, whole, and by itself."""

import itertools

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import Collection
from matplotlib.legend import Legend
from matplotlib.text import Text

MOST_PIXELS = 700
LEAST_POINTS = 12


def check_figure(figure):
    """One panel of at most 700 pixels; words of 12 points that are inside, level and apart; a legend for every mark."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    width, height = canvas.get_width_height()
    assert width <= MOST_PIXELS, width
    assert len(panels(figure)) == 1, figure.axes
    words = words_of(figure)
    assert words
    boxes = {text: text.get_window_extent(renderer) for text in words}
    for text, box in boxes.items():
        said = text.get_text()
        assert text.get_fontsize() >= LEAST_POINTS, (said, text.get_fontsize())
        assert box.x0 >= -1, (said, box)
        assert box.y0 >= -1, (said, box)
        assert box.x1 <= width + 1, (said, box, width)
        assert box.y1 <= height + 1, (said, box, height)
        # a label along the vertical axis stands upright, nothing else is turned
        assert text.get_rotation() == 0 or text in upright(figure), said
        assert text.get_parse_math() is False or said.replace(r"\$", "").count("$") == 0, said
    for (one, box), (other, other_box) in itertools.combinations(boxes.items(), 2):
        assert apart(box, other_box), (one.get_text(), other.get_text())
    check_legend(figure)


def panels(figure):
    """The axes that show data, which scales of colours do not."""
    return [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]


def check_legend(figure):
    """The legend names each labelled mark once, and nothing that is not drawn; two marks have no common look."""
    (axes,) = panels(figure)
    labels = axes.get_legend_handles_labels()[1]
    legends = figure.findobj(Legend)
    shown = [text.get_text().replace(r"\$", "$") for legend in legends for text in legend.get_texts()]
    if labels or shown:
        assert sorted(set(labels)) <= sorted(shown), (labels, shown)
        assert len(shown) == len(set(shown)), shown
    unnamed = [line for line in axes.lines if line.get_label().startswith("_") and line.get_label() != "_guide"]
    assert not unnamed or not shown, unnamed
    for line in axes.lines:
        assert any(inside(axes, *point) for point in zip(line.get_xdata(), line.get_ydata(), strict=True)), line
    for mark in (*axes.lines, *(each for each in axes.collections if isinstance(each, Collection))):
        assert mark.get_visible(), mark


def words_of(figure):
    """All text that is seen: matplotlib keeps ticks beyond the limits of their axis too."""
    found = [*figure.texts, *(text for legend in figure.findobj(Legend) for text in legend.findobj(Text))]
    found += [figure._suptitle] if figure._suptitle else []
    for axes in figure.axes:
        found += [*axes.texts, axes.title]
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            slack = 1e-6 * (high - low)
            ticks = [tick for tick in axis.get_major_ticks() if low - slack <= tick.get_loc() <= high + slack]
            found += [axis.label, axis.offsetText, *(side for tick in ticks for side in (tick.label1, tick.label2))]
    return [text for text in dict.fromkeys(found) if text.get_visible() and text.get_text().strip()]


def inside(axes, x, y):
    """Whether a point is within the limits; a line across the panel has its other coordinate in shares of it."""
    return all(
        low <= value <= high or value in (0, 1)
        for value, (low, high) in ((x, sorted(axes.get_xlim())), (y, sorted(axes.get_ylim())))
    )


def upright(figure):
    """The labels of vertical axes."""
    return [axes.yaxis.label for axes in figure.axes]


def apart(one, other):
    """Whether two boxes share no more than their edges."""
    return min(one.x1, other.x1) - max(one.x0, other.x0) <= 0.5 or min(one.y1, other.y1) - max(one.y0, other.y0) <= 0.5
