import math
import re
from xml.etree import ElementTree

import pytest

from lightning_robust.gate.check import Check, Judgement
from lightning_robust.gate.junit import junit_xml, write_junit

CHECKS = (
    Check("emulated-fp16", "lateral_px_p99", 0.63, 0.5, 0.55, 0.71, place="detector.py:92 Sub"),
    Check("torch-fp32", "rel_l2", 1e-7, 1e-5),
    Check("tensorrt-fp16", "rel_l2", math.nan, 1e-3, note="no CUDA device answers"),
    Check("openvino-int8", "rel_l2", math.nan, note="openvino is not installed"),
    Check("emulated-bf16", "p99_px", 0.2, 0.5, case="night"),
)
# as the schema that Jenkins publishes has it: elements, their attributes, and their children in order
SCHEMA = {
    "testsuites": ({"name", "time", "tests", "failures", "errors", "disabled"}, ["testsuite"]),
    "testsuite": (
        {"name", "tests", "failures", "errors", "time", "skipped", "timestamp", "hostname", "id", "package"},
        ["properties", "testcase", "system-out", "system-err"],
    ),
    "testcase": (
        {"name", "classname", "time", "assertions", "status"},
        ["skipped", "error", "failure", "system-out", "system-err"],
    ),
    "failure": ({"message", "type"}, []),
    "error": ({"message", "type"}, []),
    "skipped": ({"message", "type"}, []),
    "system-out": (set(), []),
}


def follow(element):
    attributes, children = SCHEMA[element.tag]
    assert set(element.attrib) <= attributes, element.tag
    tags = [child.tag for child in element]
    assert tags == sorted(tags, key=children.index)
    for child in element:
        follow(child)


def test_the_structure_is_that_of_the_schema_and_the_counts_are_right(tmp_path):
    write_junit(Judgement("parity", CHECKS, "parity.yaml"), tmp_path / "ci" / "junit.xml", seconds=1.5)
    root = ElementTree.parse(tmp_path / "ci" / "junit.xml").getroot()
    follow(root)
    (suite,) = root
    cases = suite.findall("testcase")
    counts = {tag: len(suite.findall(f"testcase/{tag}")) for tag in ("failure", "error", "skipped")}
    assert counts == {"failure": 1, "error": 1, "skipped": 1}
    assert [suite.get(name) for name in ("tests", "failures", "errors", "skipped", "time")] == [
        "5",
        "1",
        "1",
        "1",
        "1.500",
    ]
    assert [root.get(name) for name in ("tests", "failures", "errors")] == ["5", "1", "1"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", suite.get("timestamp"))
    assert [case.get("classname") for case in cases][-1] == "parity.night.emulated-bf16"
    assert len({(case.get("classname"), case.get("name")) for case in cases}) == 5


def test_a_failure_names_place_and_size():
    (failure,) = junit_xml(Judgement("parity", CHECKS)).iter("failure")
    assert failure.get("type") == "beyond"
    assert failure.get("message") == (
        "emulated-fp16/lateral_px_p99 is 0.63 px (0.55 to 0.71), allowed 0.5; at detector.py:92 Sub"
    )
    assert failure.text.splitlines()[1:] == ["value: 0.63", "limit: 0.5", "place: detector.py:92 Sub"]
    (error,) = junit_xml(Judgement("parity", CHECKS)).iter("error")
    assert "no CUDA device answers" in error.get("message")


def test_nothing_at_all_is_an_error():
    root = junit_xml(Judgement("parity"))
    follow(root)
    assert len(list(root.iter("error"))) == 1


@pytest.mark.parametrize(
    "text", ["\x00\x1b[31m", "\ud800", "\ufffe", "]]>", "<b>&'\"", "line\nbreak", "ümlaut\U0001f600"]
)
def test_every_text_is_read_back_but_for_what_xml_cannot_hold(tmp_path, text):
    check = Check(text, text, 1.0, 0.5, place=text, note=text, case=text)
    write_junit(Judgement("parity", (check,), text, (text,)), tmp_path / "junit.xml")
    root = ElementTree.parse(tmp_path / "junit.xml").getroot()
    (case,) = root.iter("testcase")
    kept = re.sub("[\x00\x1b\ud800\ufffe]", "?", text)
    assert case.get("name") == kept
