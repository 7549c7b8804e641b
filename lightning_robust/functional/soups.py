"""Model soups by plain means: one set of weights out of several fine-tuned ones, all of them or those that help."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from lightning_robust.functional.averaging import State, require_same
from lightning_robust.functional.held_out import Evaluate, HeldOutScorer, require_finite
from lightning_robust.functional.ingredients import Ingredient, require_ingredients, state_of
from lightning_robust.number_types import has_mean, type_of_mean


@dataclass(frozen=True)
class SoupTrial:
    """One candidate of a greedy soup: the ingredient added (or dropped), the score, and the share of the data it took.

    Example:
        >>> SoupTrial(ingredient=3, score=None, accepted=False, share=0.25)
        SoupTrial(ingredient=3, score=None, accepted=False, share=0.25, dropped=False)
    """

    ingredient: int
    score: float | None
    """None where it was stopped early."""
    accepted: bool
    share: float
    dropped: bool = False


@dataclass
class Soup:
    """The result of a recipe.

    Example:
        >>> import torch
        >>> soup = greedy_soup([{"w": torch.tensor(2.0)}, {"w": torch.tensor(3.0)}], lambda state: state["w"].item())
        >>> soup.ingredients, soup.scores, soup.score, soup.evaluations
        ([1], [2.0, 3.0], 3.0, 3)
    """

    state: State
    ingredients: list[int]
    """Indices in order of acceptance."""
    scores: list[float] = field(default_factory=list)
    """Held-out score of each ingredient, by index."""
    score: float | None = None
    """Held-out score of the soup."""
    trials: list[SoupTrial] = field(default_factory=list)
    evaluations: int = 0
    """Evaluations begun."""
    evaluated: float = 0.0
    """Passes over the held-out data, parts of a pass counted as such."""
    coefficients: dict[str, Tensor] = field(default_factory=dict)
    """Of a learned or a stock soup."""
    beta: float | None = None
    """Of a learned soup: the inverse temperature of the network's outputs that was learned beside the coefficients."""


def uniform_soup(states: Sequence[Ingredient]) -> Soup:
    """The plain mean of all ingredients, summed in fp64; integer tensors come from the first.

    Raises:
        ValueError: If there is no ingredient, or they differ in names or shapes.

    Example:
        >>> import torch
        >>> uniform_soup([{"w": torch.tensor(1.0)}, {"w": torch.tensor(4.0)}]).state
        {'w': tensor(2.5000)}
    """
    require_ingredients(states)
    mixture = _Mixture(state_of(states[0]), 0)
    for index in range(1, len(states)):
        mixture.add(state_of(states[index]), index)
    return Soup(mixture.mean(), mixture.ingredients)


def greedy_soup(
    states: Sequence[Ingredient],
    evaluate: Evaluate,
    *,
    mode: Literal["max", "min"] = "max",
    strict: bool = True,
    scores: Sequence[float] | None = None,
    best_possible: float | None = None,
    drop: bool = False,
) -> Soup:
    r"""Add ingredients, best first, as long as the held-out score improves.

    `Wortsman et al. 2022 <https://arxiv.org/abs/2203.05482>`_. The soup starts as the best ingredient, so its score is
    never worse. It is the mean of the accepted ingredients, from a running sum in fp64: no error grows with the number
    of ingredients, and integer tensors come from the best one. Ties in the ranking keep the given order.

    A candidate whose remaining data cannot make it win is stopped early: with the mean :math:`m` over a share
    :math:`p` of the data it ends at :math:`pm + (1-p)\,b` at best, :math:`b` being ``best_possible``. This needs an
    ``evaluate`` that reports its progress, and never changes the soup.

    Memory: the running sum and one candidate, besides the ingredient being read. Each ingredient is read twice, or
    once where ``scores`` are known.

    Args:
        states: Ingredients.
        evaluate: Held-out score of a state, see :data:`~lightning_robust.functional.held_out.Evaluate`.
        mode: Whether larger or smaller is better.
        strict: Accept only improvements, as the authors' code does; False also accepts equal scores, as the paper's
            box says.
        scores: Scores of the ingredients where they are known; they are then not evaluated alone.
        best_possible: The best score that any part of the data can have: 1 for an accuracy, 0 for a loss that cannot
            be negative. None stops nothing early.
        drop: Afterwards remove ingredients, one at a time, as long as that strictly improves the score.

    Raises:
        ValueError: If there is no ingredient, they differ, a score is not finite, or a score lies beyond
            ``best_possible``.

    Example:
        >>> import torch
        >>> states = [{"w": torch.tensor(w)} for w in (0.0, 5.0, 2.0)]
        >>> soup = greedy_soup(states, lambda state: -abs(state["w"].item() - 1.0))
        >>> soup.ingredients, soup.state
        ([0, 2], {'w': tensor(1.)})
    """
    require_ingredients(states)
    scorer = HeldOutScorer(evaluate, mode, strict=strict, best_possible=best_possible)
    names = [f"ingredient {index}" for index in range(len(states))]
    if scores is None:
        scores = [scorer.score(dict(state_of(state)), name) for state, name in zip(states, names, strict=True)]
    if len(scores) != len(states):
        raise ValueError(f"Expected a score for each of {len(states)} ingredients, but got {len(scores)}.")
    scores = [require_finite(score, name) for score, name in zip(scores, names, strict=True)]
    first, *others = sorted(range(len(states)), key=lambda index: scorer.sign * scores[index], reverse=True)
    mixture, best = _Mixture(state_of(states[first]), first), scores[first]
    trials: list[SoupTrial] = []
    for index in others:
        state = state_of(states[index])
        score, share = scorer.contest(mixture.mean_with(state, index), best)
        trials.append(SoupTrial(index, score, score is not None, share))
        if score is not None:
            best = score
            mixture.add(state, index)
    if drop:
        best = _drop_harmful(mixture, states, scorer, best, trials)
    return Soup(mixture.mean(), mixture.ingredients, scores, best, trials, scorer.evaluations, scorer.evaluated)


