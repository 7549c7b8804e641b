"""How `lane_corruptions.py` counts: as RobustValidationCallback does, and relative to the same seed's baseline."""

import pytest
import torch

from lightning_robust import RobustValidationCallback
from lightning_robust.demo.lanes import LaneData, LaneDetector
from lightning_robust.deployment.pixels.corruptions import corruptions


def test_matches_the_callback(benchmark, monkeypatch):
    """Two networks at once on eight pictures, one in space and one in time: the callback's numbers of each."""
    lanes, rows = benchmark("lane_corruptions"), benchmark("rows")
    under = ["rain@3", "frame_loss@4"]
    monkeypatch.setattr(lanes, "corruptions", lambda: corruptions(under))
    detectors = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        detectors.append(LaneDetector(channels=8, hidden=16).eval())
    found = lanes.answers(detectors, 8)
    assert found[0] != found[1]
    callback = RobustValidationCallback([], under=under, batches=1)
    rows.quiet_trainer([callback]).validate(detectors[0], LaneData(num_val=8, render_workers=0), verbose=False)
    assert set(found[0]) == set(callback.measured) == {"clean", *under}
    for condition, metrics in found[0].items():
        for metric, value in metrics.items():
            assert value == pytest.approx(callback.measured[condition][metric], rel=1e-4), (condition, metric)


def test_closed_form(benchmark):
    """Half the error under one of two corruptions is an mCE of 0.75; a missing line is told beside the error."""
    lanes = benchmark("lane_corruptions")
    before = {
        name: {lanes.ERROR: error, lanes.FOUND: 1.0} for name, error in [("clean", 2), ("fog@1", 4), ("fog@2", 8)]
    }
    before["snow@1"] = {lanes.ERROR: 10.0, lanes.FOUND: 1.0}
    after = {**before, "snow@1": {lanes.ERROR: 5.0, lanes.FOUND: 0.5}}
    told = lanes.told(after, before)
    assert (told["mCE"], lanes.told(before, before)["mCE"]) == (0.75, 1.0)
    assert (told["clean"], told["fog"], told["snow"], told["mean error"]) == (2, 6, 5, 5.5)
    assert (told["snow, found %"], told["mean, found %"], told["clean, found %"]) == (50, 75, 100)
    table = lanes.table({"before": [before, before], "after": [after, after]})
    assert "0.750 (0.750 to 0.750)" in table


def test_answers_are_kept(benchmark, tmp_path, monkeypatch):
    lanes, asked = benchmark("lane_corruptions"), []
    paths = [tmp_path / name for name in "ab"]
    for path in paths:
        path.write_bytes(path.name.encode())
    monkeypatch.setattr(lanes, "load_detector", lambda path: path.name)
    monkeypatch.setattr(lanes, "answers", lambda ones, _: [asked.append(one) or {"clean": {one: 1.0}} for one in ones])
    for _ in range(2):
        assert lanes.asked(paths, 8, tmp_path / "out") == [{"clean": {"a": 1.0}}, {"clean": {"b": 1.0}}]
    assert asked == ["a", "b"]
