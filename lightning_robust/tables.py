"""Tables as text, for a terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tabulate import tabulate


def markdown(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table.

    Example:
        >>> print(markdown(["target", "px"], [["fp16", 0.5]]))
        | target   | px   |
        |----------|------|
        | fp16     | 0.5  |
    """
    escaped = [[str(cell).replace("|", "\\|") for cell in row] for row in rows]
    return tabulate(escaped, columns, "github", disable_numparse=True)


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
