"""Losses that keep a prediction where a small change of its input would move it.

`Zheng et al. 2016, Improving the Robustness of Deep Neural Networks via Stability Training
<https://arxiv.org/abs/1604.04326>`_; `Hendrycks et al. 2020, AugMix <https://arxiv.org/abs/1912.02781>`_.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

Logits = Float[Tensor, "batch *places"]
Values = Float[Tensor, "batch *places"]


def symmetric_divergence(clean: Logits, perturbed: Logits, dim: int = 1) -> Float[Tensor, " batch"]:
    r"""How far two predictions of each sample are apart, the mean of both Kullback-Leibler divergences.

    .. math:: D = \tfrac12 \left[\mathrm{KL}(p \,\|\, q) + \mathrm{KL}(q \,\|\, p)\right]
       = \tfrac12 \sum_c (p_c - q_c)(\log p_c - \log q_c)

    Stability training takes the first of the two, AugMix the divergence from their mean; for small changes all of them
    are the same, up to a factor of 4 at most. The gradient flows into both predictions.

    Args:
        clean: Logits of :math:`p` with the classes along ``dim``.
        perturbed: Logits of :math:`q`, of the same shape.
        dim: Dimension of the classes.

    Returns:
        The sum over classes, its mean over all other places.

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> one, other = torch.tensor([[0.0, 0.0]]), torch.tensor([[torch.log(torch.tensor(3.0)), 0.0]])
        >>> symmetric_divergence(one, other)  # (1/2 - 3/4) log(1/3) for one class, 0 for the other; halved
        tensor([0.1373])
    """
    _require_same(clean, perturbed)
    one, other = clean.float().log_softmax(dim), perturbed.float().log_softmax(dim)
    each = ((one.exp() - other.exp()) * (one - other)).sum(dim) / 2
    return each.reshape(len(each), -1).mean(1)


def scaled_distance(expected: Values, found: Values, spread: Float[Tensor, ""]) -> Float[Tensor, " batch"]:
    r"""The squared distance of values in units of their spread, of the points that both sides have.

    .. math:: D = \mathrm{mean}_i \left(\frac{x_i - x'_i}{\sigma}\right)^2

    Args:
        expected: What the perturbed values should be; NaN where there is nothing.
        found: What they are; NaN where there is nothing.
        spread: :math:`\sigma`, as :func:`spread_of` gives it; where it is 0 there is no unit, and so is the distance.

    Returns:
        The mean over the points of each sample; 0 for a sample without any.

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> expected, found = torch.tensor([[1.0, 2.0, torch.nan]]), torch.tensor([[3.0, torch.nan, 1.0]])
        >>> scaled_distance(expected, found, torch.tensor(4.0))
        tensor([0.2500])
    """
    gaps, points = _gaps(expected, found)
    return (gaps / torch.where(spread > 0, spread, torch.inf).to(gaps)).square().sum(1) / points


def absolute_distance(expected: Values, found: Values, unit: float) -> Float[Tensor, " batch"]:
    r"""The absolute distance of values in a unit of the task's, of the points that both sides have.

    .. math:: D = \mathrm{mean}_i \, |x_i - x'_i| / u

    A tenth of the unit counts as much in ten points as the whole unit in one, and pulls as hard: so small movements
    are trained away too, which a square forgets.

    Args:
        expected: What the perturbed values should be; NaN where there is nothing.
        found: What they are; NaN where there is nothing.
        unit: :math:`u`.

    Returns:
        The mean over the points of each sample; 0 for a sample without any.

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> absolute_distance(torch.tensor([[1.0, torch.nan]]), torch.tensor([[4.0, 1.0]]), 2.0)
        tensor([1.5000])
    """
    gaps, points = _gaps(expected, found)
    return (gaps / unit).abs().sum(1) / points


def spread_of(values: Values) -> Float[Tensor, ""]:
    """The standard deviation over all points that are there; 0 for fewer than two. No gradient flows into it.

    Example:
        >>> spread_of(torch.tensor([1.0, 3.0, torch.nan]))
        tensor(1.)
    """
    flat = values.detach().float().flatten()
    there = flat[flat.isfinite()]
    return there.std(correction=0) if len(there) > 1 else flat.new_zeros(())


def _gaps(expected: Tensor, found: Tensor) -> tuple[Tensor, Tensor]:
    """Differences ``(N, ...)``, 0 where a side has nothing, and how many there are of each sample, at least 1."""
    _require_same(expected, found)
    one, other = expected.float().reshape(len(expected), -1), found.float().reshape(len(found), -1)
    both = one.isfinite() & other.isfinite()
    # a difference that is not taken has no gradient either: NaN times 0 is NaN
    return torch.where(both, other, 0.0) - torch.where(both, one, 0.0), both.sum(1).clamp(min=1)


def _require_same(one: Tensor, other: Tensor) -> None:
    if one.shape != other.shape:
        raise ValueError(
            f"Expected clean and perturbed outputs of one shape, but got {tuple(one.shape)} and {tuple(other.shape)}."
        )
