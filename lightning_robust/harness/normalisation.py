"""How the inputs of a network were normalised, by its data module or by arguments."""

from __future__ import annotations

import lightning.pytorch as pl

from lightning_robust.functional.pixels import PixelSpace
from lightning_robust.harness.trainers import data_module


def pixel_space(
    trainer: pl.Trainer | None,
    mean: float | list[float] | None,
    std: float | list[float] | None,
    low: float = 0.0,
    high: float = 1.0,
) -> PixelSpace:
    """How inputs were normalised: as given, or as the data module says by ``mean`` and ``std``, or not at all."""
    data = None if trainer is None else data_module(trainer)
    mean = mean if mean is not None else getattr(data, "mean", 0.0)
    std = std if std is not None else getattr(data, "std", 1.0)
    return PixelSpace(mean, std, low, high)
