"""Files of weights and plain values alone, which load with ``weights_only=True`` and in Lightning."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from lightning_robust.harness.ranks import agreed
from lightning_robust.harness.replacement import replaced
from lightning_robust.harness.trainers import data_module


def save_weights(trainer: pl.Trainer, path: str | Path) -> list[str]:
    """Save the weights that the module holds, in a file that loads with ``weights_only=True`` and in Lightning.

    Hyperparameters, and whatever else Lightning or the module adds, go along where they are plain values.

    Returns:
        The names of hyperparameters that were left out; ``load_from_checkpoint`` wants them as arguments.
    """
    module, left_out = trainer.lightning_module, []
    original = module.on_save_checkpoint

    def on_save_checkpoint(checkpoint: dict[str, Any]) -> None:
        original(checkpoint)
        left_out.extend(_leave_out_objects(checkpoint))

    def save() -> None:
        # the ranks meet in `agreed`, since one that cannot write would not come to Lightning's own barrier
        alone = replaced(trainer.strategy, barrier=lambda *_, **__: None)
        with alone, replaced(module, on_save_checkpoint=on_save_checkpoint):
            trainer.save_checkpoint(path, weights_only=True)

    agreed(trainer, save, "Writing weights")
    return left_out


def object_hyperparameters(trainer: pl.Trainer) -> list[str]:
    """The hyperparameters of the module and the data module for which checkpoints do not load as weights only."""
    owners = (trainer.lightning_module, data_module(trainer))
    return [name for owner in owners if owner is not None for name in _objects_in(owner.hparams)]


def _leave_out_objects(checkpoint: dict[str, Any]) -> list[str]:
    """Take everything but the weights and plain values out of a checkpoint; returns names of hyperparameters."""
    left_out = []
    for key in list(checkpoint):
        if key == "state_dict" or _is_plain(checkpoint[key]):
            continue
        if key.endswith("hyper_parameters"):
            objects = _objects_in(checkpoint[key])
            checkpoint[key] = {name: value for name, value in checkpoint[key].items() if name not in objects}
            left_out += objects
        else:
            del checkpoint[key]
    return left_out


def _objects_in(hyperparameters: Mapping[str, Any]) -> list[str]:
    return [str(name) for name, value in hyperparameters.items() if not _is_plain(value)]


def _is_plain(value: Any) -> bool:
    """Whether it survives ``torch.save`` and ``torch.load(weights_only=True)``."""
    stream = io.BytesIO()
    try:
        torch.save(value, stream)
        stream.seek(0)
        torch.load(stream, weights_only=True)
    except Exception:
        return False
    return True
