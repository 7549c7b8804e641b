"""Verdicts against hand-made reports."""

import math

from lightning_robust.deployment.engines import TARGETS
from lightning_robust.deployment.numerics.sensitivity import SOUND
from lightning_robust.deployment.parity.links import Basis
from lightning_robust.deployment.parity.result import BEYOND, MeasuredWeights, TargetResult
from lightning_robust.deployment.parity.tolerances import DEFAULT_TOLERANCES, violations
from lightning_robust.deployment.parity.verdict import judge_parity

from ..reports import KEEP, layers, measured, node, report

SAFE = {"tensorrt-fp16/x_px_p99": 0.5}


def executed(low, high, **changes):
    """A report with an executed engine at 0.3 px, in an interval."""
    targets = report().targets | {"tensorrt-fp16": measured(0.3)}
    return report(targets=targets, basis={"parity/tensorrt-fp16/x_px_p99": Basis(16, low, high)}, **changes)


def test_green_is_an_executed_engine_within_the_user_s_tolerance_with_its_interval():
    verdict = judge_parity(executed(0.2, 0.45), SAFE)
    assert verdict.level == "good"
    assert verdict.headline == (
        "Within your tolerance, executed: parity/tensorrt-fp16/x_px_p99 is 0.3 (0.2 to 0.45), allowed is 0.5."
    )


def test_an_engine_that_was_executed_is_told_before_an_emulation_that_is_further_away():
    targets = {"emulated-bf16": measured(0.4), "openvino-bf16": measured(0.3), "onnxruntime-int8": measured(0.9)}
    assert judge_parity(report(targets=targets)).headline.startswith("openvino-bf16 is 0.3 x px")
    del targets["emulated-bf16"], targets["openvino-bf16"]
    assert judge_parity(report(targets=targets)).headline.startswith("onnxruntime-int8 is 0.9 x px")


def test_an_interval_that_reaches_beyond_the_tolerance_is_not_green():
    verdict = judge_parity(executed(0.2, 0.7), SAFE)
    assert verdict.level == "mind"
    assert "0.3 (0.2 to 0.7), allowed is 0.5: more samples are needed" in verdict.headline


def test_without_a_tolerance_or_an_engine_nothing_is_green():
    assert judge_parity(executed(0.2, 0.4)).level == "mind"
    assert "no tolerance was set" in judge_parity(executed(0.2, 0.4)).headline
    emulated = judge_parity(report(), {"emulated-fp16/x_px_p99": 0.5})
    assert emulated.level == "mind"
    assert emulated.headline == (
        "emulated-fp16 is 0.3 x px (99th percentile) away; no engine in low precision with a tolerance was executed."
    )
    # an executed fp32 graph says nothing of the fp16 that is deployed
    assert judge_parity(report(), {"onnxruntime-fp32/x_px_p99": 0.5}).level == "mind"


def test_the_verdict_says_what_was_measured_on_which_weights_and_what_was_not():
    built = {"tensorrt_rtx-fp16": TargetResult("built", note="not run: no CUDA device")}
    lines = judge_parity(
        report(targets=report().targets | built, weights=MeasuredWeights(3, 188, "", "9f2c51d0"))
    ).measured
    assert lines == (
        "Measured against torch-fp64 on up to 16 samples, weights of epoch 3, step 188 (9f2c51d0).",
        "Executed: onnxruntime-fp32.",
        "Emulated, not executed: emulated-fp16.",
        "Built, not executed: tensorrt_rtx-fp16.",
        "Preprocessing: not tested; what the deployed side really feeds was not seen.",
    )


def test_fp16_is_an_interval_where_both_accumulators_were_emulated():
    both = judge_parity(report(targets=report().targets | {"emulated-fp16acc": measured(0.7, 1e-3)}))
    assert (
        "fp16 lies between 0.3 and 0.7 x px (99th percentile): with accumulators in fp32, and in fp16." in both.measured
    )
    assert both.headline.startswith("emulated-fp16 is 0.3")


