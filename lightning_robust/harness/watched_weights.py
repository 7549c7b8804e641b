"""Weights that a user's step moves by itself, as a momentum teacher: found by comparison, and put back."""

from __future__ import annotations

from collections.abc import Hashable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_robust.functional.shards import is_distributed, own_part, reshard
from lightning_robust.number_types import has_mean, real_parts

_moving: WeakKeyDictionary[nn.Module, tuple[set[Hashable], set[str]]] = WeakKeyDictionary()
"""For each module the periods in which its weights were compared, and the names of those that its steps move."""


class WatchedWeights:
    """The weights that steps of a module are known to move; in a new period, all of them.

    Of sharded weights it is this rank's parts. A copy of them all is made on the CPU, once a period; of those that
    move, each time.

    Args:
        module: The module.
        period: Anything that can be hashed; ``None`` is one period.

    Example:
        >>> layer = nn.Linear(1, 1)
        >>> before = layer.bias.item()
        >>> watched = WatchedWeights(layer, period=0)
        >>> _ = layer.bias.data.add_(1)
        >>> watched.restore()
        >>> layer.bias.item() == before
        True
    """

    def __init__(self, module: nn.Module, period: Hashable) -> None:
        periods, self._names = _moving.setdefault(module, (set(), set()))
        reshard(module)  # or FSDP2's whole weights would be watched, which it drops
        self._before = [
            # on the CPU, where there is room for them
            (name, parameter, (part := own_part(parameter).detach()), part.to("cpu", copy=True))
            for name, parameter in module.named_parameters()
            if (period not in periods or name in self._names) and not is_lazy(parameter)
        ]
        periods.add(period)

    def restore(self) -> None:
        """Put back those that have moved."""
        for name, parameter, data, before in self._before:
            if _differs(own_part(parameter).detach(), data, before):
                self._names.add(name)
                if not is_distributed(parameter):
                    parameter.data = data
                data.copy_(before)


def _differs(now: Tensor, data: Tensor, before: Tensor) -> bool:
    return now.data_ptr() != data.data_ptr() or not torch.equal(_bits(now.cpu()), _bits(before))


def _bits(tensor: Tensor) -> Tensor:
    """The tensor with NaN as a number, which is equal to itself."""
    return real_parts(tensor).nan_to_num() if has_mean(tensor) else tensor
