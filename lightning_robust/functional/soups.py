"""Model soups: one set of weights out of several fine-tuned ones. States in, a state out; files are read elsewhere.

A state is a mapping from names to tensors. Ingredients may be given as functions that return a state, so that a file
is read when its turn comes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from lightning_robust.functional.averaging import State, interpolate, require_same

Ingredient = Mapping[str, Tensor] | Callable[[], Mapping[str, Tensor]]
Running = Iterator[tuple[float, float]]
Evaluate = Callable[[State], float | Running]
"""Score of a state on held-out data: a number, or pairs (mean so far, share of the data seen) that end at share 1."""


@dataclass(frozen=True)
class Trial:
    """One candidate of a greedy soup: the ingredient added (or dropped), the score, how much of the data it took."""

    ingredient: int
    score: float | None
    """None where it was stopped early."""
    accepted: bool
    share: float
    dropped: bool = False


@dataclass
class Soup:
    """The result of a recipe."""

    state: State
    ingredients: list[int]
    """Indices in order of acceptance."""
    scores: list[float] = field(default_factory=list)
    """Held-out score of each ingredient, by index."""
    score: float | None = None
    """Held-out score of the soup."""
    trials: list[Trial] = field(default_factory=list)
    evaluations: int = 0
    """Evaluations begun."""
    evaluated: float = 0.0
    """Passes over the held-out data, parts of a pass counted as such."""
    coefficients: dict[str, Tensor] = field(default_factory=dict)
    """Of a learned or a stock soup."""


def uniform_soup(states: Sequence[Ingredient]) -> Soup:
    """The plain mean of all ingredients, summed in fp64; integer tensors come from the first.

    Raises:
        ValueError: If there is no ingredient, or they differ in names or shapes.

    Example:
        >>> uniform_soup([{"w": torch.tensor(1.0)}, {"w": torch.tensor(4.0)}]).state
        {'w': tensor(2.5000)}
    """
    _require_some(states)
    pot = _Pot(_read(states[0]), 0)
    for index in range(1, len(states)):
        pot.add(_read(states[index]), index)
    return Soup(pot.mean(), pot.ingredients)


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

    `Wortsman et al. 2022 <https://arxiv.org/abs/2203.05482>`_. The soup starts as the best ingredient, so that its
    score is never worse. It is the mean of what was accepted, from a running sum in fp64: no error grows with the
    number of ingredients, and integer tensors come from the best one. Ties in the ranking keep the given order.

    A candidate whose remaining data cannot make it win is stopped early: with the mean :math:`m` over a share
    :math:`p` of the data it ends at :math:`pm + (1-p)\,b` at best, :math:`b` being ``best_possible``. This needs an
    ``evaluate`` that gives its progress, and never changes the soup.

    Memory: the running sum and one candidate, besides the ingredient being read. Each ingredient is read twice, or
    once where ``scores`` are known.

    Args:
        states: Ingredients.
        evaluate: Held-out score of a state, see :data:`Evaluate`.
        mode: Whether larger or smaller is better.
        strict: Accept only what is better (as the authors' code does); False also accepts what is as good (as the
            paper's box says).
        scores: Scores of the ingredients where they are known; they are then not evaluated alone.
        best_possible: The best score that any part of the data can have: 1 for an accuracy, 0 for a loss that cannot
            be negative. None stops nothing early.
        drop: Afterwards take out, one at a time and as long as the score strictly improves, what is better left out.

    Raises:
        ValueError: If there is no ingredient, they differ, a score is not finite, or a score lies beyond
            ``best_possible``.

    Example:
        >>> states = [{"w": torch.tensor(w)} for w in (0.0, 5.0, 2.0)]
        >>> soup = greedy_soup(states, lambda state: -abs(state["w"].item() - 1.0))
        >>> soup.ingredients, soup.state
        ([0, 2], {'w': tensor(1.)})
    """
    _require_some(states)
    judge = _Judge(evaluate, mode, strict, best_possible)
    if scores is None:
        scores = [judge.score(dict(_read(state)), f"ingredient {index}") for index, state in enumerate(states)]
    scores = [_finite(score, f"ingredient {index}") for index, score in enumerate(scores)]
    if len(scores) != len(states):
        raise ValueError(f"Expected a score for each of {len(states)} ingredients, but got {len(scores)}.")
    ranking = sorted(range(len(states)), key=lambda index: judge.sign * scores[index], reverse=True)
    pot, best = _Pot(_read(states[ranking[0]]), ranking[0]), scores[ranking[0]]
    trials: list[Trial] = []
    for index in ranking[1:]:
        state = _read(states[index])
        score, share = judge.contest(pot.mean(plus=state, name=f"ingredient {index}"), best)
        trials.append(Trial(index, score, score is not None, share))
        if score is not None:
            best = score
            pot.add(state, index)
    if drop:
        best = _drop(pot, states, judge, best, trials)
    return Soup(pot.mean(), pot.ingredients, list(scores), best, trials, judge.evaluations, judge.evaluated)


