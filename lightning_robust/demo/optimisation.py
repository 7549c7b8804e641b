"""The optimiser of the demos, and the length of its schedule."""

from __future__ import annotations

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn


def adamw(module: nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW without decay on biases and norms.

    Args:
        module: Whose parameters are trained.
        learning_rate: Of all parameters.
        weight_decay: Of those of two or more dimensions.
    """
    weights = [p for p in module.parameters() if p.ndim > 1]
    others = [p for p in module.parameters() if p.ndim <= 1]
    groups = [{"params": weights, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate)


def known_steps(trainer: pl.Trainer) -> int:
    """The steps of the run, which a one-cycle schedule is laid out over.

    Raises:
        MisconfigurationException: If they are not known beforehand.
    """
    steps = trainer.estimated_stepping_batches
    if steps == float("inf"):
        raise MisconfigurationException(
            "Expected a run of known length for the one-cycle schedule, but got neither `max_epochs` nor "
            "`max_steps`. Set one of them; `max_time` may stay as well."
        )
    return int(steps)


def one_cycle_length(trainer: pl.Trainer, rise: float) -> int:
    """The steps that torch's OneCycleLR can be laid out over; it divides by zero where the rise ends in its second one.

    Args:
        trainer: Of the run.
        rise: Share of the steps in which the rate rises.

    Raises:
        MisconfigurationException: If the length of the run is not known beforehand.
    """
    steps = max(known_steps(trainer), 2)
    return steps + (rise * steps == 1)
