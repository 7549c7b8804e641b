"""Tensors that lie in parts on several ranks (DTensor, as FSDP2 has them): the part of this rank, and the way back."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

_TENSORS, _MODULES = "torch.distributed.tensor", "torch.distributed.fsdp"
"""What there is none of until somebody has imported these; importing them to ask takes seconds."""


def is_distributed(tensor: object) -> TypeGuard[DTensor]:
    """Whether a tensor is a DTensor, of which this rank holds a part.

    Example:
        >>> is_distributed(torch.zeros(2))
        False
    """
    return _TENSORS in sys.modules and isinstance(tensor, sys.modules[_TENSORS].DTensor)


@torch.no_grad()
def own_part(tensor: Tensor) -> Tensor:
    """The part of a tensor that this rank holds, which shares its memory; all of an ordinary tensor.

    Example:
        >>> whole = torch.zeros(2)
        >>> own_part(whole) is whole
        True
    """
    return tensor.to_local() if is_distributed(tensor) else tensor


def as_part(part: Tensor, like: Tensor) -> Tensor:
    """The tensor of which this rank holds ``part``, laid out over the ranks as another one; no communication.

    Args:
        part: What :func:`own_part` gives of a tensor of the shape of ``like``, of any type.
        like: A tensor; where it is an ordinary one, ``part`` is all there is.

    Returns:
        A DTensor around ``part``, or ``part`` itself.

    Example:
        >>> as_part(torch.ones(2), torch.zeros(2))
        tensor([1., 1.])
    """
    if not is_distributed(like):
        return part
    layout = {"shape": like.shape, "stride": like.stride()}
    return sys.modules[_TENSORS].DTensor.from_local(part, like.device_mesh, like.placements, run_check=False, **layout)


def part_of(whole: Tensor, like: Tensor) -> Tensor:
    """The part of a whole tensor that this rank holds where it is laid out as another one; no communication.

    Args:
        whole: An ordinary tensor that every rank has, of the shape of ``like`` and any type.
        like: The tensor that lies on the ranks as the result shall.

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> part_of(torch.ones(2), torch.zeros(2))
        tensor([1., 1.])
    """
    if whole.shape != like.shape:
        raise ValueError(f"Expected a tensor of shape {tuple(like.shape)}, but got {tuple(whole.shape)}.")
    if not is_distributed(like):
        return whole
    distribute = sys.modules[_TENSORS].distribute_tensor
    here = whole.to(like.device)
    return own_part(distribute(here, like.device_mesh, like.placements, src_data_rank=None))


def gathered(tensor: Tensor) -> Tensor:
    """The whole of a tensor, on every rank; all ranks have to call it.

    Example:
        >>> gathered(torch.ones(2, requires_grad=True))
        tensor([1., 1.])
    """
    return tensor.full_tensor().detach() if is_distributed(tensor) else tensor.detach()


def reshard(module: nn.Module) -> None:
    """Let go of the whole weights that FSDP2 keeps after a forward pass, so that the next one gathers them anew.

    Its outermost module keeps them until the backward pass; where weights are changed in between, as after a
    validation, the next forward pass would compute with those from before. All ranks have to call it, or some would
    gather in their next pass and others not.

    Example:
        >>> reshard(nn.Linear(2, 2))  # nothing to let go of
    """
    for part in sharded_modules(module):
        part.reshard()


def sharded_modules(module: nn.Module) -> Iterator[FSDPModule]:
    """The parts of a module that ``fully_shard`` was called on.

    Example:
        >>> list(sharded_modules(nn.Linear(2, 2)))
        []
    """
    if _MODULES in sys.modules:
        kind = getattr(sys.modules[_MODULES], "FSDPModule", ())
        yield from (part for part in module.modules() if isinstance(part, kind))
