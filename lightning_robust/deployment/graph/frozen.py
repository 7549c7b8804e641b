"""A module as it is exported: frozen in fp32 on the CPU, behind a flat signature, with its arguments in one type."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_robust.deployment.graph.sharded_copy import drop_sharding, plain_classes
from lightning_robust.structures import flatten, keyword_only, map_tensors, rebuild, tensors_in
from lightning_robust.torch_names import original_of_compiled


class Flat(nn.Module):
    """A module behind a flat signature: tensors in, a tuple of tensors out, whatever structures it speaks itself.

    Args:
        module: The module.
        args: Its positional arguments, any structure of tensors; only the structure is used.
    """

    def __init__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        super().__init__()
        self.module = module
        self._args = args

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Call the module with ``tensors`` put back into its arguments; shapes are the module's own."""
        outputs = flatten(self.module(*rebuild(self._args, iter(tensors)))).values()
        # the exporter names an input that is handed on after the output
        return tuple(out.clone() if any(out is given for given in tensors) else out for out in outputs)


def named_inputs(args: tuple[Any, ...]) -> dict[str, Tensor]:
    """The tensors in the positional arguments of ``forward`` under the names of the graph's inputs, in their order.

    Example:
        >>> list(named_inputs((torch.zeros(1),))), list(named_inputs((torch.zeros(1), torch.zeros(1))))
        (['input'], ['input.0', 'input.1'])
    """
    return flatten(args[0] if len(args) == 1 else args, "input")


def frozen_copy(module: nn.Module, state: Mapping[str, Tensor] | None = None) -> nn.Module:
    """A copy in fp32 on the CPU, in evaluation mode, without ``torch.compile``; the module itself is not touched.

    What its ``forward`` takes by name alone, the copy takes by position, as a graph does.

    Args:
        module: Any module, also one in the middle of a fit. One whose weights FSDP2 has sharded becomes whole.
        state: Weights to put into the copy, as from ``module.state_dict()``; its own if None. Those of a sharded
            module have to be given, whole.

    Example:
        >>> live = nn.Dropout()
        >>> frozen_copy(live).training, live.training
        (False, True)
    """
    with plain_classes(module) as memo:
        duplicate = copy.deepcopy(module, _without_graphs(module) | memo)
    drop_sharding(duplicate)
    if state is not None:
        duplicate.load_state_dict(state)
    duplicate.__dict__.pop("forward", None)  # Lightning puts a compiled forward on the instance
    return _taking_by_position(_uncompiled(duplicate)).cpu().float().eval().requires_grad_(False)


def _taking_by_position(module: nn.Module) -> nn.Module:
    """Give a network whose ``forward`` takes arguments by name alone a class that takes them by position too."""
    kind = type(module)
    names = [] if isinstance(module, torch.jit.ScriptModule) else keyword_only(kind.forward)
    if names:
        by_position = list(inspect.signature(kind.forward).parameters).index(names[0]) - 1  # without self

        def forward(self: nn.Module, *args: Any, **named: Any) -> Any:
            taken = dict(zip(names, args[by_position:], strict=False))
            return kind.forward(self, *args[:by_position], **taken, **named)

        # a function on the instance would call this network from every further copy
        module.__class__ = type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})
    return module


def to_args(args: tuple[Any, ...], dtype: torch.dtype, device: torch.device | str = "cpu") -> tuple[Any, ...]:
    """The arguments with their floating tensors in another type, all tensors on another device."""

    def move(tensor: Tensor) -> Tensor:
        return tensor.to(device, dtype) if tensor.is_floating_point() else tensor.to(device)

    moved: tuple[Any, ...] = map_tensors(move, args)
    return moved


def _without_graphs(module: nn.Module) -> dict[int, Any]:
    """A memo for ``deepcopy`` in which tensors with a graph, as gathered losses or metrics, stand for their values."""
    kept = [tensor for part in module.modules() for tensor in tensors_in(vars(part))]
    return {id(tensor): tensor.detach().clone() for tensor in kept if tensor.grad_fn is not None}


def _uncompiled(module: nn.Module) -> nn.Module:
    original = original_of_compiled(module)
    if original is not None:
        return _uncompiled(original)
    for name, child in module.named_children():
        setattr(module, name, _uncompiled(child))
    return module
