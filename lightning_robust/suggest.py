"""Names in messages: what a misspelt one may have meant, and the first of many."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def first_of(names: Iterable[object], most: int = 3, none: str = "nothing") -> str:
    """The first of some names in a sentence, and how many more there are.

    Args:
        names: In the order in which they are told.
        most: How many are told.
        none: What is said where there are none.

    Example:
        >>> first_of(["fog", "noise", "blur"], 2), first_of(["fog"]), first_of([])
        ('fog, noise and 1 more', 'fog', 'nothing')
    """
    told = [*map(str, names)]
    return (", ".join(told[:most]) or none) + (f" and {len(told) - most} more" if len(told) > most else "")


def nearest(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """The known names that are spelt most like this one, at most ``count`` of them."""
    return difflib.get_close_matches(name, dict.fromkeys(known), count, 0.5)


def did_you_mean(name: str, known: Iterable[str], count: int = 3) -> str:
    """A sentence for the end of an error message, empty where no known name is near.

    Args:
        name: What was given.
        known: What could have been given.
        count: The most names to suggest.

    Example:
        >>> did_you_mean("emulated-fp61", ["emulated-fp16", "torch-fp32"])
        " Did you mean 'emulated-fp16'?"
        >>> did_you_mean("x", ["emulated-fp16"])
        ''
    """
    near = nearest(name, known, count)
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
