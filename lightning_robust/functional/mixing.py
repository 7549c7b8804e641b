"""Mixtures of the samples of a batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def regmixup_batch(
    inputs: Tensor,
    targets: Tensor,
    alpha: float = 20.0,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor, Tensor, float]:
    r"""Mix every sample with another one of the batch, all by the same share.

    .. math:: \tilde x = \lambda x + (1 - \lambda) x_\pi, \qquad \lambda \sim \mathrm{Beta}(\alpha, \alpha)

    The loss of a mixture is :math:`\lambda L(\tilde x, y) + (1 - \lambda) L(\tilde x, y_\pi)`, for any criterion and
    any targets. With :math:`\alpha = 20`, as in `RegMixup (Pinto et al. 2022) <https://arxiv.org/abs/2206.14502>`_,
    the shares lie around one half. The permutation is uniform: a sample may be mixed with itself.

    Args:
        inputs: ``(batch, ...)``, floating point; never changed.
        targets: ``(batch, ...)``, of any type.
        alpha: Parameter of the Beta distribution.
        generator: Source of the share and of the permutation, on any device; torch's global one on the CPU if None.

    Returns:
        ``(mixed, targets, permuted targets, share)``.

    Raises:
        ValueError: If ``alpha`` is not positive and finite, or inputs and targets differ in their number.
        TypeError: For inputs that are not floating point.

    Example:
        >>> x = torch.tensor([[0.0], [1.0]])
        >>> mixed, first, second, share = regmixup_batch(x, torch.tensor([0, 1]))
        >>> torch.allclose(mixed, share * x + (1 - share) * x[second])
        True
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
    share = _beta(alpha, generator)
    mixed = torch.lerp(inputs[order.to(inputs.device)], inputs, share)
    return mixed, targets, targets[order.to(targets.device)], share


def _beta(alpha: float, generator: torch.Generator | None) -> float:
    """A draw from Beta(alpha, alpha), whose distribution in torch takes no generator."""
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device if generator else None))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        shape = torch.tensor(alpha, dtype=torch.float64)
        return float(torch.distributions.Beta(shape, shape).sample())