def stock_soup(states: Sequence[Ingredient], base: Mapping[str, Tensor]) -> Soup:
    r"""Model Stock: the mean, pulled towards the initial weights.

    `Jang et al. 2024 <https://arxiv.org/abs/2403.19522>`_. For each tensor, with :math:`N`
    ingredients and the mean cosine :math:`c` between their differences from ``base``:

    .. math:: t = \frac{N c}{1 + (N-1) c}, \qquad \theta = t\,\bar\theta + (1 - t)\,\theta_0

    :math:`t` is clamped to [0, 1], since a negative cosine would give a negative ratio or a pole. Needs no held-out
    data; two ingredients are enough. Holds all of them in memory. ``coefficients`` holds the ratio of each tensor.

    Raises:
        ValueError: With fewer than two ingredients, or if they differ in names or shapes.

    Example:
        >>> base = {"w": torch.zeros(2)}
        >>> states = [{"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([0.0, 1.0])}]
        >>> stock_soup(states, base).state
        {'w': tensor([0., 0.])}
    """
    if len(states) < 2:
        raise ValueError(f"Expected at least two ingredients for the angle between them, but got {len(states)}.")
    read = _all_same(states)
    require_same(base, read[0], "ingredient 0")
    state, ratios = {}, {}
    for name, start in base.items():
        if not start.is_floating_point():
            state[name] = read[0][name].detach().clone()
            continue
        deltas = torch.stack([(part[name].double() - start.double()).flatten() for part in read])
        ratios[name] = _stock_ratio(deltas)
        state[name] = (start.double() + ratios[name] * deltas.mean(0).view_as(start)).to(start.dtype)
    return Soup(state, list(range(len(states))), coefficients=ratios)


def learned_soup(
    states: Sequence[Ingredient],
    loss_fn: Callable[[State, object], Tensor],
    batches: Callable[[], Iterable[object]],
    *,
    per: Literal["model", "tensor"] = "tensor",
    epochs: int = 5,
    lr: float = 0.05,
    temperature: bool = True,
) -> Soup:
    r"""Mixing coefficients learned by gradient descent on held-out data.

    Each tensor is :math:`\sum_i \operatorname{softmax}(T a)_i\,\theta_i`, with one vector :math:`a` for the model or
    for each tensor (`Wortsman et al. 2022 <https://arxiv.org/abs/2203.05482>`_, "learned soup" and its by-layer form),
    all equal at the start, and one scale :math:`T`. AdamW without weight decay. All ingredients are in memory.

    Args:
        states: Ingredients.
        loss_fn: ``loss_fn(state, batch)``, differentiable in the state, for instance through
            ``torch.func.functional_call``.
        batches: Called for an iterable over the held-out data, once an epoch.
        per: One vector of coefficients for the ``"model"``, or one for each ``"tensor"``.
        epochs: Passes over the held-out data.
        lr: Learning rate.
        temperature: Whether the scale is learned too; otherwise it stays 1.

    Raises:
        ValueError: If there is no ingredient, they differ, or the loss is not finite.

    Example:
        >>> states = [{"w": torch.tensor(0.0)}, {"w": torch.tensor(4.0)}]
        >>> soup = learned_soup(states, lambda state, target: (state["w"] - target) ** 2, lambda: [1.0] * 200)
        >>> round(soup.state["w"].item(), 2)
        1.0
    """
    _require_some(states)
    read = _all_same(states)
    names = [name for name, tensor in read[0].items() if tensor.is_floating_point()]
    stacks = {name: torch.stack([part[name].detach() for part in read]) for name in names}
    rest = {name: tensor.detach().clone() for name, tensor in read[0].items() if name not in stacks}
    groups = names if per == "tensor" else ["model"]
    with torch.enable_grad():
        logits = {group: torch.zeros(len(read), requires_grad=True) for group in groups}
        scale = torch.ones((), requires_grad=temperature)
        optimizer = torch.optim.AdamW([*logits.values(), *([scale] if temperature else [])], lr, weight_decay=0.0)
        for _ in range(epochs):
            for batch in batches():
                loss = loss_fn({**_mixed(stacks, logits, scale), **rest}, batch)
                _finite(loss.item(), "the learned soup")
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
    with torch.no_grad():
        state = {**_mixed(stacks, logits, scale), **rest}
        coefficients = {group: (scale * values).softmax(0) for group, values in logits.items()}
    ordered = {name: state[name] for name in read[0]}
    return Soup(ordered, list(range(len(read))), coefficients=coefficients)


