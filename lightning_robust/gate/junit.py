"""A judgement as JUnit XML, which CI systems read: one test case for each number."""

from __future__ import annotations

import re
import time
from pathlib import Path
from xml.etree import ElementTree

from lightning_robust.gate.check import ANYTHING, Check, Judgement

# what XML 1.0 has no way to write, not even as a reference
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def write_junit(judgement: Judgement, path: str | Path, seconds: float = 0.0) -> None:
    """Write a judgement as a test suite: a number beyond its limit fails, one that is missing and demanded is an error.

    Args:
        judgement: From a command that judges.
        path: The file; its folder is made.
        seconds: What the command took.

    Raises:
        OSError: If the file cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    ElementTree.ElementTree(junit_xml(judgement, seconds)).write(path, encoding="utf-8", xml_declaration=True)


def junit_xml(judgement: Judgement, seconds: float = 0.0) -> ElementTree.Element:
    """The suites of a judgement; without any number, one case that could not be measured.

    Example:
        >>> suites = junit_xml(Judgement("parity", (Check("emulated-fp16", "rel_l2", 0.2, 0.1, place="net.py:3 Pow"),)))
        >>> suites.find("testsuite/testcase/failure").get("message")
        'emulated-fp16/rel_l2 is 0.2, allowed 0.1; at net.py:3 Pow'
    """
    checks = judgement.checks or (Check(judgement.command, ANYTHING, float("nan"), demanded=True),)
    outcomes = [_element_of(check) for check in checks]
    counts = {"tests": len(checks), "failures": outcomes.count("failure"), "errors": outcomes.count("error")}
    attributes = {"name": f"lightning-robust {judgement.command}", **{k: str(v) for k, v in counts.items()}}
    attributes["time"] = f"{seconds:.3f}"
    root = ElementTree.Element("testsuites", attributes)
    more = {"skipped": str(outcomes.count("skipped")), "timestamp": time.strftime("%Y-%m-%dT%H:%M:%S")}
    suite = ElementTree.SubElement(root, "testsuite", attributes | more)
    for check, outcome in zip(checks, outcomes, strict=True):
        names = {"classname": _clean(".".join(filter(None, (judgement.command, check.case, check.subject))))}
        case = ElementTree.SubElement(suite, "testcase", names | {"name": _clean(check.metric), "time": "0"})
        if outcome:
            message = _clean(f"{check}{f'; at {check.place}' if check.place else ''}")
            kind = {"message": message} | ({"type": check.status} if outcome != "skipped" else {})
            ElementTree.SubElement(case, outcome, kind).text = _clean(_details(check))
        else:
            ElementTree.SubElement(case, "system-out").text = _clean(_details(check))
    ElementTree.SubElement(suite, "system-out").text = _clean(judgement.text())
    return root


def _element_of(check: Check) -> str:
    """The element that a case has for what became of its number; '' for one within."""
    if check.status == "unmeasured":
        return "error" if check.is_demanded else "skipped"
    return "failure" if check.status == "beyond" else ""


def _details(check: Check) -> str:
    """All that is known of a number, a line each."""
    lines = [str(check), f"value: {check.value:.9g}"]
    lines += [] if check.limit is None else [f"limit: {check.limit:.9g}"]
    lines += [f"place: {check.place}"] if check.place else []
    lines += [f"note: {check.note}"] if check.note else []
    return "\n".join(lines)


def _clean(text: str) -> str:
    """A text without the characters that XML cannot hold; lone surrogates and control characters become ``?``."""
    return _FORBIDDEN.sub("?", text)
