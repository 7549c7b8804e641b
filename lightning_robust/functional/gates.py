"""Gates on the channels of a network: which of them a prediction needs, and how far two predictions share them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Predict = Callable[[Sequence[Tensor]], Tensor]
"""Takes a gate ``(N, C)`` for each layer, which multiplies its channels; gives probabilities ``(N, classes)``."""
_THRESHOLDS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
_SHARES = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99)


@dataclass(frozen=True)
class CriticalChannels:
    """The channels by which alone each sample's prediction is kept.

    Args:
        classes: The predicted classes, ``(N,)``.
        confidence: Their probabilities, ``(N,)``.
        kept: The probabilities that remain with all other channels at zero, ``(N,)``.
        sets: For each layer, which channels, bool ``(N, C)``.

    Example:
        >>> sets = [torch.tensor([[True, False, False, False]]), torch.tensor([[True, False]])]
        >>> CriticalChannels(torch.tensor([3]), torch.tensor([0.9]), torch.tensor([0.8]), sets).share
        0.375
    """

    classes: Tensor
    confidence: Tensor
    kept: Tensor
    sets: list[Tensor]

    @property
    def share(self) -> float:
        """How much of a layer is critical, mean over layers and samples."""
        return torch.stack([each.float().mean() for each in self.sets]).mean().item()

    @classmethod
    def joined(cls, parts: Sequence[CriticalChannels]) -> CriticalChannels:
        """Those of several batches."""
        sets = [torch.cat(each) for each in zip(*(p.sets for p in parts), strict=True)]
        classes, confidence, kept = (
            torch.cat(each) for each in zip(*((p.classes, p.confidence, p.kept) for p in parts), strict=True)
        )
        return cls(classes, confidence, kept, sets)


def first_order(predict: Predict, ones: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    r"""How much each channel adds to the predicted class, to first order: one forward and one backward pass.

    .. math:: q_c = \sum_i a_{ci} \frac{\partial p}{\partial a_{ci}} = \frac{\partial p}{\partial z_c}\Big|_{z=1}

    Args:
        predict: The network as a function of its gates.
        ones: Open gates, ``(N, C)`` for each layer.

    Returns:
        Probabilities ``(N, classes)``, and :math:`q` for each layer.

    Example:
        >>> weights = torch.tensor([[2.0, 0.0], [0.0, 1.0]])  # channels to classes
        >>> probabilities, terms = first_order(lambda gates: (gates[0] @ weights) / 3, [torch.ones(1, 2)])
        >>> probabilities, terms[0]  # only the first channel adds to the first class
        (tensor([[0.6667, 0.3333]]), tensor([[0.6667, 0.0000]]))
    """
    gates = [each.clone().requires_grad_() for each in ones]
    with torch.enable_grad():
        probabilities = predict(gates)
        gradients = torch.autograd.grad(probabilities.amax(1).sum(), gates, allow_unused=True)
    return probabilities.detach(), [_or_zero(g, z) for g, z in zip(gradients, gates, strict=True)]


def critical_channels(
    predict: Predict, ones: Sequence[Tensor], *, weight: float = 0.01, steps: int = 20
) -> CriticalChannels:
    r"""A small set of channels that keeps each sample's prediction, over all layers together.

    After `Liu et al. 2018 <https://arxiv.org/abs/1810.03913>`_, who minimise
    :math:`(p(x) - p(x; S))^2 + \lambda |S|^2` over sets. Here it is relaxed to gates :math:`z \in [0, 1]` that multiply
    the channels, with probabilities relative to the present one and sizes to the width of the layer, so that
    :math:`\lambda` means the same for any network:

    .. math:: \min_z \left(1 - \frac{p(x; z)}{p(x)}\right)^2
              + \frac{\lambda}{L} \sum_l \Big(\frac{1}{C_l} \sum_c z_{lc}\Big)^2

    Projected gradient descent begins with gates open for the channels that hold 90 % of the positive
    :func:`first_order` terms, half open for the others; steps are scaled to the largest entry of each layer and shrink
    linearly. Several thresholds on :math:`z`, and several
    shares of the first-order terms, give sets; of those that keep the class, the one with the least value of the
    above is returned. Where none keeps it, all channels are.

    Args:
        predict: The network as a function of its gates; a deterministic one.
        ones: Open gates, ``(N, C)`` for each layer.
        weight: :math:`\lambda`.
        steps: Steps of the descent, one forward and one backward pass each; with 0 the first-order terms decide alone.

    Example:
        >>> weights = torch.tensor([[4.0, 0.0], [0.0, 1.0], [0.0, 1.0]])  # channels to classes
        >>> critical = critical_channels(lambda gates: (gates[0] @ weights).softmax(1), [torch.ones(1, 3)])
        >>> critical.classes, critical.sets[0]  # the others speak for the second class
        (tensor([0]), tensor([[ True, False, False]]))
    """
    probabilities, terms = first_order(predict, ones)
    confidence, classes = probabilities.max(1)
    candidates = [[covering(q, share) for q in terms] for share in _SHARES]
    if steps:
        start = [(1 + covering(q, 0.9).to(q)) / 2 for q in terms]
        gates = _descend(predict, start, classes, confidence, weight, steps)
        candidates += [[z >= threshold for z in gates] for threshold in _THRESHOLDS]
    kept, best = _choose_sets(predict, ones, candidates, classes, confidence, weight)
    return CriticalChannels(classes.cpu(), confidence.cpu(), kept.cpu(), [each.cpu() for each in best])


def covering(terms: Tensor, share: float) -> Tensor:
    """The fewest entries of each row that hold this share of the sum of its positive ones, bool.

    Example:
        >>> covering(torch.tensor([[5.0, -9.0, 1.0, 4.0]]), 0.8)
        tensor([[ True, False, False,  True]])
    """
    positive = terms.clamp(min=0)
    ordered, order = positive.sort(1, descending=True)
    before = ordered.cumsum(1) - ordered
    chosen = (before < share * positive.sum(1, keepdim=True)) & (ordered > 0)
    return torch.zeros_like(chosen).scatter(1, order, chosen)


def jaccard(one: Tensor, other: Tensor) -> Tensor:
    """What sets of channels have in common, of all that either has: bool ``(N, C)`` and ``(M, C)`` to ``(N, M)``.

    Two empty sets are equal.

    Example:
        >>> jaccard(torch.tensor([[True, True, False]]), torch.tensor([[True, False, True], [True, True, False]]))
        tensor([[0.3333, 1.0000]])
    """
    both = one.float() @ other.float().T
    either = one.sum(1)[:, None] + other.sum(1)[None] - both
    return torch.where(either > 0, both / either.clamp(min=1), torch.ones_like(both))


@dataclass(frozen=True)
class Overlap:
    """Mean Jaccard indices of critical sets in one layer; NaN where no samples are of that kind.

    Args:
        pair: A perturbed sample and itself clean.
        within: Clean samples of one predicted class.
        own: A perturbed sample and other clean samples of the class that it was taken for clean.
        other: A perturbed sample and clean samples of the class that it is taken for now.

    Example:
        >>> Overlap(pair=0.5, within=0.8, own=0.4, other=0.6).other > 0.4  # closer to the wrong class than to its own
        True
    """

    pair: float
    within: float
    own: float
    other: float


def overlaps(clean: CriticalChannels, perturbed: CriticalChannels) -> list[Overlap]:
    """For each layer, over the samples whose prediction changed; over all of them if none did.

    Example:
        >>> sets = CriticalChannels(torch.tensor([0]), torch.ones(1), torch.ones(1), [torch.tensor([[True, False]])])
        >>> overlaps(sets, sets)
        [Overlap(pair=1.0, within=nan, own=nan, other=nan)]
    """
    changed = clean.classes != perturbed.classes
    rows = changed if changed.any() else torch.ones_like(changed)
    others = ~torch.eye(len(changed), dtype=torch.bool)[rows]
    own = (clean.classes[rows][:, None] == clean.classes[None]) & others
    wrong = (perturbed.classes[rows][:, None] == clean.classes[None]) & others & changed[rows][:, None]
    result = []
    for before, after in zip(clean.sets, perturbed.sets, strict=True):
        across, among = jaccard(after[rows], before), jaccard(before[rows], before)
        pairs = across[~others], among[own], across[own], across[wrong]
        result.append(Overlap(*(values.mean().item() if values.numel() else math.nan for values in pairs)))
    return result


def _choose_sets(
    predict: Predict,
    ones: Sequence[Tensor],
    candidates: Sequence[list[Tensor]],
    classes: Tensor,
    confidence: Tensor,
    weight: float,
) -> tuple[Tensor, list[Tensor]]:
    """For each sample the best candidate that keeps its class, else all channels; and the probability that remains."""
    best = [torch.ones_like(each, dtype=torch.bool) for each in ones]
    value, kept = torch.full_like(confidence, math.inf), confidence.clone()
    for sets in candidates:
        masks = [each.to(one) for each, one in zip(sets, ones, strict=True)]
        with torch.no_grad():
            probabilities = predict(masks)
        remaining = probabilities.gather(1, classes[:, None])[:, 0]
        objective = _objective(remaining / confidence, masks, weight)
        better = (probabilities.argmax(1) == classes) & (objective < value)
        value, kept = torch.where(better, objective, value), torch.where(better, remaining, kept)
        best = [torch.where(better[:, None], new, old) for new, old in zip(sets, best, strict=True)]
    return kept, best


def _descend(
    predict: Predict, start: list[Tensor], classes: Tensor, confidence: Tensor, weight: float, steps: int
) -> list[Tensor]:
    """Projected gradient descent on the gates."""
    gates = start
    for step in range(steps):
        leaves = [z.detach().requires_grad_() for z in gates]
        with torch.enable_grad():
            kept = predict(leaves).gather(1, classes[:, None])[:, 0] / confidence
            gradients = torch.autograd.grad(_objective(kept, leaves, weight).sum(), leaves)
        length = 0.3 * (1 - step / steps)
        gates = [
            (z.detach() - length * g / g.abs().amax(1, keepdim=True).clamp(min=1e-30)).clamp(0, 1)
            for z, g in zip(leaves, gradients, strict=True)
        ]
    return gates


def _objective(kept: Tensor, gates: Sequence[Tensor], weight: float) -> Tensor:
    """What is minimised, ``(N,)``."""
    return (1 - kept).square() + weight * torch.stack([z.mean(1).square() for z in gates]).mean(0)


def _or_zero(gradient: Tensor | None, gate: Tensor) -> Tensor:
    return torch.zeros_like(gate) if gradient is None else gradient
