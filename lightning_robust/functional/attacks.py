"""Gradient attacks on inputs: a function of a loss and an input, in whatever units the input is in.

Gradients are taken with respect to the inputs alone. What the loss is and where batches come from is not known here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

Norm = Literal["linf", "l2"]
Bounds = tuple[float, float]
Loss = Callable[..., Any]
_FP16_SCALE = 1024.0


@dataclass
class AttackRecord:
    """What an attack did, counted while it runs; pass one in to have it filled."""

    passes: int = 0
    """Forward and input-gradient passes."""
    samples: int = 0
    """Samples times passes."""
    zero_gradients: int = 0
    """Of these, with a gradient that is zero everywhere."""
    nonfinite: int = 0
    """Of these, with a gradient that is not finite; such samples stay where they are in that step."""

    @property
    def zero_share(self) -> float:
        """Share of gradients that are zero everywhere: above a few percent, robustness is masked, not real."""
        return self.zero_gradients / max(self.samples, 1)


def fgsm(
    loss_fn: Loss,
    inputs: Tensor,
    eps: float | Tensor,
    *,
    norm: Norm = "linf",
    bounds: Bounds | None = None,
    random_start: bool = False,
    step_size: float | Tensor | None = None,
    mask: Tensor | None = None,
    generator: torch.Generator | None = None,
    record: AttackRecord | None = None,
) -> Tensor:
    r"""The fast gradient sign method: one step of size ``eps`` uphill, the same as ``pgd(steps=1)``.

    .. math:: x' = x + \epsilon \operatorname{sign} \nabla_x L(x)

    `Goodfellow et al. 2014 <https://arxiv.org/abs/1412.6572>`_; with ``random_start`` and a step of 1.25 eps it is the
    one of fast adversarial training (`Wong et al. 2020 <https://arxiv.org/abs/2001.03994>`_). Arguments as of
    :func:`pgd`.

    Example:
        >>> fgsm(lambda x: x.square().sum(), torch.tensor([[0.5, -0.25]]), 0.125)
        tensor([[ 0.6250, -0.3750]])
    """
    return pgd(
        loss_fn,
        inputs,
        eps,
        steps=1,
        step_size=eps if step_size is None else step_size,
        norm=norm,
        bounds=bounds,
        random_start=random_start,
        mask=mask,
        generator=generator,
        record=record,
    )


def nfgsm(
    loss_fn: Loss,
    inputs: Tensor,
    eps: float | Tensor,
    *,
    noise: float = 2.0,
    generator: torch.Generator | None = None,
    record: AttackRecord | None = None,
) -> Tensor:
    r"""Noise FGSM: one step of ``eps`` from a point drawn from the ball of ``noise * eps``, without clipping.

    `de Jorge et al. 2022 <https://arxiv.org/abs/2202.01181>`_. The result may leave the ball of ``eps`` (by as much as
    the noise) and the range of pixels: it is for training only. Arguments as of :func:`pgd`.
    """
    radius = _radius(eps, inputs, "eps")
    drawn = torch.empty_like(inputs).uniform_(-noise, noise, generator=generator)
    start = inputs.detach() + drawn * radius
    return fgsm(loss_fn, start, eps, record=record)


def pgd(
    loss_fn: Loss,
    inputs: Tensor,
    eps: float | Tensor,
    *,
    steps: int = 10,
    step_size: float | Tensor | None = None,
    norm: Norm = "linf",
    bounds: Bounds | None = None,
    random_start: bool = True,
    restarts: int = 1,
    start: Tensor | None = None,
    mask: Tensor | None = None,
    keep_best: bool = False,
    drop_solved: bool = False,
    generator: torch.Generator | None = None,
    record: AttackRecord | None = None,
) -> Tensor:
    r"""Projected gradient ascent on a loss (`Madry et al. 2017 <https://arxiv.org/abs/1706.06083>`_).

    .. math:: x_{t+1} = \Pi\left(x_t + \alpha \operatorname{sign} \nabla_x L(x_t)\right)

    with :math:`\Pi` the projection onto the ball of radius ``eps`` around ``inputs`` and onto ``bounds``; for ``"l2"``
    the gradient is divided by its norm instead of its sign taken. Both constraints hold exactly in the arithmetic of
    the inputs' type. Works inside ``no_grad`` (not inside inference mode). No weight gradient is computed and no
    parameter's ``.grad`` changes. A targeted attack descends on the loss of the target: negate it.

    Args:
        loss_fn: ``loss_fn(inputs)`` gives a scalar or one value for each sample; its gradient is taken of the sum.
        inputs: ``(batch, ...)``, floating point; never changed.
        eps: Radius, in the units of the inputs; one number, one for each sample, or (for ``"linf"``) of the inputs'
            shape.
        steps: Number of steps.
        step_size: :math:`\alpha`; None is 2.5 eps / steps, and eps for a single step.
        norm: ``"linf"`` or ``"l2"``.
        bounds: Smallest and largest value that an input may have.
        random_start: Begin at a point drawn uniformly from the ball (and within ``bounds``).
        start: Where the first attack begins, projected if need be; None begins at random or at the inputs.
        restarts: Attack so many times and keep, for each sample, the result with the highest loss (with a scalar loss,
            for the whole batch). Costs one forward pass more for each.
        mask: Broadcast to the inputs; where it is 0 (False) nothing changes.
        keep_best: Return each sample's iterate with the highest loss, not the last; one forward pass more.
        drop_solved: Leave samples alone once they are solved. ``loss_fn(inputs, index)`` is then called with the rows
            that are left and gives the losses of these samples and whether each of them is solved.
        generator: Source of the random start, on the inputs' device.
        record: Filled with what was done.

    Returns:
        The perturbed inputs, of the type of ``inputs``, without a graph.

    Raises:
        TypeError: For inputs that are not floating point.
        ValueError: For eps or step sizes that are negative or not finite, fewer than one step or restart, inputs
            outside ``bounds``, or a loss that does not depend on the inputs.

    Example:
        >>> x = torch.zeros(1, 2)
        >>> pgd(lambda x: x @ torch.tensor([3.0, 4.0]), x, 1.0, norm="l2", random_start=False)
        tensor([[0.6000, 0.8000]])
    """
    if not inputs.is_floating_point():
        raise TypeError(
            f"Expected floating-point inputs to perturb, but got {inputs.dtype}. Token indices are perturbed behind "
            "their embedding (functional/embeddings.py); pictures of bytes have to be scaled first."
        )
    if steps < 1 or restarts < 1:
        raise ValueError(f"Expected at least one step and one restart, but got {steps} and {restarts}.")
    ball = _Ball(inputs.detach(), _radius(eps, inputs, "eps"), norm, bounds, mask)
    size = _radius(step_size if step_size is not None else _default_step(eps, steps), inputs, "step_size")
    climb = _Climb(loss_fn, ball, size, steps, keep_best, drop_solved, record or AttackRecord())
    first = ball.start(random_start, generator) if start is None else ball.project(start.detach().to(inputs))
    best, best_loss = climb.run(first, judge=restarts > 1)
    for _ in range(restarts - 1):
        result, loss = climb.run(ball.start(random_start, generator), judge=True)
        better = loss > best_loss
        best_loss = torch.where(better, loss, best_loss)
        best = torch.where(_rows(better, best), result, best)
    return best


class _Ball:
    """Where perturbed inputs may lie, exactly."""

    def __init__(self, center: Tensor, radius: Tensor, norm: Norm, bounds: Bounds | None, mask: Tensor | None) -> None:
        if norm not in ("linf", "l2"):
            raise ValueError(f"Expected `norm` to be 'linf' or 'l2', but got {norm!r}.")
        self.center, self.radius, self.norm, self.bounds = center, radius, norm, bounds
        self.mask = None if mask is None else mask.to(center).expand_as(center)
        if bounds is not None:
            _require_inside(center, bounds)
        if norm == "linf":
            self.low, self.high = _reach(center, radius, -1), _reach(center, radius, 1)
            if bounds is not None:
                self.low, self.high = self.low.clamp(min=bounds[0]), self.high.clamp(max=bounds[1])

    def start(self, random: bool, generator: torch.Generator | None) -> Tensor:
        """The centre, or a point drawn uniformly."""
        if not random:
            return self.center.clone()
        if self.norm == "linf":
            drawn = torch.empty_like(self.center).uniform_(-1, 1, generator=generator)
        else:
            drawn = torch.empty_like(self.center).normal_(generator=generator)
            length = torch.rand(len(drawn), generator=generator, device=drawn.device)
            length = length ** (1 / max(drawn[0].numel(), 1))
            drawn = drawn / _rows(_norms(drawn), drawn) * _rows(length.to(drawn), drawn)
        return self.project(self.center + drawn * self.radius)

    def uphill(self, gradient: Tensor) -> Tensor:
        """The direction of steepest ascent, of length one in the norm."""
        if self.mask is not None:
            gradient = gradient * self.mask
        if self.norm == "linf":
            return gradient.sign()
        return gradient / _rows(_norms(gradient), gradient)

    def project(self, point: Tensor) -> Tensor:
        """The nearest point that is allowed."""
        if self.mask is not None:
            point = torch.where(self.mask != 0, point, self.center)
        if self.norm == "linf":
            return torch.minimum(torch.maximum(point, self.low), self.high)
        delta = (point - self.center).to(torch.promote_types(point.dtype, torch.float32))
        # a few units in the last place less than the radius, so that its norm is not more whoever computes it
        slack = 1 - 8 * torch.finfo(delta.dtype).eps
        delta = delta * _rows((self.radius.flatten() * slack / _norms(delta)).clamp(max=1), delta)
        point = (self.center + delta).to(self.center.dtype)
        # what rounding has moved away from the centre goes back by one value
        beyond = (point.to(delta) - self.center.to(delta)).abs() > delta.abs()
        point = torch.where(beyond, _toward(point, self.center), point)
        return point if self.bounds is None else point.clamp(*self.bounds)


class _Climb:
    """Steps uphill from a starting point."""

    def __init__(
        self,
        loss_fn: Loss,
        ball: _Ball,
        step_size: Tensor,
        steps: int,
        keep_best: bool,
        drop_solved: bool,
        record: AttackRecord,
    ) -> None:
        self.loss_fn, self.ball, self.step_size, self.steps = loss_fn, ball, step_size, steps
        self.keep_best, self.drop_solved, self.record = keep_best, drop_solved, record

    def run(self, point: Tensor, *, judge: bool) -> tuple[Tensor, Tensor]:
        """The result, and the loss of each sample there if that is wanted."""
        left = torch.arange(len(point), device=point.device)
        best, best_loss = point, torch.full((len(point),), -math.inf, device=point.device)
        for _ in range(self.steps):
            losses, gradient, solved = self._gradient(point, left)
            if self.keep_best:
                best, best_loss = _keep_better(best, best_loss, point, losses, left)
            if self.drop_solved:
                left, gradient = left[~solved], gradient[~solved]
                if len(left) == 0:
                    break
            # samples that are left out have a gradient of zero and stay where they are
            whole = gradient if len(left) == len(point) else torch.zeros_like(point).index_copy(0, left, gradient)
            point = self.ball.project(point + self.step_size * self.ball.uphill(whole))
        if not self.keep_best and not judge:
            return point, best_loss
        everything = torch.arange(len(point), device=point.device)
        with torch.no_grad():
            losses, _ = self._losses(point, everything)
        if self.keep_best:
            return _keep_better(best, best_loss, point, losses, everything)
        return point, losses

    def _losses(self, point: Tensor, left: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of each sample (the same for all where it is a scalar) and which are solved."""
        self.record.passes += 1
        if self.drop_solved:
            losses, solved = self.loss_fn(point, left)
        else:
            losses, solved = self.loss_fn(point), torch.zeros(len(point), dtype=torch.bool, device=point.device)
        return losses.expand(len(point)) if losses.ndim == 0 else losses.flatten(), solved

    def _gradient(self, point: Tensor, left: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        part = (point if len(left) == len(point) else point[left]).detach().requires_grad_()
        with torch.enable_grad():
            losses, solved = self._losses(part, left)
            if not losses.requires_grad:
                raise ValueError(_UNRELATED)
            scale = _FP16_SCALE if _computes_in_fp16(part) else 1.0
            try:
                (gradient,) = torch.autograd.grad(losses.sum() * scale, part)
            except RuntimeError as error:
                raise ValueError(f"{_REENTRANT if 'checkpoint' in str(error).lower() else _UNRELATED}") from error
        return losses.detach(), self._counted(gradient), solved

    def _counted(self, gradient: Tensor) -> Tensor:
        """The gradient with samples that are not finite zeroed."""
        largest = gradient.flatten(1).abs().amax(1)
        broken = ~torch.isfinite(largest)
        self.record.samples += len(gradient)
        self.record.zero_gradients += int((largest == 0).sum())
        self.record.nonfinite += int(broken.sum())
        return gradient.masked_fill(_rows(broken, gradient), 0) if broken.any() else gradient


_UNRELATED = (
    "Expected a loss that depends on the inputs, but it has no gradient with respect to them. Is the right part of the "
    "batch perturbed (`input_key`), and does the model not detach it?"
)
_REENTRANT = (
    "Expected a loss that can be differentiated with respect to the inputs alone, but reentrant activation "
    "checkpointing forbids that. Use torch.utils.checkpoint.checkpoint(..., use_reentrant=False)."
)


def _keep_better(best: Tensor, best_loss: Tensor, point: Tensor, losses: Tensor, left: Tensor) -> tuple[Tensor, Tensor]:
    """The better of two points for each sample; ``losses`` are those of the rows ``left``."""
    full = torch.full_like(best_loss, -math.inf).index_copy(0, left, losses.to(best_loss))
    better = full > best_loss
    return torch.where(_rows(better, best), point, best), torch.where(better, full, best_loss)


def _reach(center: Tensor, radius: Tensor, sign: int) -> Tensor:
    """The farthest value in a direction whose difference from the centre is not more than the radius when computed."""
    wide = center if center.dtype in (torch.float32, torch.float64) else center.float()
    far = (wide + sign * radius.to(wide)).to(center)
    for _ in range(2):
        beyond = (far.to(wide) - wide).abs() > radius.to(wide)
        far = torch.where(beyond, _toward(far, center), far)
    return far


def _toward(value: Tensor, toward: Tensor) -> Tensor:
    """The next value of its type on the way."""
    if value.dtype in (torch.float32, torch.float64):
        return torch.nextafter(value, toward)
    bits = value.view(torch.int16)
    away_from_zero = (toward > value) == (value >= 0)
    stepped = torch.where(away_from_zero, bits + 1, bits - 1)
    return torch.where(value == 0, toward.sign() * torch.finfo(value.dtype).tiny, stepped.view(value.dtype))


def _radius(value: float | Tensor, inputs: Tensor, name: str) -> Tensor:
    """One number for each sample, shaped to broadcast."""
    given = torch.as_tensor(value, dtype=torch.promote_types(inputs.dtype, torch.float32), device=inputs.device)
    if given.ndim > 1 and len(given.shape) == inputs.ndim:
        return _finite_positive(given, value, name).to(inputs)
    if given.ndim > 0 and given.shape != (len(inputs),):
        raise ValueError(
            f"Expected `{name}` as one number or one for each of {len(inputs)} samples, got {given.shape}."
        )
    return _finite_positive(given, value, name).reshape(-1, *[1] * (inputs.ndim - 1)).to(inputs)


def _finite_positive(given: Tensor, value: float | Tensor, name: str) -> Tensor:
    if not bool(torch.isfinite(given).all()) or bool((given < 0).any()):
        raise ValueError(f"Expected `{name}` to be finite and not negative, but got {value}.")
    return given


def _default_step(eps: float | Tensor, steps: int) -> float | Tensor:
    return eps if steps == 1 else eps * (2.5 / steps)


def _require_inside(inputs: Tensor, bounds: Bounds) -> None:
    if inputs.numel() == 0:
        return
    low, high = (bound.item() for bound in inputs.aminmax())
    slack = 1e-6 * (bounds[1] - bounds[0])
    if not (low >= bounds[0] - slack and high <= bounds[1] + slack):
        raise ValueError(
            f"Expected inputs in {bounds}, but got [{low:.4g}, {high:.4g}]. Are they normalised? Give the `mean` and "
            "`std` that they were normalised with, so that the attack works on pixels."
        )


def _rows(values: Tensor, like: Tensor) -> Tensor:
    """One value a sample, shaped to broadcast over samples."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def _norms(tensor: Tensor) -> Tensor:
    """The l2 norm of each sample; never zero, so that one can divide by it."""
    return tensor.flatten(1).norm(dim=1).clamp(min=torch.finfo(tensor.dtype).tiny)


def _computes_in_fp16(inputs: Tensor) -> bool:
    device = inputs.device.type
    autocast = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16
    return autocast or inputs.dtype == torch.float16