def _drop_harmful(
    mixture: _Mixture, states: Sequence[Ingredient], scorer: HeldOutScorer, best: float, trials: list[SoupTrial]
) -> float:
    """Remove ingredients as long as the score improves; returns the score."""
    improved = True
    while improved and len(mixture.ingredients) > 1:
        improved = False
        for index in mixture.ingredients:
            state = state_of(states[index])
            score, share = scorer.contest(mixture.mean_without(state), best, strict=True)
            trials.append(SoupTrial(index, score, score is not None, share, dropped=True))
            if score is not None:
                best, improved = score, True
                mixture.remove(state, index)
                break
    return best


class _Mixture:
    """The running sum of the ingredients in fp64; integers and bools come from the first."""

    def __init__(self, state: Mapping[str, Tensor], index: int) -> None:
        self.ingredients = [index]
        self._dtypes = {name: tensor.dtype for name, tensor in state.items()}
        self._sums = {
            name: tensor.detach().to(type_of_mean(tensor.dtype, torch.float64), copy=True)
            for name, tensor in state.items()
        }

    def add(self, state: Mapping[str, Tensor], index: int) -> None:
        require_same(self._sums, state, f"ingredient {index}")
        self._accumulate(state, 1)
        self.ingredients = [*self.ingredients, index]

    def remove(self, state: Mapping[str, Tensor], index: int) -> None:
        self._accumulate(state, -1)
        self.ingredients = [other for other in self.ingredients if other != index]

    def mean(self) -> State:
        """The mean; of one ingredient it is that one, bit for bit."""
        return self._mean(len(self.ingredients))

    def mean_with(self, state: Mapping[str, Tensor], index: int) -> State:
        """The mean with one ingredient more."""
        require_same(self._sums, state, f"ingredient {index}")
        return self._mean(len(self.ingredients) + 1, state, 1)

    def mean_without(self, state: Mapping[str, Tensor]) -> State:
        """The mean without one of the ingredients."""
        return self._mean(len(self.ingredients) - 1, state, -1)

    def _accumulate(self, state: Mapping[str, Tensor], sign: int) -> None:
        for name, total in self._sums.items():
            if has_mean(self._dtypes[name]):
                total.add_(state[name].to(total.device), alpha=sign)

    def _mean(self, count: int, state: Mapping[str, Tensor] | None = None, sign: int = 1) -> State:
        # one tensor at a time, so that no second sum of all is in memory
        mean = {}
        for name, total in self._sums.items():
            if not has_mean(self._dtypes[name]):
                mean[name] = total.clone()
                continue
            changed = total
            if state is not None:  # infinity, as masks hold it, stays
                added = total.add(state[name].to(total.device), alpha=sign)
                changed = torch.where(total.isinf(), total, added)
            mean[name] = (changed / count).to(self._dtypes[name])
        return mean
