"""The report as a person opens it: verdicts against hand-made reports, the page in a real browser."""

import dataclasses
import html.parser
import json
import math
import re
import shutil
import subprocess

import pytest

from lightning_robust.deployment.graph.export import Origin
from lightning_robust.deployment.graph.lint import Finding
from lightning_robust.deployment.numerics.sensitivity import KeepList, NodeSensitivity, Sensitivity
from lightning_robust.deployment.numerics.trace import NodeTrace
from lightning_robust.deployment.parity.measure import ParityReport, TargetResult
from lightning_robust.deployment.report.page import judge, violations, write_report

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def measured(px, rel_l2=1e-4):
    return TargetResult("measured", {"rel_l2": rel_l2, "max_abs": px, "x_px_p99": px})


def report(**changes):
    plain = ParityReport(
        targets={"onnxruntime-fp32": measured(1e-4, 1e-7), "emulated-fp16": measured(0.3)},
        sensitivity={},
        attribution={"export": 1e-4, "fp16": 0.3},
        unit="x_px_p99",
        reference="torch-fp64",
        samples=16,
        seconds=2.0,
    )
    return dataclasses.replace(plain, **changes)


def node(name, cost, *, overflow=0.0, exact=True):
    trace = NodeTrace(math.inf if overflow else 1e-3, overflow, overflow, 0.0)
    return NodeSensitivity(name, "Pow", Origin(f"neck.{name}", "neck.py:41"), cost, exact, trace)


def layers(*nodes, complete=True):
    return Sensitivity(nodes, 0.3, "fp16", "x_px_p99", 4, 1.0, complete)


KEEP = KeepList(("a", "b"), ("neck.a",), 0.02, 0.06, 0.3, "fp16", "x_px_p99", 4, True)


def test_good():
    verdict = judge(report())
    assert (verdict.level, verdict.exceptions) == ("good", ())
    assert verdict.headline == "Safe at fp16 within 0.3 x px (99th percentile)."


def test_preprocessing_is_an_exception_where_it_moves_more_than_fp16():
    moved = {"bgr": {"x_px_p99": 4.2, "times_fp16": 14.0}, "nv12": {"x_px_p99": 0.1, "times_fp16": 0.33}}
    verdict = judge(report(sensitivity=moved))
    assert verdict.level == "mind"
    assert verdict.headline == "Safe at fp16 within 0.3 x px (99th percentile), except:"
    assert "bgr" in verdict.exceptions[0]
    assert "14 times what fp16 does" in verdict.exceptions[0]
    assert judge(report(sensitivity={"nv12": moved["nv12"]})).level == "good"


def test_a_broken_tolerance_is_bad_only_for_its_own_precision():
    targets = report().targets
    bad = judge(report(), {"emulated-fp16/x_px_p99": 0.2})
    assert bad.level == "bad"
    assert bad.headline.startswith("Do not deploy")
    assert bad.exceptions == ("parity/emulated-fp16/x_px_p99 is 0.3, allowed is 0.2.",)
    bf16 = judge(report(targets=targets | {"emulated-bf16": measured(3.0, 0.5)}))
    assert (bf16.level, len(bf16.exceptions)) == ("mind", 1)
    exported = judge(report(targets=targets | {"onnxruntime-fp32": measured(3.0, 0.5)}))
    assert exported.level == "bad"


def test_lost_values_are_bad_under_the_default_tolerances():
    assert judge(report(targets={"emulated-fp16": measured(math.inf, math.inf)})).level == "bad"
    assert judge(report(targets={"emulated-fp16": measured(math.nan, math.nan)})).level == "bad"


def test_what_was_not_measured_is_said():
    built = TargetResult("built", note="not run: no CUDA device")
    verdict = judge(report(targets={"tensorrt-fp16": built}))
    assert verdict.headline == "No half precision was measured: nothing can be said about deployment."
    assert verdict.exceptions == ("tensorrt-fp16 was built only. not run: no CUDA device",)
    failed = TargetResult("failed", note="EngineError: no parser")
    assert judge(report(targets=report().targets | {"tensorrt-fp16": failed})).level == "bad"


def test_an_overflow_is_named_by_module_and_line():
    verdict = judge(report(layers=layers(node("a", 0.1), node("b", 0.2, overflow=0.25)), keep=KEEP))
    (line,) = verdict.exceptions
    assert line.startswith("neck.b (neck.py:41) (Pow) is the first to overflow in fp16: 25 %")


