"""The set that perturbed inputs may lie in: a norm ball around the clean inputs, cut to a range of values."""

from __future__ import annotations

import copy
import math
from typing import Literal

import torch
from torch import Tensor

Norm = Literal["linf", "l2"]
Bounds = tuple[float, float]


class NormBall:
    r"""The ball :math:`\{x' : \|x' - x\| \le \epsilon\}` around each sample of a batch, cut to ``bounds``.

    Both constraints hold exactly in the arithmetic of the type of ``center``: the difference of a projected point and
    its centre is never above the radius, not even by rounding.

    Args:
        center: The clean inputs ``(batch, ...)``, floating point.
        radius: Broadcasts to ``center``; see :func:`as_radius`.
        norm: ``"linf"`` or ``"l2"``.
        bounds: Smallest and largest value; None does not limit them.
        mask: Broadcasts to ``center``; where it is 0 (False) points stay at the centre.

    Raises:
        ValueError: For an unknown norm, radii of single elements with ``"l2"``, or a centre outside ``bounds``.

    Example:
        >>> ball = NormBall(torch.zeros(1, 2), torch.ones(1, 1), "l2")
        >>> ball.project(torch.tensor([[3.0, 4.0]]))
        tensor([[0.6000, 0.8000]])
    """

    def __init__(
        self,
        center: Tensor,
        radius: Tensor,
        norm: Norm = "linf",
        bounds: Bounds | None = None,
        mask: Tensor | None = None,
    ) -> None:
        if norm not in ("linf", "l2"):
            raise ValueError(f"Expected `norm` to be 'linf' or 'l2', but got {norm!r}.")
        if norm == "l2" and radius[0].numel() > 1:
            raise ValueError(
                "Expected one radius for each sample with norm='l2', the length of its perturbation, but got one for "
                f"each of {radius[0].numel()} elements. Use norm='linf'."
            )
        if bounds is not None:
            require_inside(center, bounds)
        self.center, self.radius, self.norm, self.bounds = center, radius, norm, bounds
        self.mask = None if mask is None else mask.to(center).expand_as(center)
        if norm == "linf":
            self.low, self.high = _extremes(center, radius)
            if bounds is not None:
                self.low, self.high = self.low.clamp(min=bounds[0]), self.high.clamp(max=bounds[1])

    def of(self, rows: Tensor) -> NormBall:
        """The same around some of the samples, ``rows`` their numbers or a mask."""
        part = copy.copy(self)
        part.center = self.center[rows]
        part.radius = self.radius if len(self.radius) == 1 else self.radius[rows]
        part.mask = None if self.mask is None else self.mask[rows]
        if self.norm == "linf":
            part.low, part.high = self.low[rows], self.high[rows]
        return part

    def start(self, random: bool, generator: torch.Generator | None) -> Tensor:
        """The centre, or a point drawn uniformly from the ball and projected onto ``bounds``."""
        if not random:
            return self.center.clone()
        if self.norm == "linf":
            offset = torch.empty_like(self.center).uniform_(-1, 1, generator=generator)
        else:
            offset = torch.empty_like(self.center).normal_(generator=generator)
            length = torch.rand(len(offset), generator=generator, device=offset.device)
            length = length ** (1 / max(offset[0].numel(), 1))
            offset = offset / per_sample(_l2_norms(offset), offset) * per_sample(length.to(offset), offset)
        return self.project(self.center + offset * self.radius)

    def ascent_direction(self, gradient: Tensor) -> Tensor:
        """The direction of steepest ascent, of length one in the norm."""
        if self.mask is not None:
            gradient = gradient * self.mask
        return gradient.sign() if self.norm == "linf" else gradient / per_sample(_l2_norms(gradient), gradient)

    def project(self, point: Tensor) -> Tensor:
        """The nearest point of the set."""
        if self.mask is not None:
            point = torch.where(self.mask != 0, point, self.center)
        if self.norm == "linf":
            return torch.minimum(torch.maximum(point, self.low), self.high)
        delta = (point - self.center).to(torch.promote_types(point.dtype, torch.float32))
        # a few units in the last place below the radius, so that no way of summing the norm finds it above
        slack = 1 - 8 * torch.finfo(delta.dtype).eps
        delta = delta * per_sample((self.radius.flatten() * slack / _l2_norms(delta)).clamp(max=1), delta)
        point = (self.center + delta).to(self.center.dtype)
        # rounding may have moved elements away from the centre: one representable value back
        beyond = (point.to(delta) - self.center.to(delta)).abs() > delta.abs()
        point = torch.where(beyond, _next_value(point, self.center), point)
        return point if self.bounds is None else point.clamp(*self.bounds)


