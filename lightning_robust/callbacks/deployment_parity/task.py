"""What a LightningModule says of its task by its methods ``decode``, ``known`` and ``moved``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_robust.deployment.parity.readout import Values
from lightning_robust.deployment.parity.scale import Known, Task, masks
from lightning_robust.harness.samples import FirstInputs

KNOWN = "known"
"""Name of the method ``known(values, batch)``."""


def task_of(module: nn.Module, decode: str | None, inputs: FirstInputs) -> Task:
    """The task of a module on the samples that were gathered.

    Args:
        module: The module, or a copy of it.
        decode: Name of the method that turns outputs into named values; None, or one that it has not, for none.
        inputs: The samples, with their whole batches if the module has ``known(values, batch)``.
    """
    reads = getattr(module, decode, None) if decode else None
    if reads is None:
        return Task()
    judge, moved = getattr(module, KNOWN, None), getattr(module, "moved", None)
    known = _known_by_batches(judge, inputs) if callable(judge) else None
    return Task(reads, known, moved if callable(moved) else None)


def _known_by_batches(judge: Callable[[Values, Any], Mapping[str, Tensor] | Tensor], inputs: FirstInputs) -> Known:
    def known(values: Values, rows: slice) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for places, batch in inputs.batches(rows):
            part = {name: value[places] for name, value in values.items()}
            for name, mask in masks(judge(part, batch), part).items():
                found.setdefault(name, torch.zeros(values[name].shape, dtype=torch.bool))[places] = mask
        return found

    return known
