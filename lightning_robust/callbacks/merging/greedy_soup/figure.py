"""The figure of a greedy soup: the score of each ingredient, and of the soup as it grew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lightning_robust.functional.soups import Soup
from lightning_robust.tables import shorten

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_INSIDE, _OUTSIDE, _SOUP = "#3b6fb6", "#8a8a8a", "#e08214"


def draw_soup(soup: Soup, labels: Sequence[str], monitor: str, mode: str) -> Figure:
    """Ingredients in the order of their trials with their scores, and the score of the soup after each trial.

    Args:
        soup: The soup.
        labels: Name of each ingredient.
        monitor: Name of the score.
        mode: ``"max"`` or ``"min"``.
    """
    from matplotlib.figure import Figure

    order = _order(soup)
    figure = Figure(figsize=(max(6.0, 0.7 * len(order) + 2.5), 4.2), layout="constrained")
    axes = figure.subplots()
    for inside, colour, name in ((True, _INSIDE, "ingredient in the soup"), (False, _OUTSIDE, "ingredient left out")):
        points = [(x, soup.scores[index]) for x, index in enumerate(order) if (index in soup.ingredients) is inside]
        axes.scatter([x for x, _ in points], [score for _, score in points], color=colour, zorder=3, label=name)
    course = _scores_so_far(soup, order[0])
    if len(course) > 1:
        axes.step(range(len(course)), course, where="post", color=_SOUP, linewidth=2, label="soup so far")
    if soup.score is not None:
        axes.axhline(soup.score, color=_SOUP, linestyle="--", linewidth=1, label=f"soup: {soup.score:.5g}")
    names = [shorten(labels[index]) for index in order]
    axes.set_xticks(range(len(order)), names, rotation=35, ha="right", fontsize=8)
    axes.set_ylabel(f"{monitor} ({'higher' if mode == 'max' else 'lower'} is better)")
    axes.set_title(f"{len(soup.ingredients)} of {len(labels)} ingredients")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize=8, loc="best")
    return figure


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
