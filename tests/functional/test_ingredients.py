import pytest
import torch

from lightning_robust.functional.ingredients import require_ingredients, state_of, states_of


def test_functions_are_called_once_and_mappings_are_taken_as_they_are():
    state, calls = {"w": torch.ones(2)}, []
    assert state_of(state) is state
    assert states_of([state, lambda: calls.append(1) or state])[1] is state
    assert calls == [1]


def test_rejects_no_ingredient_and_states_that_differ():
    for check in (require_ingredients, states_of):
        with pytest.raises(ValueError, match="at least one ingredient"):
            check([])
    with pytest.raises(ValueError, match=r"ingredient 2.*lacks w and has v"):
        states_of([{"w": torch.zeros(1)}, {"w": torch.zeros(1)}, {"v": torch.zeros(1)}])
