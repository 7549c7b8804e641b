"""Tables as text, for a terminal and for Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tabulate import tabulate


def markdown(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table; what would end a cell or be read as HTML or a link is escaped, bold type and code stay.

    Example:
        >>> print(markdown(["target", "px"], [["fp16", 0.5]]))
        | target   | px   |
        |----------|------|
        | fp16     | 0.5  |
    """
    escaped = [[inline(cell).replace("|", "\\|") for cell in row] for row in rows]
    heads = [inline(column).replace("|", "\\|") for column in columns]
    return tabulate(escaped, heads, "github", disable_numparse=True)


def inline(text: Any) -> str:
    r"""Text of another's in a line of Markdown: no HTML, no link, no picture, no second line, no control character.

    Example:
        >>> print(inline("val/<img src=x>\n[a](b)"))
        val/\<img src=x> [a]\(b)
    """
    line = "".join(character if character.isprintable() else " " for character in str(text))
    return line.replace("<", "\\<").replace("](", "]\\(")


def plain_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table for a terminal: first column to the left, the others to the right.

    Example:
        >>> print(plain_table(["target", "px"], [["fp16", 0.5]]))
        target      px
        --------  ----
        fp16       0.5
    """
    cells = [list(map(str, row)) for row in rows]
    align = ["left", *["right"] * (len(columns) - 1)]
    return tabulate(cells, columns, "simple", disable_numparse=True, colalign=align if rows else None)


def number(value: float | None, digits: int = 3) -> str:
    """A number in a few significant digits; empty where there is none (None or NaN).

    Example:
        >>> number(0.123456), number(1234.5, 4), number(None)
        ('0.123', '1234', '')
    """
    return "" if value is None or math.isnan(value) else short(value, digits)


def short(value: float, digits: int = 3) -> str:
    """A number in a few significant digits, and all of those before its point below a million million.

    Example:
        >>> short(0.123456), short(123456.0), short(999.6), short(2e12), short(math.nan)
        ('0.123', '123456', '1000', '2e+12', 'nan')
    """
    text = f"{value:.{digits}g}"
    return f"{value:.0f}" if "e+" in text and abs(value) < 1e12 else text


def percent(share: float) -> str:
    """A share in two digits, in three from 99.5 % on, and from ten on as a multiple.

    Example:
        >>> percent(0.2149), percent(0.00038), percent(0.996), percent(8.4), percent(900.0)
        ('21 %', '0.038 %', '99.6 %', '840 %', '900 times')
    """
    return f"{share:.0f} times" if share >= 10 else f"{short(100 * share, 3 if share >= 0.995 else 2)} %"


def without_common(names: Sequence[str], separator: str, *, end: bool = False) -> list[str]:
    """Names without the parts that all of them begin with, which do not tell them apart.

    Args:
        names: Any number; a single one stays as it is, and so do those of which nothing would be left.
        separator: Between the parts of a name.
        end: Leave out those that all of them end with too.

    Example:
        >>> without_common(["net.blocks.0.conv", "net.blocks.1.conv"], ".")
        ['0.conv', '1.conv']
        >>> without_common(["runs/a/best.ckpt", "runs/b/best.ckpt"], "/", end=True)
        ['a', 'b']
    """
    parts = _without_first([name.split(separator) for name in names])
    if end:
        parts = [each[::-1] for each in _without_first([each[::-1] for each in parts])]
    return [separator.join(each) for each in parts]


def _without_first(parts: list[list[str]]) -> list[list[str]]:
    while len(parts) > 1 and min(map(len, parts)) > 1 and len({each[0] for each in parts}) == 1:
        parts = [each[1:] for each in parts]
    return parts


def shorten(name: str, width: int = 24) -> str:
    """The end of a long name, which tells layers and files apart better than its beginning.

    Example:
        >>> shorten("backbone.stages.3.blocks.2.conv", 16)
        '...blocks.2.conv'
    """
    return name if len(name) <= width else "..." + name[3 - width :]
