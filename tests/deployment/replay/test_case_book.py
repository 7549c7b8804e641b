"""A case book replayed with planted engines: numbers, outcomes, pictures, and cases that cannot be read."""

import io
import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from lightning_robust.deployment.engines import Built, Runtime, run_module
from lightning_robust.deployment.replay.case_book import (
    ReplayedCase,
    cases_json,
    judge_cases,
    measure_case,
    read_earlier,
    run_cases,
)
from lightning_robust.deployment.replay.case_page import write_cases
from lightning_robust.deployment.replay.cases import Case, Window
from lightning_robust.deployment.replay.measure import replay

from ..recordings import Stripes, save_pictures, stripes


class Moved(Runtime):
    """PyTorch with the right line moved."""

    def __init__(self, by, precision="fp16"):
        super().__init__("emulated", precision)
        self.by = by

    def build(self, subject):
        def run(args):
            columns, mass = run_module(subject.module, args)
            columns[:, 1] += self.by
            return [columns, mass]

        return Built(run)


def measure(*by):
    return lambda case, recording: replay(Stripes(), recording, [Moved(b, p) for b, p in by])


NOW, EARLIER = measure((0.5, "fp16"), (2.0, "bf16")), measure((0.25, "fp16"), (3.0, "bf16"))


@pytest.fixture
def case(tmp_path):
    drive = save_pictures(tmp_path / "drive", stripes(range(6, 28, 2), [40] * 11))
    bounds = {"p99_px": 1.0, "emulated-bf16/p99_px": 2.5}
    return Case(tmp_path / "bridge.yaml", "It <swung>.", drive, bounds, Window(2, 7), kind="shade")


def variant(case, name, **changes):
    return replace(case, file=case.file.with_name(f"{name}.yaml"), **changes)


def nothing_before(case, subject):
    return None


def test_numbers_of_now_and_before(case):
    (result,) = run_cases([case], NOW, lambda case, subject: measure_case(case, EARLIER, subject)[0])
    assert result.status == "within"
    assert result.now.numbers["emulated-fp16/p99_px"] == pytest.approx(0.5, abs=1e-5)
    assert result.before.numbers["emulated-bf16/p99_px"] == pytest.approx(3.0, abs=1e-5)
    assert [result.check_before(check) for check in result.checks] == pytest.approx([0.25, 3.0], abs=1e-5)
    assert result.load == pytest.approx(2.0 / 2.5, abs=1e-5)


def test_the_picture_shows_what_is_nearest_to_its_bounds(case):
    """bf16 takes 80 % of its bound and fp16 half of its, so bf16 is drawn: 2 px to the right of 40."""
    measured, _ = measure_case(case, NOW)
    assert re.fullmatch(r"emulated-bf16, frame [2-7], up to 2 px", measured.caption)
    picture = np.asarray(Image.open(io.BytesIO(measured.picture))).astype(int)
    assert picture.shape[1] == 720
    orange = (picture - [255, 79, 20]).__abs__().sum(2) < 90
    columns = np.nonzero(orange[20:-20])[1] / 720 * 64 - 0.5
    assert np.abs(columns[columns > 32] - 42).max() < 1.0
    other, _ = measure_case(case, NOW, "emulated-fp16")
    assert other.caption.startswith("emulated-fp16")


def test_what_is_beyond_comes_first_and_what_cannot_be_read_stops_nothing(case):
    (case.file.parent / "broken.mp4").write_bytes(b"broken" * 99)
    cases = [
        variant(case, "calm"),
        variant(case, "broken", recording=case.file.parent / "broken.mp4"),
        variant(case, "tight", bounds={"emulated-fp16/p99_px": 0.4}),
        variant(case, "tighter", bounds={"emulated-fp16/p99_px": 0.1}),
        variant(case, "missing", bounds={"tensorrt-fp16/p99_px": 0.1}),
    ]
    results = run_cases(cases, NOW, nothing_before)
    assert [(result.case.name, result.status) for result in results] == [
        ("tighter", "beyond"),
        ("tight", "beyond"),
        ("broken", "unmeasured"),
        ("missing", "unmeasured"),
        ("calm", "within"),
    ]
    judgement = judge_cases(results)
    assert (judgement.status, judgement.exit_code) == ("beyond", 1)
    assert "beyond the bounds of 5 cases: tighter: emulated-fp16/p99_px is 0.5 px, allowed 0.1" in judgement.text()
    assert judge_cases(results[2:]).exit_code == 2
    assert judge_cases(results[4:]).exit_code == 0
    assert results[2].now.problem.startswith("ValueError: Expected a video at ")
    assert results[2].now.picture == b""


