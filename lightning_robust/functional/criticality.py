"""Layer criticality: fresh draws of a layer, how far it moved in training, and the share of a metric that remains."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from lightning_robust.functional.averaging import State
from lightning_robust.number_types import real_parts
from lightning_robust.statistics import Estimate, student

Verdict = Literal["ambient", "critical", "undecided", "unchanged"]


def permuted(initial: Mapping[str, Tensor], generator: torch.Generator) -> State:
    """Shuffle the elements of each tensor: a fresh draw with exactly the marginal distribution of the initial values.

    Args:
        initial: Values at initialisation, of any shape.
        generator: On the CPU.

    Returns:
        Tensors of the same names, shapes and devices.

    Example:
        >>> drawn = permuted({"w": torch.arange(4.0)}, torch.Generator().manual_seed(0))["w"]
        >>> drawn.sort().values
        tensor([0., 1., 2., 3.])
    """

    def shuffle(tensor: Tensor) -> Tensor:
        order = torch.randperm(tensor.numel(), generator=generator).to(tensor.device)
        return tensor.flatten()[order].view_as(tensor)

    return {name: shuffle(tensor) for name, tensor in initial.items()}


def weight_distance(
    initial: Mapping[str, Tensor], state: Mapping[str, Tensor], names: Iterable[str]
) -> tuple[float, float]:
    r"""How far tensors moved: :math:`\|\theta - \theta_0\|_2 / \sqrt n` and :math:`\|\theta - \theta_0\|_\infty`.

    Args:
        initial: Values at initialisation.
        state: Values now, of the same shapes.
        names: The tensors to take together; :math:`n` counts their elements.

    Example:
        >>> weight_distance({"w": torch.zeros(2)}, {"w": torch.tensor([1.0, -7.0])}, ["w"])
        (5.0, 7.0)
    """
    changes = [real_parts(state[name]).double() - real_parts(initial[name]).double() for name in names]
    count = sum(change.numel() for change in changes)
    squares = sum(change.square().sum().item() for change in changes)
    largest = max((change.abs().max().item() for change in changes if change.numel()), default=0.0)
    return math.sqrt(squares / max(count, 1)), largest


def share_of_gain(cell: Sequence[float], trained: Sequence[float], initial: Sequence[float]) -> Estimate:
    r"""The share of what training gained in a metric that remains: 1 is all of it, 0 is the untrained network.

    .. math:: \frac{m - m_0}{m_T - m_0}

    It is the same for metrics that grow and for metrics that shrink. The interval is that of a ratio of sums over
    batches (the linearised, or delta, method, with Student's t): the batches are the sample, and all three networks see
    the same ones.

    Args:
        cell: What each batch adds to the metric of the network with other values in one layer.
        trained: The same for the network as trained.
        initial: The same for the network at initialisation.

    Returns:
        NaN where training gained nothing; no interval for a single batch.

    Example:
        >>> share_of_gain([0.5, 0.5, 0.75, 0.75], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.5, 0.5])
        Estimate(value=0.5, low=0.5, high=0.5)
    """
    gains = [end - start for end, start in zip(trained, initial, strict=True)]
    remains = [now - start for now, start in zip(cell, initial, strict=True)]
    gain, count = math.fsum(gains), len(gains)
    if gain == 0:
        return Estimate(math.nan)
    value = math.fsum(remains) / gain
    if count < 2:
        return Estimate(value)
    residuals = math.fsum((part - value * whole) ** 2 for part, whole in zip(remains, gains, strict=True))
    half = student(count - 1) * math.sqrt(count / (count - 1) * residuals) / abs(gain)
    return Estimate(value, value - half, value + half)


def criticality_verdict(share: Estimate, threshold: float) -> Verdict:
    """Judge a layer by its :func:`share_of_gain`: ambient at the threshold or above, critical below it.

    It is undecided where the interval holds the threshold. Where there is no interval the value decides.

    Example:
        >>> criticality_verdict(Estimate(0.99, 0.97, 1.01), 0.9), criticality_verdict(Estimate(0.3), 0.9)
        ('ambient', 'critical')
        >>> criticality_verdict(Estimate(0.9, 0.8, 1.0), 0.9)
        'undecided'
    """
    low, high = (share.value if math.isnan(end) else end for end in (share.low, share.high))
    if low >= threshold:
        return "ambient"
    return "critical" if high < threshold else "undecided"
