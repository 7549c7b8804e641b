import itertools
import math

import pytest

from lightning_robust.gate.check import Check, Judgement

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("value", "limit", "status"),
    [
        (0.5, 0.5, "within"),
        (0.5000001, 0.5, "beyond"),
        (-0.6, 0.5, "beyond"),  # a bias counts by its size
        (INF, 0.5, "beyond"),
        (NAN, 0.5, "unmeasured"),
        (0.0, 0.0, "within"),
        (7.0, None, "within"),
        (NAN, None, "unmeasured"),
    ],
)
def test_status_of_a_check(value, limit, status):
    check = Check("emulated-fp16", "bias", value, limit)
    assert check.status == status
    assert (check.load > 1) == (status == "beyond")


@pytest.mark.parametrize(
    ("low", "high", "uncertain"), [(0.1, 0.3, False), (0.1, 0.6, True), (NAN, NAN, False), (0.1, INF, True)]
)
def test_an_interval_that_holds_the_limit_is_said_and_decides_nothing(low, high, uncertain):
    check = Check("a", "p99", 0.2, 0.5, low, high)
    assert check.status == "within"
    assert check.is_uncertain == uncertain == ("more samples would tell" in str(check))
    above = Check("a", "p99", 0.7, 0.5, low, 0.8)
    assert above.status == "beyond"
    assert above.is_uncertain == (not math.isnan(low))


def rule(statuses, limited):
    """The rules as they are written, one after the other."""
    if "beyond" in statuses:
        return 1
    if limited:
        return 2 if "unmeasured" in statuses else 0
    return 0 if "within" in statuses else 2


def test_exit_codes_of_all_mixtures():
    """All 3 x 3 x 3 mixtures of three checks with limits, and all of three without."""
    values = {"within": 0.1, "beyond": 0.9, "unmeasured": NAN}
    for statuses in itertools.product(values, repeat=3):
        checks = tuple(Check(str(i), "p99", values[status], 0.5) for i, status in enumerate(statuses))
        judgement = Judgement("parity", checks, "parity.yaml")
        assert judgement.exit_code == rule(statuses, limited=True), statuses
        assert judgement.text().startswith(f"verdict: {('within', 'beyond', 'could not')[judgement.exit_code]}")
    for statuses in itertools.product(["within", "unmeasured"], repeat=3):
        checks = tuple(Check(str(i), "p99", values[status]) for i, status in enumerate(statuses))
        assert Judgement("parity", checks).exit_code == rule(statuses, limited=False), statuses
    assert Judgement("parity").exit_code == 2


def test_what_was_asked_for_by_name_counts_without_a_limit():
    checks = (Check("emulated-fp16", "rel_l2", 1e-3), Check("tensorrt-fp16", "rel_l2", NAN, note="no CUDA device"))
    assert Judgement("parity", checks).exit_code == 0
    demanded = Check("tensorrt-fp16", "rel_l2", NAN, note="no CUDA device", demanded=True)
    judgement = Judgement("parity", (checks[0], demanded))
    assert judgement.exit_code == 2
    assert judgement.text() == "verdict: could not measure tensorrt-fp16/rel_l2 (no CUDA device)"


def test_the_worst_is_named_with_its_place():
    checks = (
        Check("emulated-fp16", "rel_l2", 2e-3, 1e-3),
        Check("emulated-fp16", "lateral_px_p99", 5.0, 0.5, 4.0, 6.0, place="detector.py:92 Sub"),
        Check("torch-fp32", "rel_l2", 1e-6, 1e-3),
    )
    assert Judgement("parity", checks, "parity.yaml").text() == (
        "verdict: beyond parity.yaml: emulated-fp16/lateral_px_p99 is 5 px (4 to 6), allowed 0.5, "
        "emulated-fp16/rel_l2 is 0.002, allowed 0.001; worst at detector.py:92 Sub; 1 of 3 within"
    )


def test_the_verdict_is_one_line_whatever_the_names_hold():
    check = Check("tar\nget", "me\x1b[31mtric", 1.0, 0.5, place="a\r\n::error::b")
    assert len(Judgement("parity", (check,)).text().splitlines()) == 1
    assert "\x1b" not in Judgement("parity", (check,)).text()


def test_a_case_stands_before_the_name():
    check = Check("tensorrt-fp16", "p99", 3.0, 2.0, case="night", unit="px", place="frame 12")
    assert Judgement("replay", (check,), "parity.yaml").text() == (
        "verdict: beyond parity.yaml: night: tensorrt-fp16/p99 is 3 px, allowed 2; worst at frame 12"
    )
