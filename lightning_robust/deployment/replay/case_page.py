"""A replayed case book as one HTML page, what is beyond its bounds first, and as JSON."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lightning_robust.deployment.replay.case_book import CaseResult, cases_json, judge_cases
from lightning_robust.deployment.replay.cases import Case
from lightning_robust.gate.check import Check, Outcome
from lightning_robust.json_values import jsonable
from lightning_robust.pages import environment_facts, render
from lightning_robust.tables import number, plain_table

PAGE, NUMBERS = "cases.html", "cases.json"
_WORDS: dict[Outcome, str] = {"beyond": "beyond", "unmeasured": "not measured", "within": "within"}
_COLOURS: dict[Outcome, str] = {"within": "good", "beyond": "bad", "unmeasured": "mind"}
_NOTHING = "-"


class _Bound(NamedTuple):
    """One line of the table of a case."""

    name: str
    before: str
    now: str
    limit: str
    status: str
    colour: str
    place: str


def write_cases(results: Sequence[CaseResult], folder: str | Path, facts: Mapping[str, str]) -> list[Path]:
    """Write ``cases.html``, which loads nothing from elsewhere, and ``cases.json``.

    Args:
        results: From :func:`~.case_book.run_cases`.
        folder: Made if it is not there.
        facts: What was measured with: the checkpoint, the earlier one.

    Returns:
        The two files.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    provenance = {**facts, **environment_facts()}
    content = {**cases_json(results), "provenance": jsonable(provenance)}
    texts = {PAGE: cases_page(results, provenance), NUMBERS: json.dumps(content, indent=1, allow_nan=False) + "\n"}
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [folder / name for name in texts]


def case_table(results: Sequence[CaseResult]) -> str:
    """The cases for a terminal: of each the number that is nearest to its bound, or beyond it the most."""
    rows = [_summary_row(result) for result in results]
    heads = {"case": "case", "status": "outcome", "now": "now", "limit": "allowed", "before": "before", "name": "of"}
    return plain_table(list(heads.values()), [[row[key] for key in heads] for row in rows])


def cases_page(results: Sequence[CaseResult], facts: Mapping[str, str]) -> str:
    """One self-contained page.

    Args:
        results: What is beyond its bounds first.
        facts: When, where and with what it was made.
    """
    judgement = judge_cases(results)
    counts = {status: sum(result.status == status for result in results) for status in _WORDS}
    return render(
        __package__,
        "cases.html.j2",
        "Case book",
        headline=judgement.headline[0].upper() + judgement.headline[1:],
        colour=_COLOURS[judgement.status],
        counts=", ".join(f"{count} {_WORDS[status]}" for status, count in counts.items() if count),
        count=len(results),
        with_before=any(result.before is not None for result in results),
        summary=[_summary_row(result) for result in results],
        cases=[_case_part(result) for result in results],
        facts=facts,
    )


def _summary_row(result: CaseResult) -> dict[str, str]:
    """The case in one line: the bound that is nearest, or beyond the most."""
    worst = max(result.checks, key=lambda check: (check.status == "unmeasured", check.load))
    if result.status == "beyond":
        worst = max(result.checks, key=lambda check: check.load)
    case = {"case": result.case.name, "status": _WORDS[result.status], "colour": _COLOURS[result.status]}
    return _bound(result, worst)._asdict() | case


def _case_part(result: CaseResult) -> dict[str, Any]:
    ordered = sorted(result.checks, key=lambda check: -check.load)
    sides = [("Before", result.before), ("Now", result.now)]
    return {
        "name": result.case.name,
        "status": _WORDS[result.status],
        "colour": _COLOURS[result.status],
        "why": result.case.why,
        "about": _about(result.case),
        "problems": [f"{side}: {each.problem}" for side, each in sides if each is not None and each.problem],
        "bounds": [_bound(result, check) for check in ordered],
        "pictures": [
            (side, each.caption, _data_uri(each.picture)) for side, each in sides if each is not None and each.picture
        ],
    }


def _bound(result: CaseResult, check: Check) -> _Bound:
    before = result.check_before(check)
    return _Bound(
        check.key,
        _NOTHING if before is None else number(before),
        number(check.value) or _NOTHING,
        number(check.limit),
        _WORDS[check.status],
        _COLOURS[check.status],
        (check.note if check.status == "unmeasured" else check.place) or _NOTHING,
    )


def _about(case: Case) -> str:
    """The recording, the window and the class in one line."""
    window = case.window
    first = f"frame {window.first}" if window.first_s is None else f"second {window.first_s}"
    last = "the end" if window.last is None else f"frame {window.last}"
    words = f"{first} to {last if window.last_s is None else f'second {window.last_s}'}"
    stride = f", one frame in {window.stride}" if window.stride > 1 else ""
    return f"{case.recording}, {words}{stride}" + (f", class {case.kind}" if case.kind else "")


def _data_uri(picture: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(picture).decode('ascii')}"
