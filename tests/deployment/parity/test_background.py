import threading

import pytest
import torch
from torch import nn

from lightning_robust.deployment.engines import BuildSettings, Built, Runtime, Subject, abilities, builder, runtime
from lightning_robust.deployment.engines.builder import Ability, EngineError
from lightning_robust.deployment.engines.child import process as _child_process
from lightning_robust.deployment.parity.background import BackgroundParity
from lightning_robust.deployment.parity.measure import ParityPass
from lightning_robust.deployment.parity.scale import Task
from lightning_robust.deployment.pixels.catalogue import perturbations
from lightning_robust.deployment.report.tables import target_rows
from lightning_robust.functional import PixelSpace

from ..models import images

X = torch.tensor([[1.0, -1.0], [0.5, -0.5]])


class Gain(nn.Module):
    def __init__(self, gain):
        super().__init__()
        self.gain = gain

    def forward(self, x):
        return x * self.gain


class Slow(Runtime):
    """An engine that is half too loud, and is ready when `ready` is set."""

    slow = True

    def __init__(self, name="slow", able=True):
        super().__init__(name, "fp16")
        self.ready, self.builds, self.able = threading.Event(), [], able

    def can_build(self, settings=None):
        return Ability(self.able, "" if self.able else "not here")

    def build(self, subject):
        self.builds.append(subject.module.gain)
        cancelled = _child_process.CANCELLED.get()
        while not self.ready.wait(0.01):
            if cancelled.is_set():
                raise EngineError("cancelled", "given up")
        if subject.module.gain < 0:
            raise ValueError("planted")
        return Built(lambda args: [args[0] * subject.module.gain * 1.5], note="loud")


@pytest.fixture
def parity():
    made = BackgroundParity(30.0)
    yield made
    made.stop()
    assert not [thread for thread in threading.enumerate() if thread.name == "engine builds"]


def measure(parity, gain, runtimes):
    """One pass at step 10 x gain of the epoch `gain`."""
    once = ParityPass(Subject(Gain(gain), (X,)), Task(), 30.0)
    return parity.measure(once, [runtime("torch-bf16"), *runtimes], step=10 * gain, epoch=gain)


def settle(parity):
    parity._job.thread.join(10)


def test_results_arrive_with_the_step_whose_weights_they_belong_to(parity):
    """The engine of gain g is off by g / 2: 0.5 at step 10, while the pass that reports it is at step 20."""
    slow = Slow()
    first = measure(parity, 1, [slow])
    assert first.targets["slow-fp16"].status == "skipped"
    assert first.targets["slow-fp16"].note == "still building since step 10"
    assert first.targets["torch-bf16"].status == "measured"
    slow.ready.set()
    settle(parity)
    for gain in (2, 3):
        report = measure(parity, gain, [slow])
        settle(parity)
        result = report.targets["slow-fp16"]
        assert (result.status, result.step) == ("measured", 10 * (gain - 1))
        assert result.metrics["max_abs"] == (gain - 1) / 2
        assert result.note == f"loud, weights of step {10 * (gain - 1)}, epoch {gain - 1}"
        scalars = report.scalars()
        assert scalars["parity/slow-fp16/step"] == 10 * (gain - 1)
        assert "parity/torch-bf16/step" not in scalars
        assert list(report.targets) == ["torch-bf16", "slow-fp16"]
        assert f"measured, step {10 * (gain - 1)}" in target_rows(report)[1][1]
    assert slow.builds == [1, 2, 3]
    last = parity.finish()
    assert (last.targets["slow-fp16"].step, last.targets["slow-fp16"].metrics["max_abs"]) == (30, 1.5)
    assert last.scalars()["parity/slow-fp16/max_abs"] == 1.5
    assert parity.finish() is None


def test_one_job_at_a_time_and_none_waits(parity):
    slow = Slow()
    notes = [measure(parity, gain, [slow]).targets["slow-fp16"].note for gain in (1, 2, 3)]
    assert notes == ["still building since step 10"] * 3
    assert parity.collect() is None
    slow.ready.set()
    settle(parity)
    assert slow.builds == [1]
    late = parity.collect()
    assert late.targets["slow-fp16"].step == 10
    assert parity.collect() is None
    assert measure(parity, 4, [slow]).targets["slow-fp16"].note == "still building since step 40"


def test_what_is_not_ready_in_time_is_skipped():
    parity = BackgroundParity(0.05)
    ready, never = Slow("ready"), Slow("never")
    ready.ready.set()
    measure(parity, 1, [ready, never])
    late = parity.finish()
    assert {name: target.status for name, target in late.targets.items()} == {
        "ready-fp16": "measured",
        "never-fp16": "skipped",
    }
    assert "not ready in time, with the weights of step 10" in late.targets["never-fp16"].note
    assert late.scalars()["parity/never-fp16/status"] == 2
    assert "parity/never-fp16/max_abs" not in late.scalars()