def test_a_picture_that_cannot_be_drawn_stops_nothing(case):
    def measure(case, recording):
        report = NOW(case, recording)
        few = replace(report.geometry, rows=report.geometry.rows[1:])
        return replace(report, geometry=few) if case.name == "bad" else report

    results = {
        each.case.name: each for each in run_cases([variant(case, n) for n in ("bad", "calm")], measure, nothing_before)
    }
    assert {name: each.status for name, each in results.items()} == {"bad": "unmeasured", "calm": "within"}
    assert results["bad"].now.problem.startswith("ValueError: x and y must have same first dimension")


def test_an_engine_that_fails_in_one_case_is_not_measured_there(case):
    def failing(case, recording):
        raise RuntimeError("CUDA error\nand a trace")

    measured, checks = measure_case(case, failing)
    assert measured == ReplayedCase(problem="RuntimeError: CUDA error")
    assert [(check.key, check.status, check.note) for check in checks] == [
        ("any target/p99_px", "unmeasured", "RuntimeError: CUDA error"),
        ("emulated-bf16/p99_px", "unmeasured", "RuntimeError: CUDA error"),
    ]


def test_numbers_of_a_file_are_compared_by_metric(case):
    (result,) = run_cases([case], NOW, lambda case, subject: ReplayedCase({"p99_px": 3.1}))
    assert [result.check_before(check) for check in result.checks] == [3.1, 3.1]


def test_json_is_what_a_later_run_takes_as_before(case, tmp_path):
    (result,) = run_cases([case], NOW, nothing_before)
    (tmp_path / "cases.json").write_text(json.dumps(cases_json([result])))
    earlier = read_earlier(tmp_path / "cases.json")
    assert earlier == {"bridge": result.now}


def test_json_keeps_infinite_numbers(case, tmp_path):
    (result,) = run_cases([case], NOW, nothing_before)
    lost = replace(result, now=ReplayedCase({"emulated-fp16/p99_px": math.inf, "emulated-fp16/lost": 1.0}))
    (tmp_path / "cases.json").write_text(json.dumps(cases_json([lost]), allow_nan=False))
    assert read_earlier(tmp_path / "cases.json") == {"bridge": lost.now}


@pytest.mark.parametrize(
    "text", ["", "[]", '{"cases": 3}', '{"cases": {"a": {"now": {"numbers": {"swnig": 1}}}}}', "\0", "[" * 5000]
)
def test_rejects_other_json(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=r"Expected the cases.json of an earlier run at .*a\.json, but got") as error:
        read_earlier(tmp_path / "a.json")
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"nowhere\.json"):
        read_earlier(tmp_path / "nowhere.json")


def test_one_page_with_both_sides(case, tmp_path):
    cases = [variant(case, "calm"), variant(case, "tight", bounds={"emulated-fp16/p99_px": 0.4, "lost": 0.0})]
    results = run_cases(cases, NOW, lambda case, subject: measure_case(case, EARLIER, subject)[0])
    page, numbers = write_cases(results, tmp_path / "out", {"checkpoint": "new.ckpt", "before": "old.ckpt"})
    text = page.read_text()
    assert text.index('href="#case-1">tight') < text.index('href="#case-2">calm')
    assert "2 cases: 1 beyond, 1 within." in text
    assert "It &lt;swung&gt;." in text
    assert "frame 2 to frame 7, class shade" in text
    cells = re.findall(r"<td>(?:<strong[^>]*>)?([^<]*)", text[text.index('id="case-1"') :])
    assert cells[:6] == ["emulated-fp16/", "beyond", "0.5", "0.4", "0.25", "frame 2"]
    assert text.count("data:image/jpeg;base64,") == 4
    assert not re.findall(r'(?:src|href)="(?!data:|#)', text)
    assert "new.ckpt" in text
    content = json.loads(numbers.read_text())
    assert (content["status"], content["exit"]) == ("beyond", 1)
    assert content["cases"]["tight"]["checks"][0] == {
        "name": "emulated-fp16/p99_px",
        "value": pytest.approx(0.5, abs=1e-5),
        "limit": 0.4,
        "status": "beyond",
        "place": "frame 2",
        "before": pytest.approx(0.25, abs=1e-5),
    }
    assert content["provenance"]["before"] == "old.ckpt"


def test_a_page_without_anything_before_has_no_such_column(case, tmp_path):
    results = run_cases([case], NOW, nothing_before)
    text = write_cases(results, tmp_path, {})[0].read_text()
    assert "before</th>" not in text
    assert text.count("data:image/jpeg") == 1
