"""Attributes of one instance, replaced for a while; its class and other instances are left alone, deep copies too."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_ABSENT = object()


class _OfInstance:
    """A method of one instance that a deep copy of the instance does not take along: the copy has its own again."""

    def __init__(self, thing: object, name: str, method: Callable[..., Any], previous: Any) -> None:
        functools.update_wrapper(self, method)
        # what the method wraps itself, if it says so
        self.__wrapped__: Callable[..., Any] = getattr(method, "__wrapped__", method)
        self._thing, self._name, self._method, self._previous = thing, name, method, previous

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._method(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        twin = memo.get(id(self._thing))
        if twin is None:
            return self
        if self._previous is _ABSENT:
            return getattr(type(twin), self._name).__get__(twin)
        return copy.deepcopy(self._previous, memo)


def _put(thing: object, name: str, value: Any, previous: Any) -> None:
    """Set an attribute past the bookkeeping that nn.Module does for parameters and submodules."""
    object.__setattr__(thing, name, _OfInstance(thing, name, value, previous) if callable(value) else value)


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
            _put(thing, name, value, previous[name])
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
        _put(thing, name, value, self._previous)

    def restore(self, thing: object) -> None:
        """Leave the instance as it was."""
        if self._previous is _ABSENT:
            object.__delattr__(thing, self._name)
        else:
            object.__setattr__(thing, self._name, self._previous)