def test_stop_ends_the_thread_and_later_passes_start_anew(parity):
    slow = Slow()
    measure(parity, 1, [slow])
    thread = parity._job.thread
    parity.stop()
    assert not thread.is_alive()
    assert parity.collect() is None
    slow.ready.set()
    measure(parity, 2, [slow])
    assert parity.finish().targets["slow-fp16"].step == 20


def test_failures_and_missing_runtimes(parity):
    broken, absent = Slow("broken"), Slow("absent", able=False)
    broken.ready.set()
    report = measure(parity, -1, [broken, absent])
    assert (report.targets["absent-fp16"].status, report.targets["absent-fp16"].note) == ("unavailable", "not here")
    late = parity.finish()
    assert late.targets["broken-fp16"].status == "failed"
    assert late.targets["broken-fp16"].note.startswith("ValueError: planted, weights of step -10")
    assert absent.builds == []


def test_perturbed_and_attributed_as_of_its_own_step(parity):
    """The engine of gain 1 moves by half more than PyTorch of gain 1, whatever the gain is when it arrives."""

    class Means(Gain):
        def forward(self, x):
            return x.mean((2, 3)) * self.gain

    class Loud(Slow):
        def build(self, subject):
            return Built(lambda args: [args[0].mean((2, 3)) * subject.module.gain * 1.5])

    loud = Loud("tensorrt")
    x = (images(4) * 255).round() / 255
    runtimes = [runtime("torch-bf16"), runtime("emulated-fp16"), loud]

    def measure_all(gain, step):
        once = ParityPass(Subject(Means(gain), (x,)), Task(), 30.0, perturb_targets=True)
        return parity.measure(once, runtimes, perturbations(["bgr"]), PixelSpace(), step=step, epoch=step - 1)

    first = measure_all(1, step=1)
    settle(parity)
    second = measure_all(5, step=2)
    own, engine = first.sensitivity["bgr"]["rel_l2"], second.target_sensitivity["tensorrt-fp16"]["bgr"]
    # relative to the spread of the outputs themselves, the gain of 1.5 cancels
    assert engine == pytest.approx(own, rel=1e-5)
    assert second.scalars()["sensitivity/bgr/tensorrt-fp16/rel_l2"] == engine
    # half louder than the emulation of the same gain, up to what fp16 rounds
    assert second.attribution["engine/tensorrt-fp16"] == pytest.approx(0.5, rel=1e-2)
    (link,) = [link for link in second.chain if link.name == "preprocessing"]
    assert (link.source, link.target, link.value) == ("tensorrt-fp16", "tensorrt-fp16 on bgr", engine)
    assert not any(key.startswith("engine") for key in first.attribution)
    assert first.chain[-1].source == "torch-fp32"


@pytest.mark.parametrize("seconds", [60.0, 0.2], ids=["cancelled", "timed_out"])
def test_children_are_killed_when_cancelled_or_late(tmp_path, seconds):
    script = tmp_path / "child.py"
    script.write_text("import time\nprint('here', flush=True)\ntime.sleep(60)")
    cancelled, caught = threading.Event(), []

    def work():
        _child_process.CANCELLED.set(cancelled)
        try:
            _child_process.run_child(script, "build", {}, tmp_path, seconds)
        except EngineError as error:
            caught.append(error.kind)

    thread = threading.Thread(target=work)
    thread.start()
    if seconds > 1:
        cancelled.set()
    thread.join(10)
    assert caught == ["cancelled" if seconds > 1 else "timed_out"]


def test_engine_builds_are_slow_and_cancelled(tmp_path, monkeypatch):
    """The real runtime with a child that hangs: stopping takes no longer than killing it, and its folder goes."""
    script = tmp_path / "child.py"
    script.write_text("import pathlib, sys, time\npathlib.Path(__file__).with_suffix('.seen').touch()\ntime.sleep(60)")
    monkeypatch.setattr(builder, "_CHILD", script)
    monkeypatch.setattr(abilities, "missing_package", lambda *_: "")
    monkeypatch.setattr(abilities, "library_version", lambda *_: "0")
    parity = BackgroundParity(60.0)
    subject = Subject(nn.Linear(2, 2).eval(), (X,), BuildSettings(cache=str(tmp_path / "cache")))
    report = parity.measure(ParityPass(subject, Task(), 60.0), [runtime("tensorrt_rtx-fp16")], step=7, epoch=0)
    assert report.targets["tensorrt_rtx-fp16"].note == "still building since step 7"
    while parity._job.thread.is_alive() and not script.with_suffix(".seen").exists():
        parity._job.thread.join(0.02)
    parity.stop()
    assert list((tmp_path / "cache").iterdir()) == []
