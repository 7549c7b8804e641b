"""Verdicts against hand-made reports."""

import math

from lightning_robust.deployment.engines import TARGETS
from lightning_robust.deployment.numerics.sensitivity import SOUND
from lightning_robust.deployment.parity.result import TargetResult
from lightning_robust.deployment.parity.verdict import DEFAULT_TOLERANCES, judge_parity, violations

from ..reports import KEEP, layers, measured, node, report


def test_good():
    verdict = judge_parity(report())
    assert (verdict.level, verdict.exceptions) == ("good", ())
    assert verdict.headline == "Safe at fp16 within 0.3 x px (99th percentile)."


def test_preprocessing_is_an_exception_where_it_moves_more_than_fp16():
    moved = {"bgr": {"x_px_p99": 4.2, "times_fp16": 14.0}, "nv12": {"x_px_p99": 0.1, "times_fp16": 0.33}}
    verdict = judge_parity(report(sensitivity=moved))
    assert verdict.level == "mind"
    assert verdict.headline == "Safe at fp16 within 0.3 x px (99th percentile), except:"
    assert "bgr" in verdict.exceptions[0]
    assert "14 times what fp16 does" in verdict.exceptions[0]
    assert judge_parity(report(sensitivity={"nv12": moved["nv12"]})).level == "good"


def test_a_broken_tolerance_is_bad_only_for_its_own_precision():
    targets = report().targets
    bad = judge_parity(report(), {"emulated-fp16/x_px_p99": 0.2})
    assert bad.level == "bad"
    assert bad.headline.startswith("Do not deploy")
    assert bad.exceptions == ("parity/emulated-fp16/x_px_p99 is 0.3, allowed is 0.2.",)
    bf16 = judge_parity(report(targets=targets | {"emulated-bf16": measured(3.0, 0.5)}))
    assert (bf16.level, len(bf16.exceptions)) == ("mind", 1)
    exported = judge_parity(report(targets=targets | {"onnxruntime-fp32": measured(3.0, 0.5)}))
    assert exported.level == "bad"


def test_lost_values_are_bad_under_the_default_tolerances():
    assert judge_parity(report(targets={"emulated-fp16": measured(math.inf, math.inf)})).level == "bad"
    assert judge_parity(report(targets={"emulated-fp16": measured(math.nan, math.nan)})).level == "bad"


def test_what_was_not_measured_is_said():
    built = TargetResult("built", note="not run: no CUDA device")
    verdict = judge_parity(report(targets={"tensorrt-fp16": built}))
    assert verdict.headline == "No half precision was measured: nothing can be said about deployment."
    assert verdict.exceptions == ("tensorrt-fp16 was built only. not run: no CUDA device",)
    failed = TargetResult("failed", note="EngineError: no parser")
    assert judge_parity(report(targets=report().targets | {"tensorrt-fp16": failed})).level == "bad"


def test_an_overflow_is_named_by_module_and_line():
    verdict = judge_parity(report(layers=layers(node("a", 0.1), node("b", 0.2, overflow=0.25)), keep=KEEP))
    (line,) = verdict.exceptions
    assert line.startswith("neck.b (neck.py:41) (Pow) is the first to overflow in fp16: 25 %")


def test_violations_closed_form():
    scalars = {"parity/a-fp16/rel_l2": 0.2, "parity/a-fp16/px": 3.0}
    assert violations(scalars, {"a-fp16": 0.2, "a-fp16/px": 2.0, "other-fp16": 0.0}) == [("parity/a-fp16/px", 3.0, 2.0)]


def test_nan_is_beyond_every_tolerance():
    (violation,) = violations({"parity/emulated-fp16/rel_l2": math.nan})
    assert violation.limit == DEFAULT_TOLERANCES["emulated-fp16"] == 5e-3
    assert str(violation) == "parity/emulated-fp16/rel_l2 is nan, allowed is 0.005"


def test_every_target_has_a_default_tolerance():
    assert DEFAULT_TOLERANCES.keys() == TARGETS.keys()


def test_values_may_drift_as_far_as_outputs():
    assert {f"emulated-{precision}": limit for precision, limit in SOUND.items()}.items() <= DEFAULT_TOLERANCES.items()
