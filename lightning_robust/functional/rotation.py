"""Quarter turns of pictures, and the score of a head that tells the turns apart."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

TURNS = 4


def square(images: Tensor, fit: str = "crop") -> Tensor:
    """The middle square of pictures ``(N, C, H, W)``, or with ``"pad"`` the pictures amid zeros.

    Raises:
        ValueError: For another shape or an unknown ``fit``.

    Example:
        >>> square(torch.zeros(1, 3, 4, 10)).shape, square(torch.zeros(1, 3, 4, 10), "pad").shape
        (torch.Size([1, 3, 4, 4]), torch.Size([1, 3, 10, 10]))
    """
    if images.ndim != 4:
        raise ValueError(f"Expected pictures (N, C, H, W) to turn, but got {tuple(images.shape)}.")
    if fit not in ("crop", "pad"):
        raise ValueError(f"Expected 'crop' or 'pad' for pictures that are not square, but got {fit!r}.")
    height, width = images.shape[2:]
    if height == width:
        return images
    if fit == "crop":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        return images[:, :, top : top + side, left : left + side]
    side = max(height, width)
    whole = images.new_zeros(*images.shape[:2], side, side)
    top, left = (side - height) // 2, (side - width) // 2
    whole[:, :, top : top + height, left : left + width] = images
    return whole


def rotate_quadrants(images: Tensor) -> tuple[Tensor, Tensor]:
    """All four turns of every picture.

    Args:
        images: ``(N, C, S, S)``.

    Returns:
        ``(4 N, C, S, S)``: all as they are, all turned by 90 degrees counter-clockwise, by 180, by 270; and which turn
        each is, ``(4 N,)``.

    Raises:
        ValueError: If they are not square.

    Example:
        >>> rotate_quadrants(torch.tensor([[[[1, 2], [3, 4]]]]))[0][1]
        tensor([[[2, 4],
                 [1, 3]]])
    """
    _require_square(images)
    labels = torch.arange(TURNS, device=images.device).repeat_interleave(len(images))
    return torch.cat([torch.rot90(images, turn, (2, 3)) for turn in range(TURNS)]), labels


def rotate_each(images: Tensor, turns: Tensor) -> Tensor:
    """Every picture turned by its own number of quarters, counter-clockwise.

    Args:
        images: ``(N, C, S, S)``.
        turns: ``(N,)`` int64, 0 to 3.

    Raises:
        ValueError: If the pictures are not square.

    Example:
        >>> rotate_each(torch.tensor([[[[1, 2], [3, 4]]]]), torch.tensor([2]))
        tensor([[[[4, 3],
                  [2, 1]]]])
    """
    _require_square(images)
    choices = torch.stack([torch.rot90(images, turn, (2, 3)) for turn in range(TURNS)])
    return choices[turns, torch.arange(len(images), device=images.device)]


def rotation_anomaly(
    images: Tensor, turn_logits: Callable[[Tensor], Tensor], class_logits: Tensor | None = None
) -> Tensor:
    r"""How unlike the training pictures each one is: higher for pictures from elsewhere.

    .. math:: \frac14 \sum_r L_{\text{rot}}(x_r, r) - \mathrm{KL}(u \,\|\, p(\cdot | x))

    the mean loss of the rotation head over the four turns, and for classifiers the divergence of the prediction from
    the uniform one (`Hendrycks et al. 2019 <https://arxiv.org/abs/1906.12340>`_).

    Args:
        images: ``(N, C, S, S)``.
        turn_logits: Pictures to logits ``(N, 4)`` of their turn.
        class_logits: ``(N, classes)`` of the pictures as they are; None leaves the second term out.

    Returns:
        ``(N,)``.

    Example:
        >>> knows = lambda images: 100 * torch.nn.functional.one_hot(torch.arange(4).repeat_interleave(2), 4).float()
        >>> guesses = lambda images: torch.zeros(8, 4)
        >>> images = torch.zeros(2, 1, 4, 4)
        >>> rotation_anomaly(images, knows), rotation_anomaly(images, guesses)
        (tensor([0., 0.]), tensor([1.3863, 1.3863]))
    """
    rotated, labels = rotate_quadrants(images)
    score = cross_entropy(turn_logits(rotated).float(), labels, reduction="none").reshape(TURNS, -1).mean(0)
    if class_logits is None:
        return score
    logs = class_logits.float().log_softmax(1)
    # KL(u || p) = -log(classes) - mean log p; the constant does not rank
    return score + logs.mean(1)


def _require_square(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[2] != images.shape[3]:
        raise ValueError(f"Expected square pictures (N, C, S, S), but got {tuple(images.shape)}. Use `square` first.")
