"""What fails beside a training does not reach it: after each fault of the table, the fit is the fit without it."""

import random
import warnings

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from lightning_robust.deployment.graph.keeper import GraphKeeper
from lightning_robust.harness.digest import digest
from tests.boring import make_trainer

from .faults import TABLE, Task


def fit(folder, module, callbacks=(), logger=False, epochs=1):
    """Epochs of four batches; the end of it as numbers."""
    pl.seed_everything(0)
    trainer = make_trainer(folder, callbacks, logger=logger, max_epochs=epochs)
    trainer.fit(module)
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    own = {tag: float(value) for tag, value in trainer.callback_metrics.items() if tag in ("train/loss", "val/loss")}
    drawn = torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()
    return state, own, drawn, trainer.global_step


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Fits with nothing planted, by what takes part in them."""
    done = {}

    def run(technique=None, module=Task, epochs=1):
        if (technique, module, epochs) not in done:
            torch.manual_seed(0)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                callbacks = [] if technique is None else [technique()]
                done[technique, module, epochs] = fit(
                    tmp_path_factory.mktemp("sound"), module(), callbacks, epochs=epochs
                )
        return done[technique, module, epochs]

    return run


@pytest.fixture(scope="module")
def exports():
    """The graphs by their weights: most fits end with the same weights, and an export takes seconds."""
    return {}


@pytest.mark.parametrize("fault", TABLE, ids=lambda fault: fault.name)
def test_training_is_bit_identical(fault, tmp_path, sound, exports, monkeypatch, caplog):
    export = GraphKeeper.export

    def export_once(keeper, module, args, **settings):
        key = digest(module.state_dict()), tuple(args[0].shape[1:])
        if key not in exports:
            exports[key] = export(keeper, module, args, **settings)
        return exports[key]

    monkeypatch.setattr(GraphKeeper, "export", export_once)
    callback = fault.technique()
    logger = fault.logger(tmp_path) if callable(fault.logger) else fault.logger
    torch.manual_seed(0)
    module = fault.module()
    with warnings.catch_warnings(record=True) as caught, caplog.at_level("INFO", logger="lightning.pytorch"):
        warnings.simplefilter("always")
        fault.plant(monkeypatch, tmp_path)
        state, own, drawn, steps = fit(tmp_path, module, [callback], logger, fault.epochs)
    expected = sound(fault.technique, fault.module, fault.epochs) if fault.like == "healthy" else sound()
    assert steps == expected[3]
    assert own == expected[1]
    assert drawn == expected[2]
    assert state.keys() == expected[0].keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected[0].items())
    said = [str(each.message) for each in caught] + caplog.messages
    assert any(fault.says in line for line in said), said
