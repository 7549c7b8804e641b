"""The optimiser of the demos on rendered roads."""

from __future__ import annotations

import torch
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
