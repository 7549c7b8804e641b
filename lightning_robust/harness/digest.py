"""A short name for weights, by their bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def digest(state: Mapping[str, Tensor]) -> str:
    """The first eight digits of the SHA-256 of a state dict's names and bytes.

    Example:
        >>> digest({"w": torch.zeros(2)}) == digest({"w": torch.zeros(2)}) != digest({"w": torch.ones(2)})
        True
    """
    found = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        found.update(name.encode())
        if not isinstance(tensor, Tensor):  # what a module's get_extra_state gives
            found.update(repr(tensor).encode())
            continue
        found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:8]
