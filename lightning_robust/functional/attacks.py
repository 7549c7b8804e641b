"""Gradient attacks on inputs: each is a function of a loss and an input, in the units of the input.

Gradients are taken with respect to the inputs alone: no weight gradient is computed, no parameter changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from lightning_robust.functional.ascent import Ascent, AttackRecord, RowLosses, require_attackable
from lightning_robust.functional.norm_ball import Bounds, Norm, NormBall, as_radius, require_inside

Loss = Callable[..., Any]


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
    bounds: Bounds | None = None,
    generator: torch.Generator | None = None,
    record: AttackRecord | None = None,
) -> Tensor:
    r"""Noise FGSM: one step of ``eps`` from a point drawn from the ball of ``noise * eps``, without a projection.

    `de Jorge et al. 2022 <https://arxiv.org/abs/2202.01181>`_. As in the `authors' code
    <https://github.com/pdejorge/N-FGSM>`_ the noisy point and the result are cut to ``bounds``, not to the ball: the
    result is up to ``noise * eps`` plus the step away from the inputs, so it is for training only. The arguments are
    those of :func:`pgd`.

    Example:
        >>> x = nfgsm(lambda x: x.sum(), torch.zeros(1, 100), 0.1, bounds=(0, 1))
        >>> bool((x >= 0.0999).all() and (x <= 0.3001).all())
        True
    """
    if bounds is not None:
        require_inside(inputs, bounds)
    radius = as_radius(eps, inputs, "eps")
    noisy = inputs.detach() + torch.empty_like(inputs).uniform_(-noise, noise, generator=generator) * radius
    start = noisy if bounds is None else noisy.clamp(*bounds)
    return fgsm(loss_fn, start, eps if step_size is None else step_size, bounds=bounds, record=record)


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
    row_losses: RowLosses | None = None,
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
        restarts: Attack so many times and keep, for each sample, the result with the highest loss. Costs one forward
            pass more for each.
        mask: Broadcasts to the inputs; where it is 0 (False) nothing changes.
        keep_best: Return each sample's iterate with the highest loss, not the last; one forward pass more.
        drop_solved: Attack a sample no further once it is solved. ``loss_fn(inputs, rows)`` is then called with the
            samples still under attack and their row numbers; it gives their losses and which of them are solved. What
            one restart has solved no other undoes.
        row_losses: ``row_losses(inputs, rows)`` gives the loss of each of some samples, where ``loss_fn`` gives their
            sum or mean; restarts are compared by it. Where it is missing, gives None, or does not add up to the scalar
            (within a hundredth), the whole batch is compared, and the record counts that.
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
    require_attackable(inputs, steps, restarts)
    ball = NormBall(inputs.detach(), as_radius(eps, inputs, "eps"), norm, bounds, mask)
    if step_size is None:
        size = ball.radius * (1.0 if steps == 1 else 2.5 / steps)
    else:
        size = as_radius(step_size, inputs, "step_size")
    ascent = Ascent(loss_fn, ball, size, steps, keep_best, drop_solved, row_losses, record or AttackRecord())

    def starts() -> Iterator[Tensor]:
        yield ball.start(random_start, generator) if start is None else ball.project(start.detach().to(inputs))
        for _ in range(restarts - 1):
            yield ball.start(random_start, generator)

    return ascent.best_of(starts(), compare=restarts > 1)
