"""How long an engine is timed. What else it does needs the bindings: ../bindings."""

import types

import pytest

from lightning_robust.deployment.engines.child import running


def make_runner(seconds, monkeypatch, works=True):
    """A runner whose executions take so many seconds each by a clock of its own."""
    clock = types.SimpleNamespace(now=0.0, executions=0, synchronised=0)

    def execute(stream):
        assert stream == 7
        clock.executions += 1
        return works

    def synchronise():
        clock.now += seconds
        clock.synchronised += 1

    monkeypatch.setattr(running.time, "perf_counter", lambda: clock.now)
    stream = types.SimpleNamespace(ptr=7, synchronize=synchronise)
    return types.SimpleNamespace(context=types.SimpleNamespace(execute_async_v3=execute), stream=stream), clock


@pytest.mark.parametrize(
    ("seconds", "runs", "timed"), [(0.01, 100, 100), (0.01, 0, 0), (1.0, 100, 5), (60.0, 100, 1), (2.0, 2, 2)]
)
def test_executions_are_timed_until_there_are_enough(monkeypatch, seconds, runs, timed):
    """Enough is the number asked for, or five seconds."""
    runner, clock = make_runner(seconds, monkeypatch)
    assert running.time_executions(runner, runs) == pytest.approx([seconds] * timed)
    assert clock.executions == clock.synchronised == timed


def test_an_execution_that_fails_is_no_time(monkeypatch):
    runner, _ = make_runner(0.01, monkeypatch, works=False)
    with pytest.raises(RuntimeError, match="ran once and not again"):
        running.time_executions(runner, 3)
