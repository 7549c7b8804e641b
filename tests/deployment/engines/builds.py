"""A model, its build, and scripts in the place of the child, which the tests of engines share."""

import importlib
import importlib.util
import platform
import sys
import textwrap

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from lightning_robust.deployment.engines import EngineError, abilities, build_engine, builder

HAVE_RTX = (
    sys.platform == "linux"
    and platform.machine() in ("x86_64", "AMD64")
    and importlib.util.find_spec("tensorrt_rtx") is not None
)
no_rtx = pytest.mark.skipif(not HAVE_RTX, reason='needs Linux x86-64 and: pip install "lightning-robust[rtx]"')
PROFILE = {"image": ((1, 64, 8, 8), (2, 64, 8, 8), (4, 64, 8, 8))}
WEIGHTS = 256 * 64 * 9 + 64 * 256 * 9


def make_model(*, antialias=0):
    """Two convolutions of 147,456 weights each with a Resize between them; batch dynamic."""
    text = f"""<ir_version: 10, opset_import: ["" : 20]>
        g (float[batch,64,8,8] image) => (float[batch,64,4,4] answer) {{
        [wide] a = Conv<pads = [1,1,1,1]>(image, w1)
        [shrink] b = Resize<mode = "linear", antialias = {antialias}>(a, , scales)
        [narrow] answer = Conv<pads = [1,1,1,1]>(b, w2) }}"""
    model = onnx.parser.parse_model(text)
    generator = np.random.default_rng(0)
    weights = {
        "w1": generator.standard_normal((256, 64, 3, 3), np.float32),
        "w2": generator.standard_normal((64, 256, 3, 3), np.float32),
        "scales": np.float32([1, 1, 0.5, 0.5]),
    }
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in weights.items())
    onnx.checker.check_model(model, full_check=True)
    return model


MODEL = make_model()
FP32 = MODEL.SerializeToString()
GOOD = """
    blob = b"engine"
    open(spec["engine"], "wb").write(blob)
    report = dict(status="done", size=len(blob), seconds=0.5, layers={"wide": "FLOAT"}, flags="STRONGLY_TYPED")
    json.dump(report, open(spec["result"], "w"))
"""


def build(model=FP32, **settings):
    return build_engine(model, **{"backend": "tensorrt_rtx", "profile": PROFILE, "time_limit": 120.0} | settings)


def script(tmp_path, monkeypatch, body):
    """Put a script in the place of the child; TensorRT counts as installed."""
    path = tmp_path / "child.py"
    path.write_text(
        "import json, os, pathlib, sys, time\nspec = json.load(open(sys.argv[2]))\n" + textwrap.dedent(body)
    )
    monkeypatch.setattr(builder, "_CHILD", path)
    monkeypatch.setattr(abilities, "missing_package", lambda *_: "")


def refusal(**settings):
    with pytest.raises(EngineError) as caught:
        build(**settings)
    return caught.value
