import time
from types import SimpleNamespace

import pytest
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Timer

from lightning_robust.harness.schedule import parse_moment, parse_period, share_of_run


def trainer(**settings):
    defaults = {
        "max_steps": -1,
        "max_epochs": None,
        "global_step": 0,
        "current_epoch": 0,
        "num_training_batches": 10,
        "accumulate_grad_batches": 1,
        "callbacks": [],
        "strategy": SimpleNamespace(reduce_boolean_decision=lambda decision, **_: decision),
    }
    return SimpleNamespace(**(defaults | settings))


@pytest.mark.parametrize(
    ("settings", "batch", "expected"),
    [
        ({"max_epochs": 4, "current_epoch": 3}, 0, 0.75),
        ({"max_epochs": 4, "current_epoch": 2}, 5, 0.625),
        ({"max_steps": 40, "global_step": 10}, 0, 0.25),
        ({"max_steps": 40, "global_step": 30, "max_epochs": 100}, 0, 0.75),
    ],
)
def test_progress_is_of_what_ends_first(settings, batch, expected):
    assert share_of_run(trainer(**settings), batch) == expected


def test_share_of_time():
    timer = Timer({"seconds": 0.2})
    timer.on_train_start(None, None)
    time.sleep(0.1)
    assert 0.4 < share_of_run(trainer(callbacks=[timer]), 0) < 1.0


def test_a_run_without_an_end_is_refused():
    with pytest.raises(MisconfigurationException, match="max_epochs"):
        share_of_run(trainer(), 0)


@pytest.mark.parametrize(
    ("start", "before", "at"),
    [
        (0.5, {"max_epochs": 4, "current_epoch": 1}, {"max_epochs": 4, "current_epoch": 2}),
        (3, {"current_epoch": 2}, {"current_epoch": 3}),
        ("2 epochs", {"current_epoch": 1}, {"current_epoch": 2}),
        ("7 steps", {"global_step": 6}, {"global_step": 7}),
    ],
)
def test_moments(start, before, at):
    moment = parse_moment(start)
    assert not moment.is_reached(trainer(**before), 0)
    assert moment.is_reached(trainer(**at), 0)


def test_periods():
    assert parse_period(12).steps(trainer()) == 12
    assert parse_period("1.5 epochs").steps(trainer(num_training_batches=9, accumulate_grad_batches=2)) == 7.5
    with pytest.raises(MisconfigurationException, match="limit_train_batches"):
        parse_period("1 epoch").steps(trainer(num_training_batches=float("inf")))


@pytest.mark.parametrize("value", [1.5, -0.1, "3", "3 weeks", "steps"])
def test_rejects_unclear_moments(value):
    with pytest.raises(ValueError, match="Expected"):
        parse_moment(value)


@pytest.mark.parametrize(("timers", "asked"), [([], 0), ([Timer({"seconds": 60})], 10)])
def test_ranks_agree_only_where_a_clock_decides(timers, asked):
    """Ten batches ask whether half of the run is done; epochs and steps are the same on every rank."""
    calls = []

    def reduce(decision, **_):
        calls.append(decision)
        return decision

    for timer in timers:
        timer.on_train_start(None, None)
    strategy = SimpleNamespace(reduce_boolean_decision=reduce)
    for batch in range(10):
        parse_moment(0.5).is_reached(trainer(max_epochs=1, callbacks=timers, strategy=strategy), batch)
    assert len(calls) == asked
