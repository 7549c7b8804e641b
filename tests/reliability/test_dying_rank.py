"""A rank that is killed in any phase of a fit: the other one ends by itself, and soon, instead of waiting for ever."""

import os
import signal
import time
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy

from lightning_robust import (
    AdversarialCallback,
    DeploymentParityCallback,
    GreedySoupCallback,
    LayerCriticalityCallback,
    SWACallback,
)
from lightning_robust.harness import pulse
from lightning_robust.harness.ranks import agreed, on_rank_zero
from tests.boring import Boring, make_trainer
from tests.distributed import on_ranks

SILENCE = 3.0
"""Seconds, in place of the forty of the library, so that the test is short."""
MOST = 15.0
"""Seconds that the other rank may take to end, on a machine that is busy."""
TECHNIQUES = {
    "swa": partial(SWACallback, start=0, bn_samples=32),
    "soup": partial(GreedySoupCallback, monitor="val/loss", mode="min", ingredients="epochs"),
    "criticality": partial(LayerCriticalityCallback, monitor="val/loss", mode="min"),
    "parity": partial(DeploymentParityCallback, ["torch-bf16"], num_samples=4, perturbations="none"),
    "adversarial": partial(AdversarialCallback, eps=0.1, val_steps=2),
}
PHASES = {
    # phase: the technique, and the number of the forward pass on the rank that dies
    "training": ("swa", 2),
    "validation of the raw weights": ("swa", 4),
    "refreshing BatchNorm": ("swa", 6),
    "validation": ("swa", 8),
    "attacking": ("adversarial", 8),
    "cooking": ("soup", 10),
    "measuring layers": ("criticality", 10),
}


class Mortal(Boring):
    """Dies in one of its forward passes, on one rank."""

    def __init__(self, rank, last):
        super().__init__()
        self.victim, self.last, self.passes = rank, last, 0

    def forward(self, images):
        self.passes += 1
        if self.trainer.global_rank == self.victim and self.passes == self.last:
            _die()
        return super().forward(images)


class DiesAt(pl.Callback):
    """Dies within work that ranks agree on, or that rank 0 does alone, before the other has come or while it waits."""

    def __init__(self, rank, place):
        self.rank, self.place = rank, place

    def on_train_epoch_end(self, trainer, pl_module):
        def work():
            if trainer.global_rank == self.rank:
                time.sleep(2 * SILENCE)  # at work for longer than the silence that would be death
                if trainer.current_epoch == 1:
                    _die()

        {"agreed": agreed, "rank zero": on_rank_zero}[self.place](trainer, work, "It")


def _die():
    Path("died").write_text(str(time.time()))
    os.kill(os.getpid(), signal.SIGKILL)


def fit(folder, callbacks, model):
    """How a rank ends, and when."""
    os.chdir(folder)
    pulse.SILENCE, pulse.BEAT = SILENCE, 0.3
    trainer = make_trainer(
        folder, [make() for make in callbacks], strategy=DDPStrategy(process_group_backend="gloo"), devices=2
    )
    try:
        trainer.fit(model())
        end = "the fit ended"
    except BaseException as error:
        end = f"{type(error).__name__}: {error}"
    return end, time.time()


def check_ends(folder, rank, callbacks, model):
    results = on_ranks(2, folder, fit, folder, callbacks, model, dies=rank)
    end, moment = results[1 - rank]
    assert moment - float((folder / "died").read_text()) < MOST
    return end


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.filterwarnings("ignore")
def test_in_a_pass_of_the_module(tmp_path, rank, phase):
    technique, last = PHASES[phase]
    end = check_ends(tmp_path, rank, [TECHNIQUES[technique]], partial(Mortal, rank, last))
    # what happens after the training costs a warning, not the fit
    assert (end == "the fit ended") == (technique in ("soup", "criticality"))


@pytest.mark.parametrize("place", ["agreed", "rank zero"])
def test_while_the_other_waits_for_it(tmp_path, place):
    """Work that takes long is waited for; a rank that is dead is not."""
    rank = 0 if place == "rank zero" else 1
    end = check_ends(tmp_path, rank, [TECHNIQUES["swa"], partial(DiesAt, rank, place)], Boring)
    if rank == 1:
        assert end.startswith("RankError: Rank 1 has given no sign of life for 3 s while rank 0 waited for it")


def test_silence_while_resting_is_no_death():
    store = torch.distributed.HashStore()
    trainer = type("Trainer", (), {"world_size": 3, "global_rank": 0})
    listener = pulse.Listener(trainer, store)
    store.set(pulse._key_of(1), "1.0")
    listener._asked -= 10
    assert listener.dead() == []
    listener._heard = {1: (b"1.0", time.monotonic() - 41)}
    listener._asked -= 10
    assert listener.dead() == [1]
    store.set(pulse._key_of(1), pulse._RESTING)
    listener._asked -= 10
    assert listener.dead() == []
    listener._heard[1] = (listener._heard[1][0], time.monotonic() - 41)
    listener._asked -= 10
    assert listener.dead() == []
