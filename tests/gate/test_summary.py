import math
from html.parser import HTMLParser

import pytest

from lightning_robust.gate.check import Check, Judgement
from lightning_robust.gate.summary import STEP_SUMMARY, escape, summary_markdown, write_summary

NEAR = Check("torch-fp32", "rel_l2", 1e-7, 1e-5)
FAR = Check("emulated-fp16", "lateral_px_p99", 0.63, 0.5, 0.55, 0.71, place="detector.py:92 Sub")
LOST = Check("tensorrt-fp16", "rel_l2", math.nan, 1e-3, note="no CUDA device")


def test_the_worst_stands_first_and_each_once():
    rows = [line for line in summary_markdown(Judgement("parity", (NEAR, LOST, FAR))).splitlines() if line[:1] == "|"][
        2:
    ]
    assert [row.split("|")[1].strip() for row in rows] == ["❌", "⚠️", "✅"]
    assert [cell.strip() for cell in rows[0].split("|")[2:-1]] == [
        *("emulated-fp16/lateral\\_px\\_p99", "0.63 px \\(0.55 to 0.71\\)", "0.5", "detector.py:92 Sub"),
    ]
    assert "no CUDA device" in rows[1]


def test_of_many_numbers_a_hundred_are_shown():
    checks = tuple(Check(f"case {i}", "p99", float(i), 1000.0) for i in range(250))
    text = summary_markdown(Judgement("replay", checks))
    assert sum(line.startswith("| ✅") for line in text.splitlines()) == 100
    assert "and 150 more" in text
    assert "case 249/p99" in next(line for line in text.splitlines() if line.startswith("| ✅"))


@pytest.mark.parametrize(
    "text",
    ["<script>alert(1)</script>", "a|b", "a\\|b", "`x`|", "![i](http://x)", "a\nb", "\r\n| x |", "</td>", "&lt;"],
)
def test_no_html_and_no_table_break_gets_through(text):
    check = Check(text, "p99", 1.0, 0.5, place=text, note=text, case=text)
    lines = summary_markdown(Judgement("parity", (check,), text, (text,))).splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert {row.count("|") for row in rows} == {6}
    found = []
    parser = HTMLParser(convert_charrefs=False)
    parser.handle_starttag = parser.handle_startendtag = lambda tag, attrs: found.append(tag)
    parser.handle_endtag = found.append
    parser.feed("\n".join(lines))
    assert found == []
    assert "![" not in "\n".join(lines)
    assert len(lines) == 9  # title, verdict, a table of one row, a remark, and what is empty between them
    assert len(escape(text).splitlines()) <= 1


def test_github_gets_it_added_and_a_file_gets_it_anew(tmp_path):
    step, file = tmp_path / "step.md", tmp_path / "out" / "summary.md"
    step.write_text("earlier\n")
    for _ in range(2):
        write_summary(Judgement("parity", (NEAR,)), file, {STEP_SUMMARY: str(step)})
    text = summary_markdown(Judgement("parity", (NEAR,)))
    assert file.read_text() == text
    assert step.read_text() == "earlier\n" + 2 * (text + "\n")
    write_summary(Judgement("parity", (NEAR,)), None, {})
    assert step.read_text().count("###") == 2
