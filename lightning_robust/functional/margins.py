"""How far logits are from another class: losses of attacks on classifiers, whatever the scale of the logits."""

from __future__ import annotations

import torch
from torch import Tensor

DLR_CLASSES = 4
"""Fewest classes that the targeted DLR loss is defined for."""
_TINY = 1e-12


def margin_loss(logits: Tensor, classes: Tensor) -> Tensor:
    r"""How far the best wrong class is above the right one; a positive margin is a wrong prediction.

    .. math:: \max_{i \ne y} z_i - z_y

    Args:
        logits: ``(batch, classes)``, at least two classes.
        classes: The right ones ``(batch,)``.

    Returns:
        ``(batch,)``.

    Raises:
        ValueError: For other shapes, or classes that there are not.

    Example:
        >>> margin_loss(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([0]))
        tensor([-1.])
    """
    require_classes(logits, classes)
    right = logits.gather(1, classes[:, None])
    return (logits.scatter(1, classes[:, None], -torch.inf).amax(1, keepdim=True) - right).flatten()


def targeted_dlr_loss(logits: Tensor, classes: Tensor, targets: Tensor) -> Tensor:
    r"""The targeted difference of logits ratio: how far the target is above the right class, whatever the scale.

    .. math:: -\frac{z_y - z_t}{z_{\pi_1} - (z_{\pi_3} + z_{\pi_4}) / 2}

    with :math:`z_{\pi_1} \ge z_{\pi_2} \ge \dots` the logits in falling order (`Croce and Hein 2020
    <https://arxiv.org/abs/2003.01690>`_, equation 7). It does not change where logits are multiplied by a number or a
    constant is added to them, so large logits do not hide its gradient.

    Args:
        logits: ``(batch, classes)``, at least four classes.
        classes: The right ones ``(batch,)``.
        targets: The wrong ones to reach ``(batch,)``.

    Returns:
        ``(batch,)``; positive where the target has more than the right class.

    Raises:
        ValueError: For fewer than four classes, which the denominator needs, other shapes, or classes that there are
            not.

    Example:
        >>> targeted_dlr_loss(torch.tensor([[8.0, 4.0, 2.0, 0.0]]), torch.tensor([0]), torch.tensor([1]))
        tensor([-0.5714])
    """
    if logits.ndim == 2 and logits.shape[1] < DLR_CLASSES:
        raise ValueError(
            f"Expected at least {DLR_CLASSES} classes for the targeted DLR loss, whose denominator takes the third and "
            f"fourth logit, but got {logits.shape[1]}. Take the difference of the two logits instead, as "
            "`worst_prediction` does by itself."
        )
    order = logits.topk(DLR_CLASSES, dim=1).values
    return targeted_margin_loss(logits, classes, targets) / (order[:, 0] - order[:, 2:].mean(1) + _TINY)


def targeted_margin_loss(logits: Tensor, classes: Tensor, targets: Tensor) -> Tensor:
    """How far a wrong class is above the right one, ``(batch,)``: for too few classes for the DLR loss.

    Args:
        logits: ``(batch, classes)``, at least two classes.
        classes: The right ones ``(batch,)``.
        targets: The wrong ones to reach ``(batch,)``.

    Raises:
        ValueError: For other shapes, or classes that there are not.

    Example:
        >>> targeted_margin_loss(torch.tensor([[3.0, 1.0]]), torch.tensor([0]), torch.tensor([1]))
        tensor([-2.])
    """
    require_classes(logits, classes)
    require_classes(logits, targets)
    difference = logits.gather(1, targets[:, None]) - logits.gather(1, classes[:, None])
    return difference.flatten()


def require_classes(logits: Tensor, classes: Tensor) -> None:
    """Refuse what are no logits of a classifier, or no classes of theirs.

    Raises:
        ValueError: Saying what was expected.

    Example:
        >>> require_classes(torch.zeros(2, 3), torch.tensor([0, 2]))
    """
    if logits.ndim != 2 or logits.shape[1] < 2 or not logits.is_floating_point():
        raise ValueError(
            f"Expected logits (batch, classes) of at least two classes, but got {tuple(logits.shape)} of "
            f"{logits.dtype}."
        )
    if classes.shape != logits.shape[:1] or classes.dtype != torch.int64:
        raise ValueError(
            f"Expected one class (int64) for each of {len(logits)} samples, but got {tuple(classes.shape)} of "
            f"{classes.dtype}."
        )
    if len(classes) and not bool(((classes >= 0) & (classes < logits.shape[1])).all()):
        low, high = classes.min().item(), classes.max().item()
        raise ValueError(f"Expected classes from 0 to {logits.shape[1] - 1}, but got some from {low} to {high}.")
