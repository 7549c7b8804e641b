"""One attribute of one instance, replaced for a while; the class and other instances are left alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Replacement:
    """Replaces a method or attribute of one instance until :meth:`restore`.

    Args:
        thing: The instance; its class is left alone.
        name: Name of the attribute.
        value: Its replacement.
    """

    def __init__(self, thing: object, name: str, value: Any) -> None:
        self._name, self._previous = name, vars(thing).get(name)
        # past the bookkeeping that nn.Module does for parameters and submodules
        object.__setattr__(thing, name, value)

    def restore(self, thing: object) -> None:
        """Leave the instance as it was."""
        if self._previous is None:
            object.__delattr__(thing, self._name)
        else:
            object.__setattr__(thing, self._name, self._previous)


@contextmanager
def replaced(thing: object, name: str, value: Any) -> Iterator[None]:
    """Inside the block, an attribute of the instance has another value."""
    replacement = Replacement(thing, name, value)
    try:
        yield
    finally:
        replacement.restore(thing)
