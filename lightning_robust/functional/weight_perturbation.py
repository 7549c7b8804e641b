"""Weights moved up their loss, by a share of their own norm."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def perturbed_weights(weights: Sequence[Tensor], gradients: Sequence[Tensor], gamma: float) -> list[Tensor]:
    r"""Each weight one step up its gradient, as long as a share of the weight itself.

    .. math:: w' = w + \gamma\, \|w\| \, g / \|g\|

    with the norm over each tensor: adversarial weight perturbation (`Wu et al. 2020
    <https://arxiv.org/abs/2004.05884>`_), with a single step as in the authors' code.

    Args:
        weights: Tensors, such as the kernels of layers.
        gradients: Of the loss, one for each weight.
        gamma: :math:`\gamma`.

    Returns:
        New tensors of the weights' types; a weight without a gradient, or with one that is not finite, stays.

    Example:
        >>> perturbed_weights([torch.tensor([3.0, 4.0])], [torch.tensor([0.0, 2.0])], 0.1)
        [tensor([3.0000, 4.5000])]
    """
    moved = []
    for weight, gradient in zip(weights, gradients, strict=True):
        norm = gradient.norm()
        scale = torch.where((norm > 0) & norm.isfinite(), gamma * weight.detach().norm() / norm, 0.0)
        step = torch.where(scale > 0, gradient * scale, 0.0)
        moved.append((weight.detach() + step).to(weight.dtype))
    return moved
