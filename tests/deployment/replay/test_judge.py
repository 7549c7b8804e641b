"""Limits of a replay: names, numbers out of known lines, and what is not there to be judged."""

import math

import pytest
import torch

from lightning_robust.deployment.replay.judge import judge_replay, replay_checks, replay_numbers
from lightning_robust.deployment.replay.line_metrics import deviation_metrics, line_metrics
from lightning_robust.deployment.replay.results import ReplayReport, ReplayResult


def result(reference, columns, note=""):
    lines = tuple(
        line_metrics(line) | deviation_metrics(exact, line)
        for exact, line in zip(reference.unbind(1), columns.unbind(1), strict=True)
    )
    return ReplayResult("measured", note, lines, 0.0, columns, reference)


def report(reference, runtimes=(), perturbations=()):
    return ReplayReport(
        "x_px", tuple(range(10, 10 + len(reference))), {}, result(reference, reference), dict(runtimes),
        dict(perturbations), None, 0.0,
    )  # fmt: skip


@pytest.fixture
def straight():
    return torch.zeros(6, 2, 4, dtype=torch.float64)


def test_numbers_are_the_largest_of_the_lines(straight):
    """The left line is 0.5 px off to the left, the right one is 3 px off in the fourth frame."""
    moved = straight.clone()
    moved[:, 0] -= 0.5
    moved[3, 1] += 3.0
    numbers = replay_numbers(report(straight, {"emulated-fp16": result(straight, moved)}))
    assert numbers["emulated-fp16/max_px"] == 3.0
    assert numbers["emulated-fp16/mean_px"] == numbers["emulated-fp16/bias_px"] == 0.5
    assert numbers["emulated-fp16/swing_beyond_px"] == pytest.approx(2 * 3.0 / 5)
    assert numbers["emulated-fp16/lost"] == 0.0
    assert numbers["torch-fp32/swing_px"] == numbers["torch-fp32/bend_px"] == 0.0
    assert not any(name.startswith("torch-fp32/p99") for name in numbers)


def test_a_line_that_pytorch_does_not_find_has_no_numbers(straight):
    absent = straight.clone()
    absent[:, 1] = math.nan
    moved = absent + 0.25
    numbers = replay_numbers(report(absent, {"emulated-fp16": result(absent, moved)}))
    assert numbers["emulated-fp16/mean_px"] == 0.25
    nothing = torch.full_like(straight, math.nan)
    empty = report(nothing, {"emulated-fp16": result(nothing, nothing)})
    assert replay_numbers(empty) == {"emulated-fp16/gained": 0.0}
    (check,) = replay_checks(empty, {"emulated-fp16/p99_px": 5.0})
    assert (check.status, check.note) == ("unmeasured", "PyTorch finds no line in these frames")


@pytest.mark.parametrize("found", [0, 1])
def test_a_line_that_the_engine_alone_finds_is_gained(straight, found):
    """Beside one that PyTorch finds too, and where it finds none."""
    absent = straight.clone()
    absent[:, found:] = math.nan
    invented = report(absent, {"emulated-fp16": result(absent, straight)})
    (check,) = replay_checks(invented, {"emulated-fp16/gained": 0.01})
    assert (check.status, check.value) == ("beyond", 1.0)


def test_a_limit_without_a_target_is_for_all_that_have_none_of_their_own(straight):
    runtimes = {name: result(straight, straight + by) for name, by in (("emulated-fp16", 1.0), ("emulated-bf16", 3.0))}
    found = replay_checks(report(straight, runtimes), {"p99_px": 0.5, "emulated-bf16/p99_px": 4.0}, "bridge")
    assert [(check.name, check.value, check.limit, check.status) for check in found] == [
        ("bridge: emulated-fp16/p99_px", 1.0, 0.5, "beyond"),
        ("bridge: emulated-bf16/p99_px", 3.0, 4.0, "within"),
    ]


def test_the_place_is_the_frame_that_is_farthest(straight):
    moved = straight.clone()
    moved[4] += 2.0
    (check,) = replay_checks(report(straight, {"emulated-fp16": result(straight, moved)}), {"max_px": 1.0})
    assert check.place == "frame 14"


def test_a_target_that_lost_everything_is_beyond(straight):
    lost = torch.full_like(straight, math.nan)
    found = replay_checks(report(straight, {"emulated-fp16": result(straight, lost)}), {"p99_px": 1e6, "lost": 0.5})
    assert [(check.value, check.status) for check in found] == [(math.inf, "beyond"), (1.0, "beyond")]


def test_what_was_not_measured_says_why(straight):
    runtimes = {"tensorrt-fp16": ReplayResult("unavailable", "no device")}
    limits = {"tensorrt-fp16/p99_px": 1.0, "emulated-fp16/p99_px": 1.0, "bgr/p99_px": 1.0, "torch-fp32/p99_px": 1.0}
    found = replay_checks(report(straight, runtimes), limits)
    assert {check.subject: check.note for check in found} == {
        "tensorrt-fp16": "unavailable: no device",
        "emulated-fp16": "it was not run",
        "bgr": "it was not run",
        "torch-fp32": "PyTorch is what others are measured against",
    }
    assert all(check.status == "unmeasured" for check in found)
    (nothing,) = replay_checks(report(straight), {"lost": 0.0})
    assert nothing.note == "nothing was run"


def test_swing_needs_three_frames():
    two = torch.zeros(2, 1, 4)
    (check,) = replay_checks(report(two, {"emulated-fp16": result(two, two)}), {"swing_px": 1.0})
    assert check.note == "it needs a line in three consecutive frames and rows"


def test_the_judgement_of_a_recording(straight):
    """One target is measured, one needs a device: that counts where it was named."""
    runtimes = {
        "emulated-fp16": result(straight, straight + 0.5),
        "tensorrt-fp16": ReplayResult("built", "not run: no device"),
    }
    found = report(straight, runtimes)
    free = judge_replay(found, {})
    assert (free.status, free.exit_code) == ("within", 0)
    assert [check.key for check in free.checks] == [
        *(f"emulated-fp16/{metric}" for metric in ("p99_px", "swing_beyond_px", "bend_beyond_px", "lost")),
        "tensorrt-fp16/p99_px",
    ]
    assert judge_replay(found, {}, demanded=["tensorrt-fp16"]).exit_code == 2
    kept = judge_replay(found, {"emulated-fp16/p99_px": 0.6}, "parity.yaml")
    assert kept.text().startswith("verdict: within parity.yaml: emulated-fp16/p99_px is 0.5 px, allowed 0.6")
    assert judge_replay(found, {"emulated-fp16/p99_px": 0.4, "tensorrt-fp16/lost": 0.1}, "parity.yaml").exit_code == 1
    assert judge_replay(found, {"tensorrt-fp16/lost": 0.1}, "parity.yaml").exit_code == 2


def test_perturbations_alone_are_told(straight):
    found = judge_replay(report(straight, {}, {"bgr": result(straight, straight + 2.0)}), {})
    assert found.checks[0].key == "bgr/p99_px"
    assert judge_replay(report(straight), {}).exit_code == 2
