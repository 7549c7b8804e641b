"""What a misspelt name may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


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