def test_a_drift_beyond_the_tolerance_is_told_in_the_summary():
    from lightning_robust.deployment.report.tables import layer_sentences

    drifting = dataclasses.replace(node("b", 0.2), trace=NodeTrace(0.02, 0.0, 0.0, 0.0))
    lines = layer_sentences(report(layers=layers(node("a", 0.1), drifting), keep=KEEP))
    assert lines[0] == "neck.b (neck.py:41) (Pow) is the first whose values drift in fp16, by 2 %."
    assert lines[1].startswith("What fp16 hurts most: neck.b")
    assert lines[2].startswith("With 2 nodes kept in fp32 the distance falls from 0.3 to 0.02")


def test_violations_closed_form():
    scalars = {"parity/a-fp16/rel_l2": 0.2, "parity/a-fp16/px": 3.0}
    assert violations(scalars, {"a-fp16": 0.2, "a-fp16/px": 2.0, "other-fp16": 0.0}) == [("parity/a-fp16/px", 3.0, 2.0)]


class Outline(html.parser.HTMLParser):
    """Headings, and whatever would be fetched from elsewhere."""

    def __init__(self):
        super().__init__()
        self.headings, self.fetched, self.open = [], [], None

    def handle_starttag(self, tag, attributes):
        self.open = tag
        links = [value for key, value in attributes if key in ("src", "href", "xlink:href")]
        self.fetched += [value for value in links if not value.startswith("#")]

    def handle_data(self, data):
        if self.open in ("h1", "h2") and data.strip():
            self.headings.append(data.strip())


FULL = {
    "sensitivity": {"bgr": {"x_px_p99": 4.2, "times_fp16": 14.0}},
    "layers": layers(
        node("a", 0.1), node("b<script>", 0.2, overflow=0.25), node("c", 0.01, exact=False), complete=False
    ),
    "keep": KEEP,
    "findings": (Finding("A3", "n", "neck.a", "neck.py:41", "weights are large.", "They overflow.", "Scale them."),),
    "notes": ("Something < else.",),
}


def test_page_is_whole_and_fetches_nothing(tmp_path):
    path = write_report(report(**FULL), tmp_path, history=[(0, {"fp16": 0.5}), (1, {"fp16": 0.3})])
    text = path.read_text()
    outline = Outline()
    outline.feed(text)
    assert outline.headings == [
        "Deployment parity",
        "Distance of each target",
        "Where the distance comes from",
        "Which layers fp16 hurts",
        "Keep in fp32",
        "What another preprocessing does to the outputs",
        "What the graph will do on TensorRT",
        "Notes",
        "Provenance",
    ]
    assert outline.fetched == []
    assert "<script" not in text
    assert text.count("<svg") == 2
    assert "Time was up" in text


def test_json_holds_everything_and_is_strict(tmp_path):
    write_report(report(**FULL), tmp_path, provenance={"checkpoint": "last.ckpt"})

    def refuse(constant):
        raise AssertionError(constant)

    content = json.loads((tmp_path / "parity.json").read_text(), parse_constant=refuse)
    assert content["verdict"]["level"] == "mind"
    assert content["targets"]["emulated-fp16"]["metrics"]["x_px_p99"] == 0.3
    assert content["layers"]["nodes"][1]["trace"]["drift"] == "inf"
    assert content["provenance"]["checkpoint"] == "last.ckpt"
    assert {"torch", "onnx", "onnxruntime", "command", "machine"} <= content["provenance"].keys()
    assert json.loads((tmp_path / "keep_fp32.json").read_text())["nodes_to_exclude"] == ["^a$", "^b$"]


def test_a_report_of_nothing_is_a_page_too(tmp_path):
    empty = report(targets={}, attribution={})
    text = write_report(empty, tmp_path / "new" / "folder").read_text()
    assert "nothing can be said" in text
    assert not (tmp_path / "new" / "folder" / "keep_fp32.json").exists()


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_page_in_a_browser(tmp_path):
    """Rendered without an error, 1,100 pixels wide without a bar to scroll sideways, and not blank."""
    path = write_report(report(**FULL), tmp_path)
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={tmp_path / 'c'}"]
    picture = tmp_path / "page.png"
    command = [CHROMIUM, *flags, "--window-size=1100,2400", f"--screenshot={picture}", path.as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    from PIL import Image

    with Image.open(picture) as image:
        levels = image.convert("L").getdata()
        assert image.size == (1100, 2400)
        assert 0.005 < sum(level < 128 for level in levels) / len(levels) < 0.5
    width = tmp_path / "width.html"
    probe = "<script>document.title = document.documentElement.scrollWidth</script></body>"
    width.write_text(path.read_text().replace("</body>", probe))
    done = subprocess.run(
        [CHROMIUM, *flags, "--window-size=1100,2400", "--dump-dom", width.as_uri()],
        check=True,
        capture_output=True,
        timeout=120,
        text=True,
    )
    assert int(re.search(r"<title>(\d+)</title>", done.stdout)[1]) <= 1100
