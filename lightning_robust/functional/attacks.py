"""Gradient attacks on inputs: each is a function of a loss and an input, in the units of the input.

Gradients are taken with respect to the inputs alone: no weight gradient is computed, no parameter changes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_robust.functional.norm_ball import Bounds, Norm, NormBall, as_radius, per_sample

Loss = Callable[..., Any]
_FP16_SCALE = 1024.0


@dataclass
class AttackRecord:
    """Counts of one or several attacks, added up while they run.

    Example:
        >>> record, x = AttackRecord(), torch.tensor([[1.0], [-1.0]])
        >>> _ = pgd(lambda x: x.relu().sum(), x, 0.1, steps=3, random_start=False, record=record)
        >>> record.passes, record.samples, record.zero_share  # the second sample never has a gradient
        (3, 6, 0.5)
    """

    passes: int = 0
    """Forward and input-gradient passes."""
    samples: int = 0
    """Samples, over all passes."""
    zero_gradients: int = 0
    """Samples whose gradient is zero everywhere."""
    nonfinite: int = 0
    """Samples whose gradient is not finite; they stay where they are in that step."""

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
    attack of fast adversarial training (`Wong et al. 2020 <https://arxiv.org/abs/2001.03994>`_). The arguments are
    those of :func:`pgd`.

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
    step_size: float | Tensor | None = None,
    generator: torch.Generator | None = None,
    record: AttackRecord | None = None,
) -> Tensor:
    r"""Noise FGSM: one step of ``eps`` from a point drawn from the ball of ``noise * eps``, without clipping.

    `de Jorge et al. 2022 <https://arxiv.org/abs/2202.01181>`_. The result may leave the ball of ``eps`` (by as much as
    the noise) and the range of pixels: it is for training only. The arguments are those of :func:`pgd`.

    Example:
        >>> x = nfgsm(lambda x: x.sum(), torch.zeros(1, 100), 0.1)
        >>> bool((x >= -0.1001).all() and (x <= 0.3001).all())
        True
    """
    radius = as_radius(eps, inputs, "eps")
    offset = torch.empty_like(inputs).uniform_(-noise, noise, generator=generator)
    return fgsm(loss_fn, inputs.detach() + offset * radius, eps, step_size=step_size, record=record)


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
        start: Where the first attack begins, after projection; None begins at random or at the inputs.
        restarts: Attack so many times and keep, for each sample, the result with the highest loss (with a scalar loss,
            for the whole batch). Costs one forward pass more for each.
        mask: Broadcasts to the inputs; where it is 0 (False) nothing changes.
        keep_best: Return each sample's iterate with the highest loss, not the last; one forward pass more.
        drop_solved: Attack a sample no further once it is solved. ``loss_fn(inputs, rows)`` is then called with the
            samples still under attack and their row numbers; it gives their losses and which of them are solved.
        generator: Source of the random start, on the inputs' device.
        record: Counts passes and useless gradients.

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
    ball = NormBall(inputs.detach(), as_radius(eps, inputs, "eps"), norm, bounds, mask)
    if step_size is None:
        step_size = eps if steps == 1 else eps * (2.5 / steps)
    size = as_radius(step_size, inputs, "step_size")
    ascent = _Ascent(loss_fn, ball, size, steps, keep_best, drop_solved, record or AttackRecord())
    first = ball.start(random_start, generator) if start is None else ball.project(start.detach().to(inputs))
    best, best_loss = ascent.run(first, evaluate=restarts > 1)
    for _ in range(restarts - 1):
        result, loss = ascent.run(ball.start(random_start, generator), evaluate=True)
        better = loss > best_loss
        best_loss = torch.where(better, loss, best_loss)
        best = torch.where(per_sample(better, best), result, best)
    return best


@dataclass
class _Ascent:
    """Steps uphill from a starting point."""

    loss_fn: Loss
    ball: NormBall
    step_size: Tensor
    steps: int
    keep_best: bool
    drop_solved: bool
    record: AttackRecord

    def run(self, point: Tensor, *, evaluate: bool) -> tuple[Tensor, Tensor]:
        """The result, and the loss of each sample there if ``evaluate`` or ``keep_best`` asks for it."""
        rows = torch.arange(len(point), device=point.device)
        best, best_loss = point, torch.full((len(point),), -math.inf, device=point.device)
        for _ in range(self.steps):
            losses, gradient, solved = self._gradient(point, rows)
            if self.keep_best:
                best, best_loss = _keep_better(best, best_loss, point, losses, rows)
            if self.drop_solved:
                rows, gradient = rows[~solved], gradient[~solved]
                if len(rows) == 0:
                    break
            # a gradient of zero leaves solved samples where they are
            full = gradient if len(rows) == len(point) else torch.zeros_like(point).index_copy(0, rows, gradient)
            point = self.ball.project(point + self.step_size * self.ball.ascent_direction(full))
        if not self.keep_best and not evaluate:
            return point, best_loss
        every_row = torch.arange(len(point), device=point.device)
        with torch.no_grad():
            losses, _ = self._losses(point, every_row)
        if self.keep_best:
            return _keep_better(best, best_loss, point, losses, every_row)
        return point, losses

    def _losses(self, samples: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of each sample (the same for all where it is a scalar) and which are solved."""
        self.record.passes += 1
        if self.drop_solved:
            losses, solved = self.loss_fn(samples, rows)
        else:
            losses, solved = self.loss_fn(samples), torch.zeros(len(samples), dtype=torch.bool, device=samples.device)
        return losses.expand(len(samples)) if losses.ndim == 0 else losses.flatten(), solved

    def _gradient(self, point: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Losses, gradients and which samples are solved, for some rows; gradients that are not finite are zero."""
        samples = (point if len(rows) == len(point) else point[rows]).detach().requires_grad_()
        with torch.enable_grad():
            losses, solved = self._losses(samples, rows)
            if not losses.requires_grad:
                raise ValueError(_UNRELATED)
            scale = _FP16_SCALE if _computes_in_fp16(samples) else 1.0
            try:
                (gradient,) = torch.autograd.grad(losses.sum() * scale, samples)
            except RuntimeError as error:
                raise ValueError(_REENTRANT if "checkpoint" in str(error).lower() else _UNRELATED) from error
        largest = gradient.flatten(1).abs().amax(1)
        broken = ~torch.isfinite(largest)
        self.record.samples += len(gradient)
        self.record.zero_gradients += int((largest == 0).sum())
        self.record.nonfinite += int(broken.sum())
        if broken.any():
            gradient = gradient.masked_fill(per_sample(broken, gradient), 0)
        return losses.detach(), gradient, solved


_UNRELATED = (
    "Expected a loss that depends on the inputs, but it has no gradient with respect to them. Is the right part of the "
    "batch perturbed (`input_key`), and does the model not detach it?"
)
_REENTRANT = (
    "Expected a loss that can be differentiated with respect to the inputs alone, but reentrant activation "
    "checkpointing forbids that. Use torch.utils.checkpoint.checkpoint(..., use_reentrant=False)."
)


def _keep_better(best: Tensor, best_loss: Tensor, point: Tensor, losses: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The better of two points for each sample; ``losses`` are those of some rows of ``point``."""
    full = torch.full_like(best_loss, -math.inf).index_copy(0, rows, losses.to(best_loss))
    better = full > best_loss
    return torch.where(per_sample(better, best), point, best), torch.where(better, full, best_loss)


def _computes_in_fp16(inputs: Tensor) -> bool:
    device = inputs.device.type
    autocast = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16
    return autocast or inputs.dtype == torch.float16
