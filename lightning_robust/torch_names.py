"""Private names of torch that the mathematics and the deployment side need; ``harness/compat.py`` names them too."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as AnyBatchNorm
from torch.nn.modules.conv import _ConvNd as AnyConvolution

__all__ = [
    "AnyBatchNorm",
    "AnyConvolution",
    "hook_dicts",
    "is_compiled",
    "is_hook_of_sharding",
    "is_state_of_sharding",
    "lerp_all_",
    "original_of_compiled",
    "version_of",
    "without_compiled_prefix",
]
_COMPILED = "_orig_mod"


def lerp_all_(starts: Sequence[Tensor], ends: Sequence[Tensor], weight: float) -> None:
    """Move many tensors towards others in place, in one fused pass over memory.

    Example:
        >>> start = torch.zeros(2)
        >>> lerp_all_([start], [torch.ones(2)], 0.25)
        >>> start
        tensor([0.2500, 0.2500])
    """
    torch._foreach_lerp_(list(starts), list(ends), weight)


def version_of(value: object) -> int:
    """How often a tensor was changed in place; 0 for what is no tensor.

    Example:
        >>> tensor = torch.zeros(1)
        >>> before = version_of(tensor)
        >>> _ = tensor.add_(1)
        >>> version_of(tensor) - before
        1
    """
    return value._version if isinstance(value, Tensor) and not value.is_inference() else 0


def original_of_compiled(module: nn.Module) -> nn.Module | None:
    """The module that ``torch.compile(module)`` wraps; None for a module that is no such wrapper.

    Example:
        >>> linear = nn.Linear(2, 2)
        >>> original_of_compiled(torch.compile(linear)) is linear, original_of_compiled(linear)
        (True, None)
    """
    original = getattr(module, _COMPILED, None)
    return original if isinstance(original, nn.Module) else None


def without_compiled_prefix(name: str) -> str:
    """The path of a module or tensor as it is where nothing is compiled.

    Example:
        >>> without_compiled_prefix("net._orig_mod.0.weight")
        'net.0.weight'
    """
    return name.replace(f"{_COMPILED}.", "")


def is_compiled(module: nn.Module) -> bool:
    """Whether torch has compiled the module or a part of it, by ``torch.compile(module)`` or ``module.compile()``.

    Example:
        >>> is_compiled(nn.Linear(2, 2)), is_compiled(torch.compile(nn.Linear(2, 2)))
        (False, True)
    """
    return any(
        original_of_compiled(part) is not None or getattr(part, "_compiled_call_impl", None) is not None
        for part in module.modules()
    )


def is_state_of_sharding(thing: object) -> bool:
    """Whether this is what ``fully_shard`` keeps of a module, whose methods are its hooks.

    Example:
        >>> is_state_of_sharding(nn.Linear(2, 2))
        False
    """
    home = sys.modules.get("torch.distributed.fsdp._fully_shard._fsdp_state")
    return home is not None and isinstance(thing, home.FSDPState)


def is_hook_of_sharding(hook: Any) -> bool:
    """Whether a module has this hook from ``fully_shard``.

    Example:
        >>> is_hook_of_sharding(print)
        False
    """
    call = getattr(hook, "hook", hook)  # a hook for loading stands in an object
    owner = getattr(call, "__self__", None)
    return getattr(call if owner is None else type(owner), "__module__", "").startswith("torch.distributed.fsdp.")


def hook_dicts(module: nn.Module) -> list[dict[int, Any]]:
    """All that a module calls around ``forward`` and its state dict, in the dicts that it keeps them in.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> _ = layer.register_forward_hook(print)
        >>> [len(hooks) for hooks in hook_dicts(layer)]
        [0, 1, 0, 0, 0, 0]
    """
    around = [module._forward_pre_hooks, module._forward_hooks, module._state_dict_pre_hooks, module._state_dict_hooks]
    return [*around, module._load_state_dict_pre_hooks, module._load_state_dict_post_hooks]
