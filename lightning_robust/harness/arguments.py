"""Numbers as users write them: ``"8/255"``, ``"500 steps"``, ``"2 epochs"``."""

from __future__ import annotations

import math
import re
from typing import Literal


def parse_fraction(value: float | str, name: str = "eps") -> float:
    """A number, or a quotient as users write it: ``"8/255"``.

    Args:
        value: The number or the quotient.
        name: The argument that the error names.

    Raises:
        ValueError: If it is no number, negative or not finite.

    Example:
        >>> round(parse_fraction("8/255"), 4)
        0.0314
    """
    try:
        numerator, slash, denominator = str(value).partition("/")
        number = float(numerator) / float(denominator if slash else 1)
    except (ValueError, ZeroDivisionError):
        number = math.nan
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(f"Expected `{name}` as a number from 0 or a quotient such as '8/255', but got {value!r}.")
    return number


def parse_duration(text: str) -> tuple[float, Literal["steps", "epochs"]]:
    """A number with its unit: ``"500 steps"``, ``"2 epochs"``, ``"1 epoch"``.

    Raises:
        ValueError: For any other text.

    Example:
        >>> parse_duration("0.5 epochs"), parse_duration("1 step")
        ((0.5, 'epochs'), (1.0, 'steps'))
    """
    match = re.fullmatch(r"\s*([\d.eE+]+)\s*(step|epoch)s?\s*", text)
    if not match:
        raise ValueError(f"Expected a number with its unit, as '500 steps' or '2 epochs', but got {text!r}.")
    return float(match[1]), "steps" if match[2] == "step" else "epochs"
