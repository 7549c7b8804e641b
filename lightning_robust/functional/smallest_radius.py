"""The smallest perturbation that does something to a sample, by halving the radius of an attack."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Solves = Callable[[Tensor, Tensor], Tensor]
"""``solves(rows, radii)``: whether an attack of these radii solves these samples, a bool for each."""


def smallest_radius(solves: Solves, largest: Tensor, *, halvings: int = 6) -> Tensor:
    r"""The smallest radius that an attack needs, for each sample on its own.

    The largest radius is tried first, then the interval between one that does not suffice and one that does is halved.
    The result is an upper bound on the true smallest radius, as that of every attack, and at most ``largest / 2 **
    halvings`` above what the attack itself can do, if it never loses by a larger radius. Cost: an attack on all
    samples, and ``halvings`` on those that the first one solves.

    Args:
        solves: ``solves(rows, radii)`` attacks some of the samples and says which are solved.
        largest: Radius beyond which nothing is asked, for each sample ``(batch,)``.
        halvings: How often the interval is halved.

    Returns:
        ``(batch,)``; infinite where the largest radius does not suffice.

    Raises:
        ValueError: For a radius that is not positive, or fewer than no halvings.

    Example:
        >>> needed = torch.tensor([0.3, 0.05, 2.0])
        >>> smallest_radius(lambda rows, radii: radii >= needed[rows], torch.ones(3), halvings=3)
        tensor([0.3750, 0.1250,    inf])
    """
    if halvings < 0 or not bool((largest > 0).all()):
        raise ValueError(f"Expected radii above 0 and `halvings` of at least 0, but got {largest} and {halvings}.")
    low, high = torch.zeros_like(largest), largest.clone()
    rows = torch.arange(len(largest), device=largest.device)
    possible = solves(rows, largest)
    rows = rows[possible]
    for _ in range(halvings if len(rows) else 0):
        middle = (low[rows] + high[rows]) / 2
        solved = solves(rows, middle)
        low[rows] = torch.where(solved, low[rows], middle)
        high[rows] = torch.where(solved, middle, high[rows])
    return high.masked_fill(~possible, math.inf)
