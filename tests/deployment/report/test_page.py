"""The report as a person opens it: the page in a real browser, the JSON."""

import html.parser
import json
import re
import shutil
import subprocess
from dataclasses import replace

import pytest

from lightning_robust.deployment.graph.lint import Finding
from lightning_robust.deployment.parity.result import Examination
from lightning_robust.deployment.report.page import write_report

from ..reports import KEEP, layers, node, report

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


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
    "sensitivity": {"bgr": {"x_px_p99": 4.2, "x_px_mean": 2.0, "times_fp16": 14.0}},
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
        "The chain from PyTorch to the engine",
        "Which layers fp16 hurts",
        "Keep in fp32",
        "What if the deployed side preprocessed otherwise?",
        "What the graph will do on TensorRT",
        "Notes",
        "Provenance",
    ]
    assert outline.fetched == []
    assert "<script" not in text
    assert text.count("<svg") == 4  # the chain, now and over the epochs; costs and drift
    assert "Time was up" in text


def test_int8_has_a_part_of_its_own_and_a_list(tmp_path):
    found = replace(layers(node("conv", 0.1)), precision="int8")
    keep = replace(KEEP, precision="int8", nodes=("conv",))
    path = write_report(report(**FULL, int8=Examination(found, keep)), tmp_path)
    outline = Outline()
    outline.feed(path.read_text())
    assert outline.headings[3:7] == [
        *("Which layers fp16 hurts", "Keep in fp32", "Which layers int8 hurts", "Keep out of int8")
    ]
    assert path.read_text().count("<svg") == 5
    assert json.loads((tmp_path / "exclude_int8.json").read_text())["nodes_to_exclude"] == ["^conv$"]
    assert json.loads((tmp_path / "keep_fp32.json").read_text())["nodes"] == ["a", "b"]
    assert json.loads((tmp_path / "parity.json").read_text())["int8"]["keep"]["precision"] == "int8"


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
    empty = report(targets={}, chain=())
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
