"""What a LightningModule says of its task by its methods ``decode``, ``known``, ``truth`` and ``moved``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_robust.decoding.alignment import Decoded
from lightning_robust.deployment.parity.readout import Values
from lightning_robust.deployment.parity.scale import Known, Task, Truth, decoder_of, masks
from lightning_robust.harness.samples import FirstInputs

_ON_BATCHES = ("known", "truth")
"""Names of the methods ``known(values, batch)`` and ``truth(batch)``."""


def needs_whole_batches(module: nn.Module) -> bool:
    """Whether a module says something of its task by whole batches, and not by inputs alone."""
    return any(callable(getattr(module, name, None)) for name in _ON_BATCHES)


def task_of(module: nn.Module, decode: str | None, inputs: FirstInputs) -> Task:
    """The task of a module on the samples that were gathered.

    Args:
        module: The module, or a copy of it.
        decode: Name of the method that turns outputs into named values, or of an installed decoder; None, or one that
            there is not, for none.
        inputs: The samples, with their whole batches if :func:`needs_whole_batches`.
    """
    reads = decoder_of(module, decode)
    if reads is None:
        return Task()
    judge, label, moved = (getattr(module, name, None) for name in (*_ON_BATCHES, "moved"))
    known = _known_by_batches(judge, inputs) if callable(judge) else None
    truth = _truth_by_batches(label, inputs) if callable(label) else None
    return Task(reads, known, moved if callable(moved) else None, truth)


def _known_by_batches(judge: Callable[[Values, Any], Mapping[str, Tensor] | Tensor], inputs: FirstInputs) -> Known:
    def known(values: Values, rows: slice) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for places, batch in inputs.batches(rows):
            part = {name: value[places] for name, value in values.items()}
            for name, mask in masks(judge(part, batch), part).items():
                found.setdefault(name, torch.zeros(values[name].shape, dtype=torch.bool))[places] = mask
        return found

    return known


def _truth_by_batches(label: Callable[[Any], Values], inputs: FirstInputs) -> Truth:
    def truth(rows: slice) -> Values:
        places, parts = [], []
        for where, batch in inputs.batches(rows):
            places.append(where)
            parts.append(label(batch))
        order = torch.cat(places).argsort()
        return {name: _join_labels([part[name] for part in parts])[order] for name in parts[0]}

    return truth


def _join_labels(parts: Sequence[Any]) -> Any:
    """The labels of all batches."""
    return type(parts[0]).join(parts) if isinstance(parts[0], Decoded) else torch.cat(list(parts))
