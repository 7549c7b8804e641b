import time

import pytest

from lightning_robust.deployment.engines.latency import Latency, time_runs


@pytest.mark.parametrize("runs", [1, 2, 99, 100, 101, 200, 1000])
def test_closed_form(runs):
    """Equally spaced times, backwards: the median by symmetry, and the smallest time with 99 % at or below it."""
    seconds = [float(run) for run in range(runs, 0, -1)]
    latency = Latency.of(seconds, 4)
    assert (latency.median, latency.runs, latency.batch) == ((runs + 1) / 2, runs, 4)
    assert sum(value <= latency.p99 for value in seconds) >= 0.99 * runs
    assert sum(value <= latency.p99 - 1 for value in seconds) < 0.99 * runs


def test_rejects_no_runs():
    with pytest.raises(ValueError, match="at least one inference"):
        Latency.of([], 1)


def test_the_warm_up_is_not_counted_and_a_run_takes_what_it_takes():
    naps = iter([0.2, *[0.005] * 100])
    seconds = time_runs(lambda: time.sleep(next(naps)), budget=0.05)
    assert 0.005 <= min(seconds) <= max(seconds) < 0.2
    assert len(seconds) <= 10


def test_one_run_is_made_whatever_it_takes():
    assert len(time_runs(lambda: time.sleep(0.01), budget=0.001)) == 1