@dataclass(frozen=True)
class Barrier:
    """What lies half way between the best ingredient and another one."""

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
    """Whether ingredients lie in one basin with the best of them; the highest barrier names the one that spoils a soup.

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

    Example:
        >>> states = [{"w": torch.tensor([[1.0, 1.0]])}, {"w": torch.tensor([[1.0, -1.0]])}]
        >>> barriers(states, lambda state: state["w"].abs().sum().item(), [2.0, 2.0])
        [Barrier(ingredient=1, cosine=0.0, height=1.0)]
    """
    judge = _Judge(evaluate, mode, True, None)
    best = max(range(len(states)), key=lambda index: judge.sign * scores[index])
    first = _read(states[best])
    found = []
    for index, ingredient in enumerate(states):
        if index == best:
            continue
        state = _read(ingredient)
        middle = judge.score(interpolate(first, state, 0.5), f"the middle of {best} and {index}")
        height = judge.sign * ((scores[best] + scores[index]) / 2 - middle)
        found.append(Barrier(index, cosine(first, state, base), height))
    return found


def cosine(first: Mapping[str, Tensor], other: Mapping[str, Tensor], base: Mapping[str, Tensor] | None = None) -> float:
    """Cosine between two sets of weights, taken from ``base`` on where it is given; tensors of one dimension only then.

    Example:
        >>> cosine({"w": torch.tensor([[1.0, 0.0]])}, {"w": torch.tensor([[2.0, 0.0]])})
        1.0
    """
    dot = one = two = 0.0
    for name, mine in first.items():
        if not mine.is_floating_point() or (base is None and mine.ndim < 2):
            continue
        start = 0.0 if base is None else base[name].double()
        a, b = (mine.double() - start).flatten(), (other[name].double() - start).flatten()
        dot, one, two = dot + (a @ b).item(), one + (a @ a).item(), two + (b @ b).item()
    return dot / math.sqrt(one * two) if one * two > 0 else math.nan


class _Pot:
    """The running sum of what is in the soup, in fp64; tensors that are not floating point come from the first."""

    def __init__(self, state: Mapping[str, Tensor], index: int) -> None:
        self.dtypes = {name: tensor.dtype for name, tensor in state.items()}
        self.tensors = {
            name: tensor.detach().double() if tensor.is_floating_point() else tensor.detach().clone()
            for name, tensor in state.items()
        }
        self.ingredients = [index]

    def add(self, state: Mapping[str, Tensor], index: int, sign: int = 1) -> None:
        require_same(self.tensors, state, f"ingredient {index}")
        for name, total in self.tensors.items():
            if self.dtypes[name].is_floating_point:
                total.add_(state[name].to(total.device), alpha=sign)
        self.ingredients = [*self.ingredients, index] if sign > 0 else [i for i in self.ingredients if i != index]

    def mean(self, plus: Mapping[str, Tensor] | None = None, sign: int = 1, name: str = "") -> State:
        """The soup, or the candidate with one ingredient more (or less); a soup of one is that one, bit for bit."""
        if plus is not None:
            require_same(self.tensors, plus, name)
        count = len(self.ingredients) + (sign if plus is not None else 0)
        state = {}
        for key, total in self.tensors.items():
            if not self.dtypes[key].is_floating_point:
                state[key] = total.clone()
                continue
            summed = total if plus is None else total.add(plus[key].to(total.device), alpha=sign)
            state[key] = (summed / count).to(self.dtypes[key])
        return state


