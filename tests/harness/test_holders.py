from collections import Counter, OrderedDict, UserDict, defaultdict, deque
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from lightning_robust.harness.holders import Holder, holds_data


@dataclass(slots=True)
class Slotted:
    total: float = 1.0


class Plain:
    def __init__(self):
        self.total = 1.0


def spoil(thing):
    """Change a thing in the way of its kind."""
    if isinstance(thing, dict | UserDict):
        thing["x"] = 2
    elif isinstance(thing, list | deque):
        thing.append(9)
        thing[0] = 5
    elif isinstance(thing, set):
        thing.add(9)
    else:
        thing.total = 7.0


@pytest.mark.parametrize(
    "thing",
    [
        [1, 2], deque([1, 2], maxlen=2), {1, 2}, {"a": 1}, OrderedDict(b=1, a=2), Counter("aab"),
        defaultdict(list, a=[1]), SimpleNamespace(total=1.0), Slotted(), Plain(),
    ],
    ids=lambda thing: type(thing).__name__,
)  # fmt: skip
def test_refill(thing):
    before, order = repr(vars(thing)) if isinstance(thing, Plain) else repr(thing), id(thing)
    holder = Holder(thing, "thing")
    assert holds_data(thing)
    spoil(thing)
    assert (repr(vars(thing)) if isinstance(thing, Plain) else repr(thing)) != before
    holder.refill(holder.contents)
    assert (repr(vars(thing)) if isinstance(thing, Plain) else repr(thing)) == before
    assert id(thing) == order


def test_attributes_that_came_later_are_deleted():
    thing = Plain()
    holder = Holder(thing, "thing")
    thing.other = 3
    del thing.total
    holder.refill(holder.contents)
    assert vars(thing) == {"total": 1.0}
