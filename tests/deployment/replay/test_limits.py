"""Names of a replay's numbers, and limits as files give them."""

import math
import subprocess
import sys

import pytest

from lightning_robust.deployment.engines.targets import TARGETS
from lightning_robust.deployment.pixels.catalogue import CATALOGUE
from lightning_robust.deployment.replay.limits import METRICS, read_numbers, replay_key


def test_names_and_numbers():
    assert read_numbers({"swing": 2, "bgr": {"p99": "5e-1"}, "tensorrt-fp16/lost": 0}, "a") == {
        "swing_px": 2.0,
        "bgr/p99_px": 0.5,
        "tensorrt-fp16/lost": 0.0,
    }
    for name in (*METRICS, *(f"{subject}/{metric}" for subject in (*TARGETS, *CATALOGUE) for metric in METRICS)):
        assert replay_key(name) == name


def test_case_files_are_read_without_torch():
    code = "import sys, lightning_robust.deployment.replay.cases; print({'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"swnig_px": 1}, "a.yaml: bounds: swnig_px: expected a metric out of .*Did you mean 'swing_px'"),
        ({"emulated-fp61": {"p99": 1}}, "emulated-fp61/p99: .* got 'emulated-fp61'. Did you mean 'emulated-fp16'"),
        ({"emulated-fp16": 1}, "expected a metric out of .*, but got 'emulated-fp16'"),
        ({"emulated-fp16": {}}, "bounds: emulated-fp16: expected metrics"),
        ({"swing": 1, "swing_px": 2}, "got two for swing_px"),
        ({"swing": True}, "bounds: swing: expected a number of at least 0, but got True"),
        ({"swing": "two"}, "got 'two'"),
        ({"swing": -1}, "got -1"),
        ({"swing": math.nan}, "got nan"),
        ({"swing": math.inf}, "got inf"),
        ({"swing": [1]}, r"got \[1\]"),
        ({}, "a.yaml: bounds: expected names of metrics"),
        ([1], "a.yaml: bounds: expected names of metrics"),
        (None, "a.yaml: bounds: expected names of metrics"),
    ],
)
def test_rejects_other_limits(given, complaint):
    with pytest.raises(ValueError, match=complaint) as error:
        read_numbers(given, "a.yaml: bounds")
    assert "\n" not in str(error.value)
