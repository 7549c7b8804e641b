from types import SimpleNamespace

import pytest
import torch

from lightning_robust.callbacks.averaging.averages import MAIN, plan_averages

SETTINGS = {"kind": "uniform", "start": "2 steps", "every": 3, "half_life": None, "window": None}


def test_closed_form():
    """From step 2 on, at every third step: the mean of the values after steps 5 and 8."""
    average = plan_averages(SETTINGS, None, torch.float64)[MAIN]
    for step in range(10):
        average.begin_batch(SimpleNamespace(global_step=step), 0)
        trainer = SimpleNamespace(global_step=step + 1)
        if average.is_due(trainer):
            average.update(trainer, [torch.tensor(float(step + 1))])
    assert (average.started, average.updated, average.running.count) == (2, 8, 2)
    assert average.values == [torch.tensor((5 + 8) / 2, dtype=torch.float64)]


def test_further_averages_begin_and_update_with_the_main_one_unless_they_say_otherwise():
    also = {"last": {"kind": "lawa", "window": 2}, "early": {"start": "0 steps", "every": 1}}
    averages = plan_averages(SETTINGS, also, torch.float32)
    assert [(average.start.value, average.every) for average in averages.values()] == [(2, 3), (2, 3), (0, 1)]


def test_an_update_makes_batchnorm_statistics_stale_and_resume_keeps_that():
    average = plan_averages(SETTINGS | {"start": "0 steps"}, None, torch.float32)[MAIN]
    average.begin_batch(SimpleNamespace(global_step=0), 0)
    average.update(SimpleNamespace(global_step=3), [torch.ones(2)])
    assert not average.fresh
    average.fresh = True
    resumed = plan_averages(SETTINGS, None, torch.float32)[MAIN]
    resumed.load_state_dict(average.state_dict())
    assert (resumed.started, resumed.updated, resumed.fresh, resumed.exists) == (0, 3, True, True)
    assert torch.equal(resumed.values[0], torch.ones(2))


def test_rejects_unknown_settings_and_names_that_are_taken():
    for also, complaint in (({"x": {"decay": 1}}, "decay"), ({"raw": {}}, "taken"), ({MAIN: {}}, "taken")):
        with pytest.raises(ValueError, match=complaint):
            plan_averages(SETTINGS, also, torch.float32)
