"""The frame of a self-contained HTML page: style, tables, lists, figures inside, everything escaped. No content."""

from __future__ import annotations

import html
import importlib.metadata
import io
import platform
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PACKAGES = (
    "lightning-robust",
    "torch",
    "lightning",
    "onnx",
    "onnxruntime",
    "tensorrt",
    "tensorrt-rtx-cu13",
    "polygraphy",
)
_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #59636e; --line: #d1d9e0; --card: #f6f8fa; --page: #fff;
  --good: #1a7f37; --mind: #9a6700; --bad: #cf222e; --bar: #8a94a0; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #9198a1; --line: #3d444d; --card: #161b22;
  --page: #0d1117; --good: #3fb950; --mind: #d29922; --bad: #f85149; --bar: #6e7681; } figure { background: #fff; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); max-width: 1400px;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0 0 .2rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
p, li { max-width: 46rem; } .soft { color: var(--soft); }
.verdict { border-left: 6px solid; padding: .8rem 1.2rem; background: var(--card); margin: 1rem 0; }
.verdict strong { font-size: 1.15rem; } .verdict ul { margin: .5rem 0 0; padding-left: 1.2rem; }
.good { border-color: var(--good); } .mind { border-color: var(--mind); } .bad { border-color: var(--bad); }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem; text-align: right; border-bottom: 1px solid var(--line); }
th { font-weight: 600; color: var(--soft); } th:first-child, td:first-child { text-align: left; }
table.words td, table.words th { text-align: left; vertical-align: top; }
table.noted td:last-child, table.noted th:last-child { text-align: left; min-width: 14rem; }
table.moved td:nth-child(2), table.moved th:nth-child(2) { text-align: left; }
table.compared td:nth-child(2), table.compared td:nth-child(3) { color: var(--soft); }
table.compared td:first-child { min-width: 7rem; } table.compared td, table.compared th { padding: .3rem .5rem; }
table.compared td { white-space: nowrap; vertical-align: top; }
table.compared td:first-child { white-space: normal; max-width: 17rem; }
table.compared th { vertical-align: bottom; max-width: 9rem; }
table.compared .soft { font-size: .8rem; } th.group { text-align: center; border-left: 1px solid var(--line); }
td.best { font-weight: 600; color: var(--good); } td.best .soft { font-weight: 400; }
.bar { display: inline-block; height: .7em; background: var(--bar); border-radius: 2px; min-width: 1px; }
td.bars { width: 16rem; text-align: left; }
figure { margin: .5rem 0; } figure svg { max-width: 100%; height: auto; }
pre { background: var(--card); padding: .8rem; overflow-x: auto; font-size: .85rem; }
"""


def document(title: str, parts: Sequence[str]) -> str:
    """A whole page without anything from outside of it.

    Args:
        title: Of the window; escaped here.
        parts: HTML.
    """
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{text(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>\n<body>\n'
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def table(
    columns: Sequence[str], rows: Sequence[Sequence[Any]], words: bool = False, last_is_text: bool = False
) -> str:
    """A table; ``words`` to the left throughout, ``last_is_text`` for a last column of sentences."""
    head = "".join(f"<th>{text(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    kind = ' class="words"' if words else ' class="noted"' if last_is_text else ""
    return f'<div class="wide"><table{kind}><tr>{head}</tr>{body}</table></div>'


def bullets(lines: Sequence[str]) -> str:
    """A list of sentences; nothing without any."""
    return f"<ul>{''.join(f'<li>{text(line)}</li>' for line in lines)}</ul>" if lines else ""


def svg(figure: Figure) -> str:
    """A figure inside of the page."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    text = stream.getvalue()
    return f"<figure>{text[text.index('<svg') :]}</figure>"


def text(value: Any) -> str:
    """Anything, escaped."""
    return html.escape(str(value))


def versions() -> dict[str, str]:
    """When, by which command, on which machine and with which packages a page was written."""
    facts = {
        "written": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
        "command": " ".join(sys.argv),
        "machine": platform.platform(),
    }
    facts["python"] = platform.python_version()
    for package in _PACKAGES:
        try:
            facts[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return facts
