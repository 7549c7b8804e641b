"""The page of a comparison: numbers as in the table, the best marked, what is missing named."""

import json
import re
from pathlib import Path

import pytest

from lightning_robust.comparison.columns import GROUPS
from lightning_robust.comparison.finished_runs import SECONDS, FinishedRun
from lightning_robust.comparison.page import cost_rows, html_page, markdown_page, missing, write_comparison
from lightning_robust.comparison.table import compare_runs

CALLBACK = "lightning_robust.callbacks.SWACallback"


def finished(seed, accuracy, attacked, seconds, *, swa=False):
    content = {
        "seed_everything": seed,
        "model": {"class_path": "a.B"},
        "swa": {"class_path": CALLBACK} if swa else False,
    }
    scalars = {"val/acc": accuracy, SECONDS: seconds} | (
        {} if attacked is None else {"adversarial/val_acc@0.1": attacked}
    )
    return FinishedRun(folder=f"{swa}-{seed}", config=content, scalars=scalars)


@pytest.fixture
def comparison():
    plain = [finished(seed, 0.5 + seed / 8, 0.25, 10.0) for seed in range(2)]
    return compare_runs([*plain, finished(0, 0.875, 0.125, 15.0, swa=True)])


def test_markdown_marks_the_best(comparison):
    text = re.sub(" +", " ", markdown_page(comparison))  # columns are padded
    rows = [line for line in text.splitlines() if line.startswith(("| 1", "| 2"))]
    assert rows == [
        "| 1 | plain | 2 | 0.5625 (0.5 to 0.625) | **0.25 (0.25 to 0.25)** | **10 (10 to 10)** |",
        "| 2 | swa | 1 | **0.875** | 0.125 | 15 |",
    ]
    assert "| swa | 1.50 x | +0.312 | -0.125 |" in text


def test_costs_need_one_plain_row(comparison):
    assert cost_rows(comparison)[0] == [
        *("run", "training time", "clean: val/acc ↑", "attacked: adversarial/val_acc@0.1 ↑")
    ]
    assert cost_rows(compare_runs([finished(0, 0.5, 0.25, 1.0, swa=True)])) is None


def test_missing_numbers_name_their_source():
    runs = compare_runs([finished(0, 0.5, 0.25, 10.0), finished(0, 0.5, None, 10.0, swa=True)])
    lines = missing(runs)
    sources = {group.name: group.source for group in GROUPS}
    assert lines[0] == f"attacked: missing in row 2. It comes from {sources['attacked']}."
    assert f"fp16: no run has such a number. It comes from {sources['fp16']}." in lines
    assert re.search(r"\| - +\|", markdown_page(runs))


def test_html_has_every_number_and_escapes(comparison):
    page = html_page(comparison, {"command": "<script>"})
    assert '<td class="best">0.875</td>' in page
    assert '0.5625<br><span class="soft">0.5 to 0.625</span>' in page
    assert "<script>" not in page
    assert not re.findall(r'(?:src|href)="http', page)


def test_files(comparison, tmp_path):
    paths = write_comparison(comparison, tmp_path / "out")
    assert [path.name for path in paths] == ["comparison.html", "comparison.md", "comparison.json", "pareto.png"]
    assert paths[1].read_text().endswith("\n![Robust against clean](pareto.png)\n")
    assert paths[3].read_bytes().startswith(b"\x89PNG")
    told = json.loads(paths[2].read_text())
    assert told["rows"][0]["metrics"]["val/acc"] == {
        "values": [0.5, 0.625],
        "mean": 0.5625,
        "interval": [0.5, 0.625],
        "best": False,
    }
    assert told["rows"][1]["times_plain"] == 1.5
    assert "torch" in told["provenance"]


EVIL = "val/<img src=x onerror=alert(1)>|[a](javascript:b)\n# head `x\x1b[31m $\\frac{$"


def test_names_of_others_stay_text(tmp_path):
    """A metric, a run and a note cannot bring HTML, links, cells, lines, escape sequences or mathematics."""
    runs = [
        FinishedRun(
            Path(f"<script>{seed}|"),
            {"model": {"class_path": "a.B", "init_args": {"x": f"<b>{seed}|\n"}}},
            {EVIL: 0.5 + seed, "val/acc": 0.5 + seed, "adversarial/val_acc@$^{$": 0.25 - seed / 8},
            (f"<img {seed}>\n# bad",),
        )
        for seed in range(2)
    ]
    comparison = compare_runs(runs)
    paths = {path.name: path for path in write_comparison(comparison, tmp_path)}
    assert "pareto.png" in paths
    text, page = paths["comparison.md"].read_text(), paths["comparison.html"].read_text()
    assert not re.search(r"(?<!\\)<(img|script|b)\b", text)
    assert "](javascript" not in text
    assert "\x1b" not in text
    assert [line for line in text.splitlines() if line.startswith("#")] == []
    table = [line for line in text.splitlines() if line.startswith("|")][:4]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {3 + len(comparison.columns) + 1}
    assert not re.search(r"<(img|script|b)\b", page)


def test_code_is_code_and_what_was_not_asked_for_is_not_missed(comparison):
    page = html_page(comparison, {})
    assert "<code>lightning-robust replay --ckpt ... --frames ... --output RUN/replay</code>" in page
    assert "`" not in page
    runs = [run for row in comparison.rows for run in row.runs]
    asked = compare_runs(runs, "val/acc")
    assert missing(asked) == []
    assert "no run has such a number" not in html_page(asked, {}) + markdown_page(asked)


def test_cautions_come_before_the_numbers():
    models = [FinishedRun(Path(name), {"model": {"class_path": name}}, {"val/acc": 0.5}) for name in ("my.A", "my.B")]
    comparison = compare_runs(models)
    for text in (markdown_page(comparison), html_page(comparison, {})):
        assert text.index("The rows are of different models") < text.index("val/")
