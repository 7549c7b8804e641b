"""Copies of modules that FSDP2 has sharded: it refuses ``deepcopy``, and its hooks would gather what is whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from lightning_robust.functional.shards import is_distributed, sharded_modules
from lightning_robust.torch_names import hook_dicts, is_hook_of_sharding, is_state_of_sharding


@contextmanager
def plain_classes(module: nn.Module) -> Iterator[dict[int, Any]]:
    """Inside the block, parts that FSDP2 has sharded are of the classes they were before, which can be copied.

    Yields:
        What ``deepcopy`` takes as its memo: sharded parameters become whole ones in the memory of the CPU, whose values
        are not set; what FSDP2 keeps for itself is not copied.
    """
    classes = [(part, type(part)) for part in sharded_modules(module)]
    try:
        for part, cls in classes:
            # the class that fully_shard made stands before its own mixin and the original
            part.__class__ = cls.__mro__[2]
        yield _memo(module) if classes else {}
    finally:
        for part, cls in classes:
            part.__class__ = cls


def drop_sharding(duplicate: nn.Module) -> None:
    """Take FSDP2's hooks and bookkeeping out of a copy that :func:`plain_classes` allowed."""
    for part in duplicate.modules():
        for hooks in hook_dicts(part):
            for number in [number for number, hook in hooks.items() if is_hook_of_sharding(hook)]:
                del hooks[number]
        for name in [name for name, value in vars(part).items() if _holds_state(value)]:
            del part.__dict__[name]


def _memo(module: nn.Module) -> dict[int, Any]:
    """What stands for parts of the module in its copy."""
    memo: dict[int, Any] = {}
    # some may be whole at present, and are copied so: to reshard on one rank would leave the next pass to wait
    for parameter in filter(is_distributed, module.parameters()):
        whole = torch.empty(parameter.shape, dtype=parameter.dtype)
        memo[id(parameter)] = nn.Parameter(whole, requires_grad=parameter.requires_grad)
    for part in module.modules():
        memo |= {id(state): state for state in _states(part)}
        memo |= {id(value): None for value in vars(part).values() if _is_mesh(value)}
    return memo


def _states(part: nn.Module) -> Iterator[Any]:
    for hooks in hook_dicts(part):
        yield from (hook.__self__ for hook in hooks.values() if is_state_of_sharding(getattr(hook, "__self__", None)))
    yield from filter(_holds_state, vars(part).values())


def _is_mesh(value: Any) -> bool:
    return isinstance(value, torch.distributed.device_mesh.DeviceMesh)


def _holds_state(value: Any) -> bool:
    return isinstance(value, dict) and any(map(is_state_of_sharding, value.values()))
