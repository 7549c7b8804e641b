"""One short fit of a foreign module with a technique, on tape: snapshots, validations, warnings."""

import copy
import functools
import re
import tempfile
import warnings
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader

from lightning_robust import NoEffectWarning

OURS = re.compile(r"^(\w+(Callback|Mixin)|Robust\w*): |^Training was lazy")
"""How the warnings of this package begin."""


class Tape(pl.Callback):
    """Keeps the weights at the start and after each batch, and what each validation logged."""

    def __init__(self):
        self.start: dict[str, torch.Tensor] = {}
        self.snapshots: list[dict[str, torch.Tensor]] = []
        self.steps: list[int] = []
        self.validations: list[dict[str, float]] = []

    def on_train_start(self, trainer, pl_module):
        self.start = state_of(pl_module)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.snapshots.append(state_of(pl_module))
        self.steps.append(trainer.global_step)

    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.validations.append({k: v.item() for k, v in trainer.callback_metrics.items()})


@dataclass
class Run:
    """A finished fit."""

    guest: Any
    trainer: pl.Trainer
    module: pl.LightningModule
    val: Any
    state: dict[str, torch.Tensor]
    """The weights that the fit returned."""
    tape: Tape
    callback: Any = None
    warnings: list[str] = field(default_factory=list)

    @property
    def logged(self):
        return {k: v.item() for k, v in self.trainer.callback_metrics.items()}


def loader_of(batches):
    """Batches that are there already, as a loader that draws from the generator as any other does."""
    return DataLoader(list(batches), batch_size=None, collate_fn=_as_it_is)


def _as_it_is(batch):
    return batch


def state_of(module):
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def fit(guest, callbacks=(), change=None, folder=None, **settings):
    """Train for two epochs of two steps.

    Args:
        guest: What to train.
        callbacks: Beside the tape.
        change: Takes and gives ``(module, training loader, validation loader)``.
        folder: For files.
    """
    tape = Tape()
    trainer = make_trainer(folder, [tape, *callbacks], **settings)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pl.seed_everything(1, verbose=False)
        module, train, val = guest.make()
        if change is not None:
            module, train, val = change(module, train, val)
        pl.seed_everything(2, verbose=False)
        trainer.fit(module, train, val)
    ours = [str(w.message) for w in caught if is_ours(w)]
    return Run(guest, trainer, module, val, state_of(module), tape, (list(callbacks) or [None])[0], ours)


def is_ours(warning):
    return issubclass(warning.category, NoEffectWarning) or OURS.search(str(warning.message)) is not None


def make_trainer(folder=None, callbacks=(), **settings):
    defaults = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 1,
        "default_root_dir": folder or tempfile.gettempdir(),
    }
    return pl.Trainer(callbacks=list(callbacks), **(defaults | settings))


@functools.cache
def plain(guest_key):
    """The same fit without any technique."""
    return fit(guest_key.guest)


@dataclass(frozen=True)
class GuestKey:
    """A guest by its name, as the cache of plain fits needs it."""

    name: str
    guest: Any = field(compare=False, hash=False)


def plain_run(guest):
    return plain(GuestKey(guest.name, guest))


def validated(guest, state, batches):
    """What a fresh Trainer's validation logs of a fresh module with these weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (metrics,) = make_trainer().validate(fresh(guest, state), batches, verbose=False)
    return metrics


def fresh(guest, state):
    """A module that has never been trained, with other weights."""
    module = copy.deepcopy(untrained(guest))
    module.load_state_dict(state)
    return module


def untrained(guest):
    """The guest as it is made, one for all: to look at."""
    return _made(GuestKey(guest.name, guest))


@functools.cache
def _made(guest_key):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return guest_key.guest.make()[0]
