"""The figure of a greedy soup: the score of each ingredient, and of the soup as it grew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lightning_robust.figures import add_legend, panel, plain
from lightning_robust.functional.soups import Soup
from lightning_robust.tables import number, shorten, without_common

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_INSIDE, _OUTSIDE, _SOUP = "#4c78a8", "#8a94a0", "#f58518"
_MOST_NAMED = 30
_ROW, _REST = 0.25, 2.2
"""Inches: of an ingredient, and of all else."""


def draw_soup(soup: Soup, labels: Sequence[str], monitor: str, mode: str) -> Figure:
    """Ingredients from top to bottom in the order of their trials, and the score of the soup after each trial.

    Args:
        soup: The soup.
        labels: Name of each ingredient.
        monitor: Name of the score.
        mode: ``"max"`` or ``"min"``.
    """
    order = _order(soup)
    figure, axes = panel(_ROW * min(len(order), _MOST_NAMED) + _REST, _tell_soup(soup, labels, mode))
    for inside, colour, marker, name in (
        (True, _INSIDE, "o", "ingredient in the soup"),
        (False, _OUTSIDE, "X", "ingredient left out"),
    ):
        points = [(soup.scores[index], y) for y, index in enumerate(order) if (index in soup.ingredients) is inside]
        if points:
            axes.scatter(
                [x for x, _ in points], [y for _, y in points], color=colour, marker=marker, s=50, zorder=3, label=name
            )
    course = _scores_so_far(soup, order[0])
    if len(course) > 1:
        # down to the next ingredient, then across to the score with it
        axes.step(course, range(len(course)), where="pre", color=_SOUP, linewidth=2, label="soup so far")
    if soup.score is not None:
        axes.axvline(soup.score, color=_SOUP, linestyle="--", linewidth=1.2, label=f"soup: {number(soup.score, 4)}")
    named = range(0, len(order), -(-len(order) // _MOST_NAMED))
    known = without_common(labels, "/", end=True)
    axes.set_yticks(list(named), [plain(shorten(known[order[y]], 20)) for y in named])
    axes.set_ylim(len(order) - 0.4, -0.6)
    better = {"max": "higher", "min": "lower"}[mode]
    axes.set_xlabel(plain(f"{shorten(monitor)} ({better} is better)"))
    axes.grid(axis="x", alpha=0.3)
    add_legend(axes)
    return figure


def _tell_soup(soup: Soup, labels: Sequence[str], mode: str) -> str:
    """How many ingredients are in it, and what they bring."""
    text = f"A soup of {len(soup.ingredients)} of {len(labels)} ingredients"
    if soup.score is None:
        return text
    best = (max if mode == "max" else min)(soup.scores)
    gain = (soup.score - best) * (1 if mode == "max" else -1)
    if gain == 0:
        return f"{text} is as good as the best alone"
    return f"{text} is {number(abs(gain), 2)} {'better' if gain > 0 else 'worse'} than the best alone"


def _order(soup: Soup) -> list[int]:
    """The ingredients in the order of their trials, the one that the soup began with first.

    Of a recipe without trials, the ingredients in their own order.
    """
    tried = [trial.ingredient for trial in soup.trials if not trial.dropped]
    return [index for index in range(len(soup.scores)) if index not in tried] + tried if tried else soup.ingredients


def _scores_so_far(soup: Soup, first: int) -> list[float]:
    """The score of the soup that begins with an ingredient, and after each trial of an addition."""
    scores = [soup.scores[first]]
    for trial in soup.trials:
        if not trial.dropped:
            scores.append(trial.score if trial.accepted and trial.score is not None else scores[-1])
    return scores
