"""The report as a person opens it: the page in a real browser, the JSON."""

import html.parser
import json
import re
import shutil
import subprocess
from dataclasses import replace

import pytest

from lightning_robust.deployment.graph.lint import Finding
from lightning_robust.deployment.graph.origin import Origin
from lightning_robust.deployment.parity.result import Examination, MeasuredWeights
from lightning_robust.deployment.report.page import write_report

from ..reports import KEEP, layers, link, node, report

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


def browse(folder, page, width, *options):
    """What Chromium writes about a page, 2,400 pixels high."""
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={folder / 'c'}"]
    command = [CHROMIUM, *flags, f"--window-size={width},2400", *options, page.as_uri()]
    return subprocess.run(command, check=True, capture_output=True, timeout=120, text=True).stdout


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize(("width", "dark"), [(420, True), (1400, False)])
def test_page_in_a_browser(tmp_path, width, dark):
    """Wide and narrow without a bar to scroll sideways; not blank; dark all over where dark is asked for."""
    path = write_report(report(**FULL), tmp_path, history=[(0, {"fp16": 0.5}), (1, {"fp16": 0.3})])
    picture = tmp_path / "page.png"
    mode = ["--blink-settings=preferredColorScheme=0"] if dark else []
    browse(tmp_path, path, width, *mode, f"--screenshot={picture}")
    from PIL import Image

    with Image.open(picture) as image:
        bright = [level > 128 for level in image.convert("L").tobytes()]
        assert image.size == (width, 2400)
        ink = sum(bright) / len(bright) if dark else 1 - sum(bright) / len(bright)
        assert 0.005 < ink < 0.15
    probed = tmp_path / "width.html"
    frame = f'<iframe id="page" style="width: {width}px; border: 0" src="{path.as_uri()}"></iframe>'
    find = "document.title = document.getElementById('page').contentDocument.documentElement.scrollWidth"
    probed.write_text(f"{frame}<script>onload = () => {{ {find} }}</script>")
    found = browse(tmp_path, probed, 1500, "--allow-file-access-from-files", "--dump-dom")
    assert int(re.search(r"<title>(\d+)</title>", found)[1]) <= width


def test_every_line_says_what_to_do(tmp_path):
    """Each link, each what-if and each finding; what is hypothetical is called so, and no text is cut or doubled."""
    targets = {**report().targets, "emulated-bf16": replace(report().targets["emulated-fp16"], note="rounded.")}
    chain = (*report().chain, link("preprocessing", "torch-fp32", "torch-fp32 on bgr", 4.0))
    text = write_report(report(**FULL, targets=targets, chain=chain), tmp_path).read_text()
    for said in (
        "Nothing: as near as sound models are.",
        "Keep the nodes that cost most in fp32. keep_fp32.json has them.",
        "Ask whether the deployed side has it: lightning-robust fingerprint.",
        "Swap the channels once: cv2 reads BGR.",
        "Scale them.",
        "hypothetical",
        "To use it: keep_fp32.json has the list.",
        "<code>adversarial</code>",
    ):
        assert said in text, said
    assert "emulated-bf16: rounded.<" in text
    assert " 0.0 s" not in text


def test_facts_of_the_run_stand_in_the_provenance(tmp_path):
    weights = MeasuredWeights(0, 372, "last.ckpt", "c7f9fbe6")
    about = {"model": "my.Net", "parameters": "1,234", "data": "my.Data"}
    text = write_report(report(weights=weights, about=about, seconds=0.04), tmp_path).read_text()
    rows = dict(re.findall(r"<tr><td>([^<]+)</td><td>([^<]+)</td></tr>", text[text.index("Provenance") :]))
    expected = about | {"epoch": "0", "step": "372", "checkpoint": "last.ckpt", "weights (SHA-256)": "c7f9fbe6"}
    assert expected | {"pass": "0.04 s", "samples": "up to 16", "reference": "torch-fp64"} == {
        name: rows[name] for name in (*expected, "pass", "samples", "reference")
    }
    assert {"command", "machine", "torch", "written"} <= rows.keys()


def test_nodes_stand_with_their_module_line_and_text(tmp_path):
    """Without the columns in which nothing is; nodes that were not measured say so."""
    where = Origin("neck.up", "neck.py:41", "x = self.up(x) + y")
    found = layers(replace(node("a", 0.1), origin=where), node("b", None, exact=False))
    text = write_report(report(layers=found), tmp_path).read_text()
    assert "<td>1</td><td>neck.py:41 Pow</td><td>0.1</td><td>0.1 %</td><td>neck.up</td>" in text
    assert "<td><code>x = self.up(x) + y</code></td>" in text
    assert "<td>not measured</td>" in text
    assert "overflow</th>" not in text
    assert "overflow</th>" in write_report(report(**FULL), tmp_path).read_text()
