"""Tables as text, for a terminal and for Markdown. Where they are sent is ``logging.py``'s business."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def markdown(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table.

    Example:
        >>> print(markdown(["target", "px"], [["fp16", 0.5]]))
        | target | px |
        | --- | --- |
        | fp16 | 0.5 |
    """
    lines = [list(columns), ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def plain_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table for a terminal: first column to the left, the others to the right.

    Example:
        >>> print(plain_table(["target", "px"], [["fp16", 0.5]]))
        target   px
        ------  ---
        fp16    0.5
    """
    cells = [[str(cell) for cell in line] for line in ([*columns], *rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    cells.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "  ".join(
            c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    )
