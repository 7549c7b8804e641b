"""What all figures share: one panel that is readable on a card of 350 pixels, names as they are, ticks apart."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend

WIDTH = 5.8
"""Inches: 580 pixels on TensorBoard's page of images and 696 in a file, 350 on its card."""
FONT = 12.0
"""Points, of all text that is not a title."""
COLOURS = ("#4c78a8", "#f58518", "#e45756", "#72b7b2", "#54a24b", "#b279a2", "#9d755d", "#d4a72c")
"""One a series: told apart in grey, by the colour-blind, and on light and dark pages."""
GREY = "#8a94a0"
PYTORCH_COLOUR, DEPLOYED_COLOUR = "#19d3ff", "#ff4f14"
"""Of what each side found, on pictures."""
_VISIBLE = 0.01  # share of a picture's width below which a deviation is drawn larger than it is
_TIMES = (1, 2, 5, 10, 20, 50, 100)


def panel(height: float = 3.8, title: str = "", *, width: float = WIDTH) -> tuple[Figure, Axes]:
    r"""A figure with one panel, its text in 12 points, without the spines at the top and to the right.

    Ticks lie apart: five at most on an axis, and as plain numbers. Text is taken as it is, see :func:`plain`. Draw a
    second question as a second figure with a tag of its own.

    Args:
        height: In inches, of the figure.
        title: What the figure shows, in words; broken where it is too long for one line.
        width: In inches.

    Example:
        >>> figure, axes = panel(title="Loss in $")
        >>> figure.get_suptitle(), axes.xaxis.label.get_fontsize(), figure.get_size_inches().tolist()
        ('Loss in \\$', 12.0, [5.8, 3.8])
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=FONT)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set_fontsize(FONT)
        axis.set_major_locator(MaxNLocator(5))
        axis.set_major_formatter(lambda value, _: f"{value:.6g}")
    if title:
        _write_title(figure, title)
    return figure, axes


def magnification(largest: float, width: float) -> int:
    """By how much deviations on a picture are drawn larger so that the largest can be seen: the least that does.

    Args:
        largest: Deviation in pixels.
        width: Of the picture, in the same pixels.

    Example:
        >>> magnification(0.3, 256), magnification(10.0, 256), magnification(0.0, 256)
        (10, 1, 1)
    """
    share = largest / (_VISIBLE * width)
    return next((times for times in _TIMES if times * share >= 1), _TIMES[-1]) if largest > 0 else 1


def plain(text: str) -> str:
    r"""A name as matplotlib draws it unchanged, which takes what is between two dollars for mathematics.

    Every word of a user's goes through it: the names of metrics, layers, runs, files and values.

    Example:
        >>> print(plain("price$^{$"))
        price\$^{\$
    """
    return text.replace("$", r"\$")


def name_axes(axes: Axes, x: str = "", y: str = "") -> None:
    """Write what the axes count, the names as they are, in lines that are no longer than the axes.

    Args:
        axes: The panel.
        x: Below it; empty to leave it.
        y: To its left; empty to leave it.
    """
    width, height = axes.figure.get_figure(root=True).get_size_inches()
    if x:
        axes.set_xlabel(plain(textwrap.fill(x, int(7 * width))))
    if y:
        axes.set_ylabel(plain(textwrap.fill(y, int(6.5 * height))))


def add_legend(axes: Axes, columns: int = 2, **options: Any) -> Legend:
    """A legend below the panel, where it covers nothing; the names are taken as they are.

    Args:
        axes: Where marks have labels.
        columns: Names in a row.
        options: Others of matplotlib's legend.
    """
    handles, labels = axes.get_legend_handles_labels()
    settings: dict[str, Any] = {"frameon": False, "fontsize": FONT, "ncols": columns, "loc": "outside lower left"}
    figure = axes.figure
    return figure.legend(handles, [plain(label) for label in labels], **(settings | options))


def use_plain_log_ticks(axes: Axes, which: Literal["x", "y"], per_decade: Sequence[float] = (1, 2, 5)) -> None:
    """Make an axis logarithmic, with ticks that say their value instead of a power of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(10, tuple(per_decade)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def _write_title(figure: Figure, title: str) -> None:
    """A title over the whole figure, in lines that fit its width."""
    letters = int(10.5 * figure.get_figwidth())  # of 12 points
    lines = textwrap.wrap(title, letters)
    figure.suptitle(plain("\n".join(lines)), fontsize=FONT, x=0.01, ha="left")
