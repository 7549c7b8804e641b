import math

import pytest

from lightning_robust.deployment.parity.judge import judge_report
from lightning_robust.deployment.parity.links import Basis
from lightning_robust.deployment.parity.result import ParityReport, TargetResult


@pytest.fixture
def report():
    targets = {
        "emulated-fp16": TargetResult(
            "measured", {"rel_l2": 1e-3, "x_px_p99": 0.4, "bias": -0.2, "x_px_known_p99": math.nan}
        ),
        "tensorrt-fp16": TargetResult("unavailable", note="no CUDA device answers"),
    }
    basis = {"parity/emulated-fp16/x_px_p99": Basis(16, 0.3, 0.6)}
    return ParityReport(targets, {}, (), "x_px_p99", "torch-fp64", 16, 0.1, basis=basis)


@pytest.mark.parametrize(
    ("limits", "code", "told"),
    [
        ({"emulated-fp16/rel_l2": 1e-3}, 0, "within"),
        ({"emulated-fp16/bias": 0.1}, 1, "emulated-fp16/bias is -0.2, allowed 0.1"),
        ({"emulated-fp16/x_px_p99": 0.5}, 0, "0.4 px (0.3 to 0.6), allowed 0.5 (the limit lies within the interval"),
        ({"emulated-fp16/x_px_p99": 0.1}, 1, "0.4 px (0.3 to 0.6), allowed 0.1"),
        ({"emulated-fp16/x_px_known_p99": 1.0}, 2, "(there is no value to compare on these samples)"),
        ({"emulated-fp16/x_px_p9": 1.0}, 2, "(it has no such metric. Did you mean 'x_px_p99'"),
        ({"tensorrt-fp16/rel_l2": 1.0}, 2, "(unavailable: no CUDA device answers)"),
        ({"openvino-fp32/rel_l2": 1.0}, 2, "(it was not run: add it to the targets, which were emulated-fp16, tens"),
        ({"openvino-fp32/rel_l2": 1.0, "emulated-fp16/rel_l2": 0.0}, 1, "0 of 2 within"),
        ({}, 0, "no budget was set, nothing was judged: emulated-fp16/x_px_p99 is 0.4 px (0.3 to 0.6)"),
    ],
)
def test_exit_code_and_words(report, limits, code, told):
    judgement = judge_report(report, limits, "parity.yaml")
    assert judgement.exit_code == code
    assert told in judgement.text()


def test_what_is_asked_for_by_name_counts_without_a_limit(report):
    assert judge_report(report, {}, asked=["emulated-fp16"]).exit_code == 0
    assert judge_report(report, {}, asked=["emulated-fp16", "tensorrt-fp16"]).exit_code == 2
    assert judge_report(report, {"emulated-fp16/rel_l2": 0.0}, asked=["tensorrt-fp16"]).exit_code == 1
