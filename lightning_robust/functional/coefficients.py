"""Soups with mixing coefficients: learned on held-out data, or from the angle between the ingredients (Model Stock)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from lightning_robust.functional.averaging import State, require_same
from lightning_robust.functional.held_out import require_finite
from lightning_robust.functional.ingredients import Ingredient, states_of
from lightning_robust.functional.soups import Soup
from lightning_robust.number_types import has_mean, real_parts, type_of_mean


def stock_soup(states: Sequence[Ingredient], base: Mapping[str, Tensor]) -> Soup:
    r"""Model Stock: the mean, pulled towards the initial weights.

    `Jang et al. 2024 <https://arxiv.org/abs/2403.19522>`_. For each tensor, with :math:`N`
    ingredients and the mean cosine :math:`c` between their differences from ``base``:

    .. math:: t = \frac{N c}{1 + (N-1) c}, \qquad \theta = t\,\bar\theta + (1 - t)\,\theta_0

    :math:`t` is clamped to [0, 1], since a negative cosine would give a negative ratio or a pole. Needs no held-out
    data; two ingredients are enough. Holds all of them in memory. ``coefficients`` holds the ratio of each tensor.

    Args:
        states: Ingredients.
        base: The initial weights that they share.

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
    fine_tuned = states_of(states)
    require_same(base, fine_tuned[0], "ingredient 0")
    state, ratios = {}, {}
    for name, start in base.items():
        if not has_mean(start):
            state[name] = fine_tuned[0][name].detach().clone()
            continue
        wide = start.to(type_of_mean(start.dtype, torch.float64))
        deltas = torch.stack([tensors[name].to(wide.dtype) - wide for tensors in fine_tuned])
        ratios[name] = _stock_ratio(real_parts(deltas).flatten(1))
        state[name] = (wide + ratios[name] * deltas.mean(0)).to(start.dtype)
    return Soup(state, list(range(len(states))), coefficients=ratios)


def learned_soup(
    states: Sequence[Ingredient],
    loss_fn: Callable[[State, object, Tensor], Tensor],
    batches: Callable[[], Iterable[object]],
    *,
    per: Literal["model", "tensor"] = "tensor",
    epochs: int = 5,
    lr: float = 0.05,
) -> Soup:
    r"""Mixing coefficients learned by gradient descent on held-out data.

    Learned soup and its by-layer form (`Wortsman et al. 2022 <https://arxiv.org/abs/2203.05482>`_) minimise

    .. math:: \min_{a, \beta} \sum_{(x, y)} \ell\Big(\beta\, f\big(x, \textstyle\sum_i
              \operatorname{softmax}(a)_i\, \theta_i\big), y\Big)

    with one vector :math:`a` for the model or for each tensor, all equal at the start, and an inverse temperature
    :math:`\beta > 0` of the network's outputs, 1 at the start. AdamW without weight decay on :math:`a` and
    :math:`\log \beta`. The soup does not hold :math:`\beta`. All ingredients are in memory.

    Args:
        states: Ingredients.
        loss_fn: ``loss_fn(state, batch, beta)`` is the loss of a batch under a state, with the network's outputs times
            ``beta``, a positive scalar tensor; differentiable in both, for instance through
            ``torch.func.functional_call``. A task whose outputs have no temperature leaves ``beta`` alone.
        batches: Called for an iterable over the held-out data, once an epoch.
        per: One vector of coefficients for the ``"model"``, or one for each ``"tensor"``.
        epochs: Passes over the held-out data.
        lr: Learning rate.

    Raises:
        ValueError: If there is no ingredient, they differ, or the loss is not finite.

    Example:
        >>> states = [{"w": torch.tensor(0.0)}, {"w": torch.tensor(4.0)}]
        >>> soup = learned_soup(states, lambda state, target, _: (state["w"] - target) ** 2, lambda: [1.0] * 200)
        >>> round(soup.state["w"].item(), 2)
        1.0
    """
    mixture = _LearnedMixture(states_of(states), per)
    log_beta = torch.zeros((), requires_grad=True)
    with torch.enable_grad():
        optimizer = torch.optim.AdamW([*mixture.logits.values(), log_beta], lr, weight_decay=0.0)
        for _ in range(epochs):
            for batch in batches():
                loss = loss_fn(mixture.state(), batch, log_beta.exp())
                require_finite(loss.item(), "the learned soup")
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
    with torch.no_grad():
        beta = log_beta.exp().item()
        return Soup(mixture.state(), list(range(len(states))), coefficients=mixture.shares(), beta=beta)


class _LearnedMixture:
    """A state as a differentiable mixture of others; integers and bools come from the first."""

    def __init__(self, states: Sequence[Mapping[str, Tensor]], per: Literal["model", "tensor"]) -> None:
        self._first = states[0]
        self._stacks = {
            name: torch.stack([state[name].detach() for state in states])
            for name, tensor in states[0].items()
            if has_mean(tensor)
        }
        self._per_tensor = per == "tensor"
        groups = list(self._stacks) if self._per_tensor else ["model"]
        self.logits = {group: torch.zeros(len(states), requires_grad=True) for group in groups}

    def shares(self) -> dict[str, Tensor]:
        """The share of each ingredient, by tensor or for the model."""
        return {group: logits.softmax(0) for group, logits in self.logits.items()}

    def state(self) -> State:
        shares = self.shares()
        mixed = {
            name: torch.tensordot(shares[name if self._per_tensor else "model"].to(stack), stack, 1)
            for name, stack in self._stacks.items()
        }
        return {name: mixed[name] if name in mixed else first.detach().clone() for name, first in self._first.items()}


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