def as_radius(value: float | Tensor, inputs: Tensor, name: str) -> Tensor:
    """A radius or step size that broadcasts to the inputs, in their type, where rounding never makes it larger.

    Args:
        value: One number, one for each sample, or a tensor with as many dimensions as the inputs.
        inputs: ``(batch, ...)``.
        name: Of the argument, for error messages.

    Raises:
        ValueError: If a number is negative or not finite, or there is not one for each sample.

    Example:
        >>> as_radius(0.5, torch.zeros(2, 3), "eps").shape, as_radius(torch.ones(2), torch.zeros(2, 3), "eps").shape
        (torch.Size([1, 1]), torch.Size([2, 1]))
    """
    # a number needs no device to be checked, nor to be exact
    asked = value if isinstance(value, Tensor) else torch.tensor(float(value), dtype=torch.float64)
    if not asked.is_floating_point():
        asked = asked.float()
    if asked.ndim <= 1 or asked.ndim != inputs.ndim:
        if asked.ndim > 0 and asked.shape != (len(inputs),):
            raise ValueError(
                f"Expected `{name}` as one number or one for each of {len(inputs)} samples, got {asked.shape}."
            )
        asked = asked.reshape(-1, *[1] * (inputs.ndim - 1))
    if not _all_finite_and_positive(value):
        raise ValueError(f"Expected `{name}` to be finite and not negative, but got {value}.")
    return _rounded_down(asked, inputs.dtype).to(inputs.device)


def _all_finite_and_positive(value: float | Tensor) -> bool:
    if isinstance(value, Tensor):
        return bool(((value >= 0) & (value < math.inf)).all())
    return 0 <= value < math.inf


def _rounded_down(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Not negative numbers in another type, none of them larger than it was."""
    rounded = values.to(dtype)
    larger = rounded.to(torch.promote_types(dtype, values.dtype)) > values
    return torch.where(larger, _next_value(rounded, torch.zeros_like(rounded)), rounded)


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """One value for each sample, shaped to broadcast to ``like``.

    Example:
        >>> per_sample(torch.tensor([1.0, 2.0]), torch.zeros(2, 3, 4, 4)).shape
        torch.Size([2, 1, 1, 1])
    """
    return values.reshape(-1, *[1] * (like.ndim - 1))


def _l2_norms(tensor: Tensor) -> Tensor:
    """The l2 norm of each sample; never zero, so that it may divide."""
    return tensor.flatten(1).norm(dim=1).clamp(min=torch.finfo(tensor.dtype).tiny)


def _extremes(center: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest and largest values whose computed difference from the centre is not above the radius."""
    wide = center if center.dtype in (torch.float32, torch.float64) else center.float()
    limit = radius.to(wide)
    ends = []
    for offset in (-limit, limit):
        end = (wide + offset).to(center)
        # rounding the sum and its difference from the centre costs at most one value each
        for _ in range(2):
            end = torch.where((end.to(wide) - wide).abs() > limit, _next_value(end, center), end)
        ends.append(end)
    return ends[0], ends[1]


def _next_value(value: Tensor, toward: Tensor) -> Tensor:
    """The next representable value in a direction; torch has none for half precision."""
    if value.dtype in (torch.float32, torch.float64):
        return torch.nextafter(value, toward)
    bits = value.view(torch.int16)
    grows = (toward > value) == (value >= 0)
    stepped = torch.where(grows, bits + 1, bits - 1).view(value.dtype)
    return torch.where(value == 0, toward.sign() * torch.finfo(value.dtype).tiny, stepped)


def require_inside(inputs: Tensor, bounds: Bounds) -> None:
    """Refuse inputs outside ``bounds``; one wait for their device.

    Example:
        >>> require_inside(torch.tensor([0.0, 1.0]), (0, 1))
    """
    if inputs.numel() == 0:
        return
    low, high = torch.stack(inputs.detach().aminmax()).tolist()
    slack = 1e-6 * (bounds[1] - bounds[0])
    if not (low >= bounds[0] - slack and high <= bounds[1] + slack):
        raise ValueError(
            f"Expected inputs in {bounds}, but got [{low:.4g}, {high:.4g}]. Are they normalised? Give the `mean` and "
            "`std` that they were normalised with, so that the attack works on pixels."
        )
