"""The table and the JSON of a replay."""

import json
import math
from dataclasses import replace

from lightning_robust.deployment.replay.report import replay_json, replay_markdown, replay_rows, replay_summary
from lightning_robust.deployment.replay.results import ReplayReport, ReplayResult

OWN = {"swing": 1.25, "bend": 0.5, "present": 1.0}
AGAINST = {"mean": 0.0, "p99": 0.25, "lost": 0.125, "frames_lost": 0.0, "swing_beyond": 0.0625}


def measured(p99):
    return ReplayResult("measured", "note", (OWN | AGAINST | {"p99": p99}, OWN | AGAINST))


REPORT = ReplayReport(
    "columns_px",
    (0, 1, 3),
    {"frame 2": "damaged"},
    ReplayResult("measured", lines=({"swing": 1.25, "p99": 0.0}, {"p99": 0.0})),
    {"emulated-fp16": measured(0.5), "engine-fp16": ReplayResult("built", "not run: no device")},
    {"mild": measured(0.3), "hard": measured(math.inf), "broken": ReplayResult("failed", "ValueError: no")},
    None,
    12.0,
    ("One remark.",),
)


def test_rows():
    header, rows = replay_rows(REPORT)
    named = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    assert list(named) == ["torch-fp32", "emulated-fp16", "engine-fp16", "hard", "mild", "broken"]  # worst first
    assert named["torch-fp32"]["swing px"] == "1.25 / -"
    assert named["torch-fp32"]["p99 px"] == "-"  # against itself
    assert named["emulated-fp16"]["p99 px"] == "0.5 / 0.25"
    assert named["emulated-fp16"]["lost %"] == "12.5 / 12.5"
    assert named["hard"]["p99 px"] == "inf / 0.25"
    assert named["engine-fp16"]["status"] == "built"
    assert set(list(named["engine-fp16"].values())[1:-1]) == {"-"}


def test_parts_have_columns_where_a_module_tells_them():
    """Columns that no result has are left out, and the legend explains those that are there."""
    assert not any("known" in head or "motion" in head for head in replay_rows(REPORT)[0])
    sure = ReplayResult("measured", "", (AGAINST | {"known_p99": 0.125}, AGAINST))
    header, (_, row) = replay_rows(replace(REPORT, runtimes={"emulated-fp16": sure}, perturbations={}))
    assert dict(zip(header, row, strict=True))["known p99 px"] == "0.125 / -"
    assert "p99 beyond motion px" not in header
    moved = ReplayResult("measured", "", (AGAINST | {"p99_beyond_motion": 2.0},))
    text = replay_markdown(replace(REPORT, perturbations={"crop": moved}))
    assert "p99 beyond motion px" in text
    assert "against where the right lines are in the moved picture" in text


def test_text_says_why_something_has_no_numbers():
    for text in (replay_markdown(REPORT), replay_summary(REPORT)):
        assert "3 frames, 1 skipped, `columns_px`" in text
        assert "engine-fp16: not run: no device" in text
        assert "broken: ValueError: no" in text
        assert "One remark." in text
        assert "emulated-fp16: note" not in text


def test_json_is_strict():
    read = json.loads(json.dumps(replay_json(REPORT), allow_nan=False))
    assert read["frames"] == 3
    assert read["skipped"] == {"frame 2": "damaged"}
    assert read["perturbations"]["hard"]["lines"][0]["p99"] == "inf"
    assert read["perturbations"]["mild"]["lines"][0]["p99"] == 0.3
    assert read["runtimes"]["engine-fp16"] == {
        "status": "built",
        "note": "not run: no device",
        "seconds": 0.0,
        "lines": [],
    }
