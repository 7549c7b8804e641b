"""Mixtures of the samples of a batch. What their loss is does not belong here."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def regmixup_batch(
    inputs: Tensor,
    targets: Tensor,
    alpha: float = 20.0,
    generator: torch.Generator | None = None,
    *,
    derange: bool = False,
) -> tuple[Tensor, Tensor, Tensor, float]:
    r"""Mix every sample with another one of the batch, all by the same share.

    .. math:: \tilde x = \lambda x + (1 - \lambda) x_\pi, \qquad \lambda \sim \mathrm{Beta}(\alpha, \alpha)

    The loss of a mixture is :math:`\lambda L(\tilde x, y) + (1 - \lambda) L(\tilde x, y_\pi)`, for any criterion and
    any targets. With :math:`\alpha = 20`, as `RegMixup (Pinto et al. 2022) <https://arxiv.org/abs/2206.14502>`_ has it,
    the shares lie around one half.

    Args:
        inputs: ``(batch, ...)``, floating point; never changed.
        targets: ``(batch, ...)``, of any type.
        alpha: Of the Beta distribution.
        generator: Source of the share and of the permutation, on any device; torch's global one on the CPU if None.
        derange: No sample is mixed with itself; else the permutation is uniform, as in the authors' code.

    Returns:
        ``(mixed, targets, permuted targets, share)``.

    Raises:
        ValueError: If ``alpha`` is not positive and finite, or inputs and targets differ in their number.
        TypeError: For inputs that are not floating point.

    Example:
        >>> x = torch.tensor([[0.0], [1.0]])
        >>> mixed, first, second, share = regmixup_batch(x, torch.tensor([0, 1]), derange=True)
        >>> torch.allclose(mixed, torch.tensor([[1 - share], [share]])), second
        (True, tensor([1, 0]))
    """
    if not (math.isfinite(alpha) and alpha > 0):
        raise ValueError(f"Expected `alpha` of the Beta distribution to be positive and finite, but got {alpha}.")
    if not inputs.is_floating_point():
        raise TypeError(
            f"Expected floating-point inputs to mix, but got {inputs.dtype}. Scale pictures of bytes first."
        )
    if len(inputs) != len(targets):
        raise ValueError(f"Expected as many targets as inputs, but got {len(targets)} and {len(inputs)}.")
    device = torch.device("cpu") if generator is None else generator.device
    order = torch.randperm(len(inputs), generator=generator, device=device)
    other = torch.empty_like(order).index_copy(0, order, order.roll(1)) if derange else order
    share = _beta(alpha, generator)
    other = other.to(inputs.device)
    return torch.lerp(inputs[other], inputs, share), targets, targets[other.to(targets.device)], share


def _beta(alpha: float, generator: torch.Generator | None) -> float:
    """A draw from Beta(alpha, alpha), whose distribution in torch takes no generator."""
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device if generator else None))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        shape = torch.tensor(alpha, dtype=torch.float64)
        return float(torch.distributions.Beta(shape, shape).sample())