class _Judge:
    """Evaluates candidates, counts, and stops those that cannot win."""

    def __init__(self, evaluate: Evaluate, mode: str, strict: bool, best_possible: float | None) -> None:
        if mode not in ("max", "min"):
            raise ValueError(f"Expected `mode` to be 'max' or 'min', but got {mode!r}.")
        self.evaluate, self.strict, self.best_possible = evaluate, strict, best_possible
        self.sign = 1.0 if mode == "max" else -1.0
        self.evaluations, self.evaluated = 0, 0.0

    def wins(self, score: float, best: float, *, strict: bool | None = None) -> bool:
        gain = self.sign * (score - best)
        return gain > 0 or (gain == 0 and not (self.strict if strict is None else strict))

    def score(self, state: State, what: str) -> float:
        score, share = None, 0.0
        with self._progress(state) as progress:
            for score, share in progress:  # noqa: B007 - the last pair counts
                self._check_bound(score)
        self.evaluated += share
        return _finite(math.nan if score is None else score, what)

    def contest(self, state: State, best: float, *, strict: bool | None = None) -> tuple[float | None, float]:
        """The score if it wins, else None; and how much of the data that took."""
        score, share = math.nan, 0.0
        with self._progress(state) as progress:
            for score, share in progress:
                self._check_bound(score)
                if self._is_lost(score, share, best, strict):
                    self.evaluated += share
                    return None, share
        self.evaluated += share
        _finite(score, "a candidate")
        return (score if self.wins(score, best, strict=strict) else None), share

    @contextmanager
    def _progress(self, state: State) -> Iterator[Running]:
        """The running score; a generator is closed at once, so that it can clean up before the next one begins."""
        self.evaluations += 1
        result = self.evaluate(state)
        if isinstance(result, (int, float, Tensor)):
            yield iter([(float(result), 1.0)])
            return
        try:
            yield result
        finally:
            if isinstance(result, Generator):
                result.close()

    def _is_lost(self, score: float, share: float, best: float, strict: bool | None) -> bool:
        if self.best_possible is None or share >= 1:
            return False
        # rounding of the mean must not cost a candidate that would just win
        slack = self.sign * 1e-9 * max(abs(best), abs(self.best_possible))
        return not self.wins(share * score + (1 - share) * self.best_possible + slack, best, strict=strict)

    def _check_bound(self, score: float) -> None:
        if self.best_possible is not None and self.sign * (score - self.best_possible) > 1e-6:
            raise ValueError(
                f"Expected no score beyond best_possible={self.best_possible}, but got {score}. Early stopping would "
                "be wrong; set `best_possible` to the best value that the metric can take, or to None."
            )


def _drop(pot: _Pot, states: Sequence[Ingredient], judge: _Judge, best: float, trials: list[Trial]) -> float:
    """Take out whatever is better left out."""
    improved = True
    while improved and len(pot.ingredients) > 1:
        improved = False
        for index in pot.ingredients:
            state = _read(states[index])
            score, share = judge.contest(pot.mean(plus=state, sign=-1), best, strict=True)
            trials.append(Trial(index, score, score is not None, share, dropped=True))
            if score is not None:
                best, improved = score, True
                pot.add(state, index, sign=-1)
                break
    return best


def _stock_ratio(deltas: Tensor) -> Tensor:
    """The clamped interpolation ratio from ``(N, size)`` differences."""
    count = len(deltas)
    norms = deltas.norm(dim=1)
    if (norms == 0).any():
        return deltas.new_ones(())
    unit = deltas / norms[:, None]
    # the sum over all pairs is that of the whole Gram matrix less its diagonal
    mean_cosine = ((unit.sum(0) ** 2).sum() - count) / (count * (count - 1))
    if mean_cosine <= 0:
        return deltas.new_zeros(())
    return (count * mean_cosine / (1 + (count - 1) * mean_cosine)).clamp(0, 1)


def _mixed(stacks: Mapping[str, Tensor], logits: Mapping[str, Tensor], scale: Tensor) -> State:
    shares = {group: (scale * values).softmax(0) for group, values in logits.items()}
    return {
        name: torch.tensordot(shares.get(name, shares.get("model", scale)).to(stack), stack, 1)
        for name, stack in stacks.items()
    }


def _read(ingredient: Ingredient) -> Mapping[str, Tensor]:
    return ingredient() if callable(ingredient) else ingredient


def _all_same(states: Sequence[Ingredient]) -> list[Mapping[str, Tensor]]:
    read = [_read(state) for state in states]
    for index, state in enumerate(read[1:], 1):
        require_same(read[0], state, f"ingredient {index}")
    return read


def _require_some(states: Sequence[Ingredient]) -> None:
    if len(states) == 0:
        raise ValueError("Expected at least one ingredient for the soup, but got none. Are the paths or globs right?")


def _finite(score: float, what: str) -> float:
    if not math.isfinite(score):
        raise ValueError(
            f"Expected a finite held-out score for {what}, but got {score}. Leave that model out, or choose a metric "
            "that is defined on the held-out data."
        )
    return float(score)
