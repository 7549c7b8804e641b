"""Ingredients of a soup: states in memory, or functions that read one when its turn comes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from lightning_robust.functional.averaging import require_same

Ingredient = Mapping[str, Tensor] | Callable[[], Mapping[str, Tensor]]
"""A mapping from names to tensors, or a function that returns one."""


def state_of(ingredient: Ingredient) -> Mapping[str, Tensor]:
    """The tensors of an ingredient, read now if they are not in memory.

    Example:
        >>> import torch
        >>> state_of(lambda: {"w": torch.tensor(1.0)})
        {'w': tensor(1.)}
    """
    return ingredient() if callable(ingredient) else ingredient


def states_of(ingredients: Sequence[Ingredient]) -> list[Mapping[str, Tensor]]:
    """The tensors of all ingredients, which are then in memory together.

    Raises:
        ValueError: If there is no ingredient, or they differ in names or shapes.

    Example:
        >>> import torch
        >>> states_of([{"w": torch.tensor(1.0)}, lambda: {"w": torch.tensor(2.0)}])
        [{'w': tensor(1.)}, {'w': tensor(2.)}]
    """
    require_ingredients(ingredients)
    states = [state_of(ingredient) for ingredient in ingredients]
    for index, state in enumerate(states[1:], 1):
        require_same(states[0], state, f"ingredient {index}")
    return states


def require_ingredients(ingredients: Sequence[Ingredient]) -> None:
    """Refuse to cook a soup from nothing.

    Raises:
        ValueError: If there is no ingredient.

    Example:
        >>> require_ingredients([])
        Traceback (most recent call last):
        ValueError: Expected at least one ingredient for the soup, but got none. Are the paths or globs right?
    """
    if len(ingredients) == 0:
        raise ValueError("Expected at least one ingredient for the soup, but got none. Are the paths or globs right?")
