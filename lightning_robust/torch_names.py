"""Private names of torch that the mathematics and the deployment side need; ``harness/compat.py`` names them too."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as AnyBatchNorm
from torch.nn.modules.conv import _ConvNd as AnyConvolution

__all__ = [
    "AnyBatchNorm",
    "AnyConvolution",
    "is_compiled",
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
