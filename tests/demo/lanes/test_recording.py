"""A trained detector on the real recording; runs where both are given."""

import os
import sys
from pathlib import Path

import pytest

CHECKPOINT = os.environ.get("LIGHTNING_ROBUST_LANES_CHECKPOINT", "")
RECORDING = os.environ.get("LIGHTNING_ROBUST_LANES_RECORDING", "")


@pytest.mark.skipif(
    not (Path(CHECKPOINT).is_file() and Path(RECORDING).is_file()),
    reason="set LIGHTNING_ROBUST_LANES_CHECKPOINT and LIGHTNING_ROBUST_LANES_RECORDING to run this",
)
def test_follows_the_ego_lines(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "benchmarks"))
    import lanes_recording

    from lightning_robust.demo.lanes import predict

    frames = lanes_recording.read_frames(Path(RECORDING))
    reference = lanes_recording.reference_lines(frames, 308.0)
    result = lanes_recording.measure(lanes_recording.at_rows(*predict(CHECKPOINT, frames)), reference)
    sys.modules.pop("lanes_recording")
    assert result["found"] > 0.99
    assert result["median_px"] < 2.6
    assert result["p90_px"] < 8.7
