import pytest
from torch import nn

from lightning_robust.harness.replacement import Replacement, replaced


class Thing(nn.Module):
    def __init__(self):
        super().__init__()
        self.size = 1
        self.net = nn.Linear(1, 1)

    def name(self):
        return "own"


def test_replaced_and_restored():
    thing, other = Thing(), Thing()
    before = dict(vars(thing))
    with replaced(thing, name=lambda: "other", size=2):
        assert (thing.name(), thing.size, other.name(), other.size) == ("other", 2, "own", 1)
    assert (thing.name(), thing.size) == ("own", 1)
    assert vars(thing) == before


def test_restored_after_an_error_and_when_the_block_restores_itself():
    thing = Thing()
    with pytest.raises(KeyError), replaced(thing, name=None):
        raise KeyError
    with replaced(thing, name=None):
        del thing.name
    assert thing.name() == "own"


def test_nested_replacements_come_off_in_order():
    thing = Thing()
    with replaced(thing, name=lambda: "outer"):
        with replaced(thing, name=lambda: "inner"):
            assert thing.name() == "inner"
        assert thing.name() == "outer"
    assert "name" not in vars(thing)


def test_a_value_of_none_comes_back():
    thing = Thing()
    thing.size = None
    replacement = Replacement(thing, "size", 3)
    assert thing.size == 3
    replacement.restore(thing)
    assert vars(thing)["size"] is None
