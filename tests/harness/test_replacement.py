import copy
import functools

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


@pytest.mark.parametrize("kind", ["block", "until restored", "nested"])
def test_a_deep_copy_acts_on_itself(kind):
    """It has the method of its class again, not one that is bound to the original."""
    thing = Thing()
    thing.name = lambda: "of this instance" if kind == "nested" else thing.name()
    if kind != "nested":
        del thing.name
    replacement = Replacement(thing, "name", lambda: f"replaced, size {thing.size}")
    with replaced(thing, size=5):
        twin = copy.deepcopy(thing)
        assert thing.name() == "replaced, size 5"
        assert (twin.name(), twin.size) == ("of this instance" if kind == "nested" else "own", 5)
        again = copy.deepcopy(twin)
        assert again.name() == twin.name()
    replacement.restore(thing)
    assert thing.name() == twin.name()


def test_what_a_replacement_wraps_is_said():
    thing = Thing()
    original = thing.name

    @functools.wraps(original)
    def name():
        return "wrapped"

    with replaced(thing, name=name):
        assert thing.name.__wrapped__ is original
        assert thing.name.__name__ == "name"
