"""Values as JSON holds them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def jsonable(value: Any) -> Any:
    """Infinity and NaN as strings, which JSON has no numbers for; tuples as lists, keys as strings.

    Example:
        >>> jsonable({"p99": (0.5, float("inf"))})
        {'p99': [0.5, 'inf']}
    """
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
