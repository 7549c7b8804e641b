"""What installed packages add to this one, by Python's entry points: runtimes, perturbations, decoders, techniques."""

from __future__ import annotations

import functools
import importlib.metadata
import warnings
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

Kind = Literal["runtimes", "perturbations", "decoders", "techniques"]
"""The groups are named ``lightning_robust.<kind>``."""


class Loaded(NamedTuple):
    """An entry point after it was loaded.

    Args:
        value: What it stands for; None where that cannot be used.
        fault: Why not, in one sentence.
    """

    value: Any
    fault: str = ""


@functools.cache
def _entry_points(kind: Kind) -> importlib.metadata.EntryPoints:
    return importlib.metadata.entry_points(group=f"lightning_robust.{kind}")


def extension_names(kind: Kind) -> tuple[str, ...]:
    """The names that installed packages have in a group; none of them is imported for it.

    Example:
        >>> isinstance(extension_names("runtimes"), tuple)
        True
    """
    return tuple(sorted({point.name for point in _entry_points(kind)}))


@functools.cache
def _load(kind: Kind, name: str, fits: Callable[[Any], bool], expected: str) -> Loaded:
    (point, *_) = _entry_points(kind).select(name=name)
    whose = f"{name!r} of {point.dist.name if point.dist else 'a package'} ({point.value})"
    try:
        value = point.load()
    except (Exception, SystemExit) as error:
        return Loaded(None, f"{whose} cannot be imported: {type(error).__name__}: {error}")
    return Loaded(value) if fits(value) else Loaded(None, f"{whose} is {value!r} where {expected} is expected")


def load_extensions(kind: Kind, fits: Callable[[Any], bool], expected: str) -> dict[str, Any]:
    """Name -> what it stands for. One that cannot be used is a warning that names it, and the others are returned.

    Args:
        kind: Their group.
        fits: Whether a value is one of that kind.
        expected: What it has to be, with its article.
    """
    loaded = {name: _load(kind, name, fits, expected) for name in extension_names(kind)}
    for each in loaded.values():
        if each.fault:
            warnings.warn(f"Of the entry points lightning_robust.{kind}, {each.fault}. It is left out.", stacklevel=2)
    return {name: each.value for name, each in loaded.items() if not each.fault}


def require_extension(kind: Kind, name: str, fits: Callable[[Any], bool], expected: str) -> Any:
    """What one name stands for.

    Raises:
        ImportError: Where it cannot be imported, or is of another kind; the message names the package and the reason.
    """
    value, fault = _load(kind, name, fits, expected)
    if fault:
        raise ImportError(f"Expected {name!r} among the entry points lightning_robust.{kind}, but {fault}.")
    return value


def forget_extensions() -> None:
    """Look for entry points anew, after a package was installed while this process runs."""
    _entry_points.cache_clear()
    _load.cache_clear()
