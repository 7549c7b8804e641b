"""Causes of hand-made results."""

import pytest

from lightning_robust.deployment.parity.attribution import attribute, fp16_metrics
from lightning_robust.deployment.parity.result import TargetResult


def targets(**distances):
    return {
        name.replace("_fp", "-fp").replace("_tf", "-tf"): TargetResult("measured", {"px": d})
        for name, d in distances.items()
    }


def test_closed_form():
    """An engine counts with what it has beyond the emulation, preprocessing with its median."""
    measured = targets(onnxruntime_fp32=0.01, emulated_tf32=0.1, emulated_fp16=0.5, tensorrt_fp16=0.75)
    sensitivity = {"a": {"px": 9.0}, "b": {"px": 2.0}, "c": {"px": 3.0}}
    assert attribute(measured, sensitivity, "px") == {
        "export": 0.01,
        "tf32": 0.1,
        "fp16": 0.5,
        "engine": 0.25,
        "preprocessing": 3.0,
    }


@pytest.mark.parametrize(("engine", "beyond"), [(0.4, 0.0), (0.8, 0.3)])
def test_an_engine_nearer_than_the_emulation_has_no_distance_of_its_own(engine, beyond):
    measured = targets(emulated_fp16=0.5, tensorrt_rtx_fp16=engine)
    assert attribute(measured, {}, "px")["engine"] == pytest.approx(beyond)


def test_only_measured_causes_are_named():
    failed = {"emulated-fp16": TargetResult("failed"), **targets(tensorrt_fp16=0.7)}
    assert attribute(failed, {}, "px") == {}
    assert attribute(targets(torch_fp16=0.7), {}, "px") == {}


def test_an_executed_engine_stands_for_fp16_before_the_emulation():
    measured = targets(emulated_fp16=0.5, torch_fp16=0.6, tensorrt_fp16=0.7)
    assert fp16_metrics(measured) == {"px": 0.7}
    assert fp16_metrics(measured | {"tensorrt-fp16": TargetResult("built")}) == {"px": 0.6}
    assert fp16_metrics(targets(onnxruntime_fp32=0.1)) == {}
