"""A judgement as Markdown, for a pull request or GitHub's step summary."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from lightning_robust.gate.check import Check, Judgement, on_one_line
from lightning_robust.tables import markdown

STEP_SUMMARY = "GITHUB_STEP_SUMMARY"
"""The environment variable in which GitHub Actions names the file of the step's summary."""
_MOST = 100
# a bar is no backslash and a bar: what makes tables would escape the bar again
_ENTITIES = {"<": "&lt;", ">": "&gt;", "&": "&amp;", "@": "&#64;", "|": "&#124;"}
_MARKS = {"within": "✅", "beyond": "❌", "unmeasured": "⚠️"}
_SPECIAL = re.compile(r"[\\`*_{}\[\]()#+!|~<>&@]")


def summary_markdown(judgement: Judgement) -> str:
    r"""The verdict and a table of all numbers, the worst first.

    Example:
        >>> print(summary_markdown(Judgement("parity", (Check("emulated-fp16", "rel_l2", 0.2, 0.1),), "parity.yaml")))
        ### ❌ lightning-robust parity
        <BLANKLINE>
        beyond parity.yaml: emulated-fp16/rel\_l2 is 0.2, allowed 0.1
        <BLANKLINE>
        |    | number                | measured   | allowed   | place   |
        |----|-----------------------|------------|-----------|---------|
        | ❌ | emulated-fp16/rel\_l2 | 0.2        | 0.1       |         |
        <BLANKLINE>
    """
    checks = _worst_first(judgement)
    parts = [f"### {_MARKS[judgement.status]} lightning-robust {judgement.command}", escape(judgement.headline)]
    parts += [f"Measured: {escape(judgement.origin)}"] if judgement.origin else []
    if checks:
        rows = [_row(check) for check in checks[:_MOST]]
        parts.append(markdown(["", "number", "measured", "allowed", "place"], rows))
    parts += [f"and {len(checks) - _MOST} more"] if len(checks) > _MOST else []
    parts += ["\n".join(f"- {escape(remark)}" for remark in judgement.remarks)] if judgement.remarks else []
    return "\n\n".join(parts) + "\n"


def write_summary(
    judgement: Judgement, path: str | Path | None = None, environment: Mapping[str, str] = os.environ
) -> None:
    """Write the summary into a file, and add it to GitHub's step summary where its variable is set.

    Args:
        judgement: From a command that judges.
        path: The file; its folder is made. None for GitHub's alone.
        environment: Where the variable is looked for.

    Raises:
        OSError: If a file cannot be written.
    """
    text = summary_markdown(judgement)
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text, encoding="utf-8")
    if step := environment.get(STEP_SUMMARY):
        with Path(step).open("a", encoding="utf-8") as stream:
            stream.write(text + "\n")


def escape(text: str) -> str:
    r"""A text that Markdown shows as it is: no HTML, no link, no mention, no end of a cell or a line.

    Example:
        >>> escape("<b>|x")
        '&lt;b&gt;&#124;x'
    """
    return _SPECIAL.sub(lambda found: _ENTITIES.get(found[0], f"\\{found[0]}"), on_one_line(text))


def _worst_first(judgement: Judgement) -> list[Check]:
    found = [*judgement.beyond, *judgement.unmeasured]
    found += [check for check in judgement.judged if check not in found]
    return found + [check for check in judgement.checks if check not in found]


def _row(check: Check) -> list[str]:
    measured = check.note or "-" if check.status == "unmeasured" else check.told()
    allowed = "" if check.limit is None else f"{check.limit:.3g}"
    mark = _MARKS[check.status] if check.is_demanded else ""
    return [mark, *map(escape, (check.name, measured, allowed, check.place))]
