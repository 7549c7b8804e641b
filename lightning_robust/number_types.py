"""What kind of numbers tensors hold: real and complex ones have means, integers and bools are copied."""

from __future__ import annotations

import torch
from torch import Tensor


def has_mean(kind: Tensor | torch.dtype) -> bool:
    """Whether numbers have a mean of their own type: real and complex ones do, integers and bools do not.

    Example:
        >>> has_mean(torch.zeros(1)), has_mean(torch.complex64), has_mean(torch.tensor([1]))
        (True, True, False)
    """
    dtype = kind.dtype if isinstance(kind, Tensor) else kind
    return dtype.is_floating_point or dtype.is_complex


def type_of_mean(kind: torch.dtype, dtype: torch.dtype) -> torch.dtype:
    """The type of a mean in ``dtype``: of complex numbers the complex one, and integers keep theirs.

    Example:
        >>> type_of_mean(torch.float16, torch.float64), type_of_mean(torch.complex64, torch.float64)
        (torch.float64, torch.complex128)
    """
    if not has_mean(kind):
        return kind
    return dtype.to_complex() if kind.is_complex else dtype


def real_parts(tensor: Tensor) -> Tensor:
    """A view of complex numbers ``(...)`` as real ones ``(..., 2)``, and real ones as they are.

    Example:
        >>> real_parts(torch.tensor([1 + 2j])), real_parts(torch.tensor([3.0]))
        (tensor([[1., 2.]]), tensor([3.]))
    """
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
