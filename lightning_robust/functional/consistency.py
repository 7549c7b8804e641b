"""Losses of unsupervised adversarial training.

`Uesato et al. 2019, Are Labels Required for Improving Adversarial Robustness? <https://arxiv.org/abs/1905.13725>`_
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy


def divergence(logits: Tensor, goal: Tensor, dim: int = 1) -> Tensor:
    r"""The Kullback-Leibler divergence :math:`\mathrm{KL}(g \| p)` of each sample; UAT-OT climbs and lowers it.

    Args:
        logits: Logits of the prediction :math:`p`, ``(N, ...)`` with the classes along ``dim``.
        goal: Logits of the target :math:`g`, of the same shape; no gradient flows into them.
        dim: Dimension of the classes.

    Returns:
        ``(N,)``: the sum over classes, its mean over all other positions.

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> divergence(torch.tensor([[0.0, 0.0]]), torch.tensor([[100.0, 0.0]]))
        tensor([0.6931])
    """
    if logits.shape != goal.shape:
        raise ValueError(
            f"Expected a target of the prediction's shape {tuple(logits.shape)}, but got {tuple(goal.shape)}. Has the "
            "target model other classes?"
        )
    target, prediction = goal.detach().float().log_softmax(dim), logits.float().log_softmax(dim)
    each = (target.exp() * (target - prediction)).sum(dim)
    return each.reshape(len(each), -1).mean(1)


def pseudo_label_loss(logits: Tensor, labels: Tensor, dim: int = 1) -> Tensor:
    """The cross entropy of each sample against labels that a target model gave; UAT-FT climbs and lowers it.

    Args:
        logits: ``(N, ...)`` with the classes along ``dim``.
        labels: int64, of the shape without ``dim``.
        dim: Dimension of the classes.

    Returns:
        ``(N,)``: the mean over all other positions.

    Example:
        >>> pseudo_label_loss(torch.zeros(1, 2), torch.tensor([1]))
        tensor([0.6931])
    """
    each = cross_entropy(torch.movedim(logits.float(), dim, 1), labels, reduction="none")
    return each.reshape(len(each), -1).mean(1)
