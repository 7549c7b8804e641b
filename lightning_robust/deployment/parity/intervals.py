"""How well a distance is known: 95 % intervals of its metrics, by bootstrap over samples."""

from __future__ import annotations

import functools
import math

import numpy as np
from torch import Tensor

from lightning_robust.deployment.parity.distance import deviation, is_constant, named
from lightning_robust.deployment.parity.readout import PLAIN_UNIT, Points, Readout
from lightning_robust.statistics import Bootstrap, Interval

_TENTH = 0.1
_bootstrap = functools.lru_cache(maxsize=16)(Bootstrap)


def intervals(reference: Readout, deployed: Readout, precision: str = "fp32") -> dict[str, Interval]:
    """The intervals of ``rel_l2``, of the decoded values' p99, mean, bias and flips, and of ratios of boxes or masks.

    A metric that is not finite, and one of fewer than two samples, has none.

    Args:
        reference: On one side.
        deployed: On the other.
        precision: As for :func:`~.distance.compare_outputs`.

    Example:
        >>> import torch
        >>> exact = Readout([torch.arange(64.0)], {})
        >>> deployed = Readout([torch.arange(64.0) * 1.01], {})
        >>> low, high = intervals(exact, deployed)["rel_l2"]
        >>> low < exact.distance(deployed)["rel_l2"] < high
        True
    """
    found = {PLAIN_UNIT: _worst_relative(reference, deployed, precision)} if reference.has_shape_of(deployed) else {}
    aligned = reference.aligned(deployed)
    for points in reference.points(deployed, aligned):
        found |= _of_points(points)
    for name, alignment in aligned.items():
        found |= named(name, {ratio: _of_ratio(*sums) for ratio, sums in alignment.ratios.items()})
    return {metric: interval for metric, interval in found.items() if all(map(math.isfinite, interval))}


def is_settled(value: float, interval: Interval | None, tolerance: float | None) -> bool:
    """Whether an interval is narrower than a tenth of the value, or of the tolerance.

    Example:
        >>> is_settled(1.0, Interval(0.98, 1.05), None), is_settled(1.0, Interval(0.5, 1.5), 20.0)
        (True, True)
    """
    if interval is None:
        return False
    return interval.high - interval.low <= _TENTH * max(abs(value), tolerance or 0.0)


def _worst_relative(reference: Readout, deployed: Readout, precision: str) -> Interval:
    """Of the worst output; none where one has none, which may be the worst."""
    pairs = zip(reference.outputs, deployed.outputs, strict=True)
    each = [_relative_interval(r, d, precision) for r, d in pairs if r.is_floating_point()]
    none = Interval(math.nan, math.nan)
    return none if any(math.isnan(one.high) for one in each) else max(each, key=lambda one: one.high, default=none)


def _relative_interval(reference: Tensor, deployed: Tensor, precision: str) -> Interval:
    samples = len(reference) if reference.ndim else 1
    exact = reference.detach().cpu().double().reshape(samples, -1)
    error = deployed.detach().cpu().double().reshape(samples, -1) - exact
    if samples < 2 or not bool(error.isfinite().all()):
        return Interval(math.nan, math.nan)
    # about the mean, so that the spread is no difference of two large numbers
    centred = exact if is_constant(exact, precision) else exact - exact.mean()
    squares, sizes = error.square().sum(1).numpy(), centred.square().sum(1).numpy()
    sums = np.zeros(samples) if is_constant(exact, precision) else centred.sum(1).numpy()
    return _bootstrap(samples).root_ratio(squares, sums, sizes, exact.shape[1])


def _of_points(points: Points) -> dict[str, Interval]:
    reference, deployed, owners = points.reference, points.deployed, points.owners
    samples = points.samples
    if samples < 2 or not len(reference):
        return {}
    bootstrap = _bootstrap(samples)
    if not reference.is_floating_point():
        flips, counts = (_sums(each, owners, samples) for each in (reference != deployed, reference == reference))
        return named(points.name, {"flips": bootstrap.ratio(flips, counts)})
    both = ~reference.isnan() & ~deployed.isnan()
    error, owners = deviation(reference[both], deployed[both]), owners[both]
    if not len(error) or not bool(error.isfinite().all()):
        return {}
    counts = np.bincount(owners.numpy(), minlength=samples).astype(np.float64)
    return named(
        points.name,
        {
            "p99": bootstrap.percentile_99(error.abs().numpy(), owners.numpy()),
            "mean": bootstrap.ratio(_sums(error.abs(), owners, samples), counts),
            "bias": bootstrap.ratio(_sums(error, owners, samples), counts),
        },
    )


def _of_ratio(part: Tensor, whole: Tensor) -> Interval:
    if len(part) < 2 or not bool(whole.any()):
        return Interval(math.nan, math.nan)
    return _bootstrap(len(part)).ratio(part.cpu().double().numpy(), whole.cpu().double().numpy())


def _sums(values: Tensor, owners: Tensor, samples: int) -> np.ndarray:
    return np.bincount(owners.numpy(), weights=values.double().numpy(), minlength=samples)
