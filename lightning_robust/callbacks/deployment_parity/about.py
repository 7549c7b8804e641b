"""What a reader of a report should know of the run: the model's class and size, and the data."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

import lightning.pytorch as pl

from lightning_robust.harness.trainers import data_module


def about_run(trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, str]:
    """The class of the model, its parameters, the data module, or the data sets, and how much of them is validated."""
    facts = {
        "model": _class_name(pl_module),
        "parameters": f"{sum(parameter.numel() for parameter in pl_module.parameters()):,}",
    }
    data, sets = data_module(trainer), _data_sets(trainer)
    named = [data] if data is not None else sets
    counts = [str(len(each)) for each in sets if isinstance(each, Sized)]
    facts |= {"data": ", ".join(dict.fromkeys(map(_class_name, named)))} if named else {}
    return facts | ({"validation samples": " + ".join(counts)} if counts else {})


def _data_sets(trainer: pl.Trainer) -> list[Any]:
    """What the validation loaders read, as far as they say it."""
    loaders = trainer.val_dataloaders
    loaders = loaders if isinstance(loaders, list | tuple) else [loaders]
    sets = [getattr(loader, "dataset", None) for loader in loaders]
    return [each for each in sets if each is not None]


def _class_name(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"