def test_a_what_if_is_no_exception_and_says_what_to_do():
    moved = {
        "bgr": {"x_px_p99": 49.0, "x_px_mean": 4.2, BEYOND: 4.2, "times_fp16": 14.0},
        "shift_half_pixel": {"x_px_p99": 9.0, "x_px_mean": 3.0, BEYOND: 1.0},
        "jpeg_90": {"x_px_p99": 2.0, "x_px_mean": 0.5, BEYOND: 0.5},
        "nv12": {"x_px_p99": 2.0, "x_px_mean": 0.4, BEYOND: 0.4},
        "brightness": {"x_px_p99": 2.0, "x_px_mean": 0.1, BEYOND: 0.1},
    }
    verdict = judge_parity(executed(0.2, 0.4, sensitivity=moved), SAFE)
    assert (verdict.level, verdict.exceptions) == ("good", ())
    bgr, shift, jpeg, command = verdict.what_ifs  # one of each family, and no more than three
    assert bgr.startswith("If the deployed side feeds BGR instead of RGB (bgr), the outputs move by 4.2 x px (mean), ")
    assert "one point in a hundred by 49. Mend it on the deployed side, or train with it" in bgr
    assert "one point in a hundred by 9; 1 go beyond the motion of the picture. Mend it" in shift
    assert "(jpeg_90)" in jpeg
    assert "lightning-robust fingerprint" in command


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


def test_nothing_is_green_while_a_tolerance_is_broken_or_has_no_number():
    targets = {"openvino-bf16": measured(0.9), "openvino-int8": measured(0.3)}
    limits = {"openvino-bf16/x_px_p99": 0.5, "openvino-int8/x_px_p99": 0.2}
    assert (
        judge_parity(report(targets=targets), {"openvino-int8/x_px_p99": 0.5} | {"openvino-bf16/x_px_p99": 1.0}).level
        == "good"
    )
    kept = judge_parity(report(targets=targets), limits | {"openvino-bf16/x_px_p99": 1.0})
    assert (kept.level, len(kept.exceptions)) == ("mind", 1)
    assert "openvino-int8/x_px_p99 is 0.3, allowed is 0.2" in kept.headline
    lost = judge_parity(report(targets=targets), {"openvino-bf16/x_px_p99": 1.0, "openvino-int8/latency_ms": 5.0})
    assert (lost.level, lost.exceptions) == ("mind", ())
    assert lost.headline.endswith("away; parity/openvino-int8/latency_ms was not measured.")
    targets["openvino-int8"] = TargetResult("measured", {"flip_rate": 0.0})  # of decisions alone
    assert judge_parity(report(targets=targets), {"openvino-bf16/x_px_p99": 1.0, "openvino-int8": 0.1}).level == "mind"


def test_a_bias_is_certain_where_both_ends_of_its_interval_are_within():
    targets = {"openvino-bf16": TargetResult("measured", {"rel_l2": 0.001, "x_px_p99": 0.1, "x_px_bias": -0.9})}

    def judged(low):
        basis = {"parity/openvino-bf16/x_px_bias": Basis(16, low, -0.1)}
        return judge_parity(report(targets=targets, basis=basis), {"openvino-bf16/x_px_bias": 1.0})

    assert (judged(-0.95).level, judged(-1.9).level) == ("good", "mind")


def test_what_is_better_is_within_any_tolerance_of_worse():
    scalars = {"parity/a-fp16/x_error_worse": -3.0, "parity/a-fp16/x_bias": -3.0}
    broken = violations(scalars, {"a-fp16/x_error_worse": 0.1, "a-fp16/x_bias": 0.1})
    assert [violation.tag for violation in broken] == ["parity/a-fp16/x_bias"]


def test_lost_values_are_bad_under_the_default_tolerances():
    assert judge_parity(report(targets={"emulated-fp16": measured(math.inf, math.inf)})).level == "bad"
    assert judge_parity(report(targets={"emulated-fp16": measured(math.nan, math.nan)})).level == "bad"


def test_what_was_not_measured_is_said():
    built = TargetResult("built", note="not run: no CUDA device")
    verdict = judge_parity(report(targets={"tensorrt-fp16": built}))
    assert verdict.headline == "No low precision was measured: nothing can be said about deployment."
    assert "Built, not executed: tensorrt-fp16." in verdict.measured
    failed = TargetResult("failed", note="EngineError: no parser")
    assert judge_parity(report(targets=report().targets | {"tensorrt-fp16": failed})).level == "bad"


def test_an_overflow_is_named_by_module_and_line():
    verdict = judge_parity(report(layers=layers(node("a", 0.1), node("b", 0.2, overflow=0.25)), keep=KEEP))
    (line,) = verdict.exceptions
    assert line.startswith("neck.py:41 Pow in neck.b is the first to overflow in fp16: 25 %")


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


def test_a_runtime_of_a_package_counts_as_executed_whatever_its_name_begins_with():
    targets = {"torch_tensorrt-fp16": measured(1e-3, 1e-3)}
    verdict = judge_parity(report(targets=targets, chain=(), sensitivity={}), {"torch_tensorrt-fp16": 5e-3})
    assert verdict.level == "good"
    assert any("Executed: torch_tensorrt-fp16" in line for line in verdict.measured)
