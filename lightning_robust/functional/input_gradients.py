"""Gradients of a loss with respect to inputs alone, also where half precision would lose them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_FP16_SCALE = 1024.0


def input_gradients(
    loss: Tensor, inputs: Sequence[Tensor], *, dtype: torch.dtype | None = None, retain_graph: bool = False
) -> list[Tensor]:
    """The gradient of a loss with respect to each input; no parameter's ``.grad`` changes.

    Where the network computes in fp16, the loss is scaled by 1024 on the way back, since gradients of single samples
    are often smaller than the smallest number of fp16.

    Args:
        loss: A scalar.
        inputs: Leaves that take a gradient.
        dtype: Type that the network computes in, where it is another than that of the inputs.
        retain_graph: Whether the graph is used again.

    Returns:
        In fp32 or wider; zeros for inputs that the loss does not use.

    Raises:
        ValueError: If the loss uses none of them.

    Example:
        >>> x = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> input_gradients(x.square().sum(), [x])
        [tensor([2., 4.])]
    """
    if not loss.requires_grad:
        raise ValueError(_UNRELATED)
    scale = _FP16_SCALE if _computes_in_fp16(inputs[0].device.type, dtype or inputs[0].dtype) else 1.0
    try:
        gradients = torch.autograd.grad(loss * scale, inputs, allow_unused=True, retain_graph=retain_graph)
    except RuntimeError as error:
        if "checkpoint" not in str(error).lower():
            raise
        raise ValueError(_REENTRANT) from error
    if all(gradient is None for gradient in gradients):
        raise ValueError(_UNRELATED)
    return [
        torch.zeros_like(part) if gradient is None else _widened(gradient) / scale
        for gradient, part in zip(gradients, inputs, strict=True)
    ]


_UNRELATED = (
    "Expected a loss that depends on the inputs, but it has no gradient with respect to them. Is the right part of the "
    "batch perturbed (`input_key`), and does the model not detach it?"
)
_REENTRANT = (
    "Expected a loss that can be differentiated with respect to the inputs alone, but reentrant activation "
    "checkpointing forbids that. Use torch.utils.checkpoint.checkpoint(..., use_reentrant=False)."
)


def _widened(gradient: Tensor) -> Tensor:
    return gradient.to(torch.promote_types(gradient.dtype, torch.float32))


def _computes_in_fp16(device: str, dtype: torch.dtype) -> bool:
    autocast = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16
    return autocast or dtype == torch.float16
