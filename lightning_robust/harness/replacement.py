"""Attributes of one instance, replaced for a while; its class and other instances are left alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_ABSENT = object()


@contextmanager
def replaced(thing: object, **values: Any) -> Iterator[None]:
    """Inside the block, methods or attributes of the instance are replaced by these.

    Example:
        >>> class Thing:
        ...     size = 1
        >>> thing = Thing()
        >>> with replaced(thing, size=2):
        ...     thing.size, Thing.size
        (2, 1)
        >>> thing.size, vars(thing)
        (1, {})
    """
    previous = {name: vars(thing).get(name, _ABSENT) for name in values}
    try:
        for name, value in values.items():
            # past the bookkeeping that nn.Module does for parameters and submodules
            object.__setattr__(thing, name, value)
        yield
    finally:
        for name, value in previous.items():
            if value is not _ABSENT:
                object.__setattr__(thing, name, value)
            elif name in vars(thing):
                object.__delattr__(thing, name)


class Replacement:
    """Replaces a method or attribute of one instance until :meth:`restore`.

    Args:
        thing: The instance.
        name: Name of the attribute.
        value: Its replacement.
    """

    def __init__(self, thing: object, name: str, value: Any) -> None:
        self._name, self._previous = name, vars(thing).get(name, _ABSENT)
        object.__setattr__(thing, name, value)

    def restore(self, thing: object) -> None:
        """Leave the instance as it was."""
        if self._previous is _ABSENT:
            object.__delattr__(thing, self._name)
        else:
            object.__setattr__(thing, self._name, self._previous)
