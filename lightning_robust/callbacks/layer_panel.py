"""A panel with the layers of a network from top to bottom, in the order of the computation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lightning_robust.figures import panel, plain
from lightning_robust.tables import shorten, without_common

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAME_WIDTH = 18
"""Letters of a layer's name that fit beside a panel."""
_FEWEST, _MOST_NAMED = 4, 24
_ROW, _REST = 0.25, 2.3
"""Inches: of a layer, or a line of a legend, and of all else."""


def layer_panel(names: Sequence[str], title: str, lines: int = 0) -> tuple[Figure, Axes]:
    """A panel with a row for each layer, the first on top; of many, some and the last are named.

    What all names begin with is left out.

    Args:
        names: Of the layers.
        title: What the figure shows, in words.
        lines: Of a legend beyond two.

    Example:
        >>> figure, axes = layer_panel(["backbone.conv1", "head"], "Two layers")
        >>> [label.get_text() for label in axes.get_yticklabels()], [float(end) for end in axes.get_ylim()]
        (['backbone.conv1', 'head'], [1.6, -0.6])
    """
    count = len(names)
    figure, axes = panel(_ROW * (min(max(count, _FEWEST), _MOST_NAMED) + lines) + _REST, title)
    step, known = -(-count // _MOST_NAMED), without_common(names, ".")
    named = [*range(0, count - step, step), count - 1]
    axes.set_yticks(named, [plain(shorten(known[index], NAME_WIDTH)) for index in named])
    axes.set_ylim(count - 0.4, -0.6)
    return figure, axes
