"""Whether ingredients of a soup lie in one basin of the loss: barriers between them, and angles between weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from lightning_robust.functional.averaging import interpolate
from lightning_robust.functional.held_out import Evaluate, HeldOutScorer
from lightning_robust.functional.ingredients import Ingredient, state_of
from lightning_robust.number_types import has_mean, real_parts

_UNRELATED = 0.3


@dataclass(frozen=True)
class Barrier:
    """The weights half way between the best ingredient and another one, compared with both ends.

    Example:
        >>> Barrier(ingredient=2, cosine=0.9, height=-0.01).height < 0  # the middle is better
        True
    """

    ingredient: int
    cosine: float
    """Between the weights (from ``base`` on, where it is given): near 0 for models that share no initialisation."""
    height: float
    """By how much the middle is worse than the mean of both ends; negative where it is better."""


def barriers(
    states: Sequence[Ingredient],
    evaluate: Evaluate,
    scores: Sequence[float],
    *,
    mode: Literal["max", "min"] = "max",
    base: Mapping[str, Tensor] | None = None,
) -> list[Barrier]:
    """The barrier between the best ingredient and each other one; the highest names the one that spoils a soup.

    Costs one evaluation for each ingredient but the best. Without ``base`` the cosine is that of the weights
    themselves, over tensors of two or more dimensions: well above 0 for models fine-tuned from one start, near 0 for
    independent ones.

    Args:
        states: Ingredients.
        evaluate: Held-out score of a state.
        scores: Scores of the ingredients.
        mode: Whether larger or smaller is better.
        base: The initial weights that the ingredients should share.

    Returns:
        One entry for each ingredient but the best, in the given order.

    Raises:
        ValueError: If the ingredients differ.

    Example:
        >>> import torch
        >>> states = [{"w": torch.tensor([[1.0, 1.0]])}, {"w": torch.tensor([[1.0, -1.0]])}]
        >>> barriers(states, lambda state: state["w"].abs().sum().item(), [2.0, 2.0])
        [Barrier(ingredient=1, cosine=0.0, height=1.0)]
    """
    scorer = HeldOutScorer(evaluate, mode)
    best = max(range(len(states)), key=lambda index: scorer.sign * scores[index])
    best_state = state_of(states[best])
    measured = []
    for index, ingredient in enumerate(states):
        if index != best:
            state = state_of(ingredient)
            middle = scorer.measure(interpolate(best_state, state, 0.5))
            height = scorer.sign * ((scores[best] + scores[index]) / 2 - middle)
            height = height if math.isfinite(middle) else math.inf
            measured.append(Barrier(index, cosine(best_state, state, base), height))
    return measured


def cosine(first: Mapping[str, Tensor], other: Mapping[str, Tensor], base: Mapping[str, Tensor] | None = None) -> float:
    """Cosine between two sets of weights, taken from ``base`` on where it is given; NaN if one of them is zero.

    Without ``base``, biases and other tensors of one dimension are left out, since they begin alike in any model.

    Example:
        >>> import torch
        >>> cosine({"w": torch.tensor([[1.0, 0.0]])}, {"w": torch.tensor([[2.0, 0.0]])})
        1.0
    """
    dot = one = two = 0.0
    for name, mine in first.items():
        if not has_mean(mine) or (base is None and mine.ndim < 2):
            continue
        start = 0.0 if base is None else real_parts(base[name]).double()
        a, b = ((real_parts(weights).double() - start).flatten() for weights in (mine, other[name]))
        dot, one, two = dot + (a @ b).item(), one + (a @ a).item(), two + (b @ b).item()
    return dot / math.sqrt(one * two) if one * two > 0 else math.nan


def share_start(first: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether two sets of weights may come from one start: their :func:`cosine` is 0.3 or more, or tells nothing.

    Independent weights have one near 0, and what was fine-tuned from one start has one well above.

    Example:
        >>> import torch
        >>> start = torch.randn(100, 100)
        >>> share_start({"w": start}, {"w": start + 0.5 * torch.randn(100, 100)})
        True
        >>> share_start({"w": start}, {"w": torch.randn(100, 100)})
        False
    """
    return not cosine(first, other) < _UNRELATED
