"""APGD: projected ascent that finds its own step size, sample by sample."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from lightning_robust.functional.ascent import AttackedLoss, AttackRecord, require_attackable
from lightning_robust.functional.norm_ball import Bounds, Norm, NormBall, as_radius, per_sample

_MOMENTUM, _RISING = 0.75, 0.75


def apgd(
    loss_fn: Callable[..., Any],
    inputs: Tensor,
    eps: float | Tensor,
    *,
    steps: int = 50,
    norm: Norm = "linf",
    bounds: Bounds | None = None,
    random_start: bool = True,
    restarts: int = 1,
    start: Tensor | None = None,
    mask: Tensor | None = None,
    drop_solved: bool = False,
    generator: torch.Generator | None = None,
    record: AttackRecord | None = None,
) -> Tensor:
    r"""Auto-PGD (`Croce and Hein 2020 <https://arxiv.org/abs/2003.01690>`_): ascent without a step size to choose.

    .. math::
        z_{t+1} &= \Pi\left(x_t + \eta\, d_t\right) \\
        x_{t+1} &= \Pi\left(x_t + 0.75\,(z_{t+1} - x_t) + 0.25\,(x_t - x_{t-1})\right)

    with :math:`d_t` the sign of the gradient (its direction for ``"l2"``) and :math:`\eta = 2 \epsilon` at first. At
    checkpoints that come closer and closer (after 22 % of the steps at first), :math:`\eta` of a sample is halved and
    the sample goes back to its best point, where its loss rose in fewer than 0.75 of the steps since the last
    checkpoint, or where neither its step size nor its best loss has changed since. The best point of each sample is
    returned.

    Works with any loss that has one value for each sample. Otherwise as
    :func:`~lightning_robust.functional.attacks.pgd`: no weight gradient, no change of ``inputs``, ball and bounds hold
    exactly. Cost: ``steps`` passes forward and back and one forward, for each start; with ``drop_solved`` of the
    samples that are left.

    Args:
        loss_fn: ``loss_fn(inputs)`` gives one value for each sample.
        inputs: ``(batch, ...)``, floating point; never changed.
        eps: Radius, in the units of the inputs; one number, one for each sample, or (for ``"linf"``) of the inputs'
            shape.
        steps: Number of steps; 100 in the paper.
        norm: ``"linf"`` or ``"l2"``.
        bounds: Smallest and largest value that an input may have.
        random_start: Begin at a point drawn uniformly from the ball (and within ``bounds``).
        restarts: Attack so many times, from a random point each, and keep the best for each sample.
        start: Where the first attack begins, after projection; None begins at random or at the inputs.
        mask: Broadcasts to the inputs; where it is 0 (False) nothing changes.
        drop_solved: Attack a sample no further once it is solved. ``loss_fn(inputs, rows)`` is then called with the
            samples still under attack and their row numbers; it gives their losses and which of them are solved.
        generator: Source of the random start, on the inputs' device.
        record: Counts passes and useless gradients.

    Returns:
        The perturbed inputs, of the type of ``inputs``, without a graph.

    Raises:
        TypeError: For inputs that are not floating point.
        ValueError: For a loss that is not one value for each sample or does not depend on the inputs, a radius that is
            negative or not finite, fewer than one step or restart, or inputs outside ``bounds``.

    Example:
        >>> x = torch.zeros(1, 2)
        >>> apgd(lambda x: x @ torch.tensor([3.0, -4.0]), x, 0.5, steps=5)
        tensor([[ 0.5000, -0.5000]])
    """
    require_attackable(inputs, steps, restarts)
    ball = NormBall(inputs.detach(), as_radius(eps, inputs, "eps"), norm, bounds, mask)
    loss = AttackedLoss(loss_fn, drop_solved, record or AttackRecord(), each=True)
    best, best_loss = ball.center, torch.full((len(inputs),), -math.inf, device=inputs.device)
    for index in range(restarts):
        rows = torch.nonzero((best_loss < math.inf) | (not drop_solved)).flatten()
        if len(rows) == 0:
            break
        begin = ball.start(random_start or index > 0, generator)
        if index == 0 and start is not None:
            begin = ball.project(start.detach().to(inputs))
        end, end_loss = _climb(loss, ball, begin, rows, steps)
        better = (end_loss > best_loss) | (index == 0)
        best, best_loss = torch.where(per_sample(better, end), end, best), torch.where(better, end_loss, best_loss)
    loss.settle()
    return best


@dataclass
class _Walk:
    """Where the samples that are still under attack are; every field has a row for each of them."""

    rows: Tensor
    point: Tensor
    previous: Tensor
    gradient: Tensor
    loss: Tensor
    best: Tensor
    best_loss: Tensor
    best_gradient: Tensor
    size: Tensor
    rises: Tensor
    """Steps since the last checkpoint that raised the loss."""
    checked: Tensor
    """The best loss at the last checkpoint."""
    halved: Tensor
    """Whether the last checkpoint halved the step size."""

    def only(self, kept: Tensor) -> _Walk:
        """Some of the samples."""
        return _Walk(**{each.name: getattr(self, each.name)[kept] for each in fields(self)})

    def arrive(self, point: Tensor, loss: Tensor, gradient: Tensor) -> None:
        """Take a step, and keep the best point."""
        self.rises = self.rises + (loss > self.loss)
        better = loss > self.best_loss
        self.previous, self.point, self.loss, self.gradient = self.point, point, loss, gradient
        self.best = torch.where(per_sample(better, point), point, self.best)
        self.best_gradient = torch.where(per_sample(better, point), gradient, self.best_gradient)
        self.best_loss = torch.where(better, loss, self.best_loss)

    def check(self, window: int) -> None:
        """Halve the steps of samples that rise too rarely, or no more, and put them back to their best points."""
        stuck = ~self.halved & (self.best_loss == self.checked)
        halved = (self.rises < _RISING * window) | stuck
        wide = per_sample(halved, self.point)
        self.size = torch.where(per_sample(halved, self.size), self.size / 2, self.size)
        self.point = torch.where(wide, self.best, self.point)
        self.gradient = torch.where(wide, self.best_gradient, self.gradient)
        self.loss = torch.where(halved, self.best_loss, self.loss)
        self.rises, self.checked, self.halved = torch.zeros_like(self.rises), self.best_loss, halved


def _climb(loss: AttackedLoss, ball: NormBall, start: Tensor, rows: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """The best points of the given rows from a start, and the losses there; other rows stay with a loss of -inf."""
    best, best_loss = start.clone(), torch.full((len(start),), -math.inf, device=start.device)
    around, checks = ball.of(rows), _checkpoints(steps)
    walk, solved = _begin(loss, around, start[rows], rows)
    for step in range(steps):
        if loss.drop_solved and bool(solved.any()):
            _note_best(best, best_loss, walk)
            walk, around = walk.only(~solved), around.of(~solved)
            if len(walk.rows) == 0:
                return best, best_loss
        point = _next_point(walk, around, 1.0 if step == 0 else _MOMENTUM)
        if step + 1 < steps:
            losses, gradient, solved = loss.gradients(point, walk.rows)
        else:
            gradient = walk.gradient
            with torch.no_grad():
                losses, solved = loss.values(point, walk.rows)
        walk.arrive(point, AttackedLoss.ranked(losses, solved), gradient)
        if step + 1 in checks:
            walk.check(checks[step + 1])
    _note_best(best, best_loss, walk)
    return best, best_loss


def _begin(loss: AttackedLoss, ball: NormBall, start: Tensor, rows: Tensor) -> tuple[_Walk, Tensor]:
    """All samples at the start, with steps of 2 eps."""
    with torch.enable_grad():
        losses, gradient, solved = loss.gradients(start, rows)
    losses = AttackedLoss.ranked(losses, solved)
    size = (2 * ball.radius).expand(len(start), *ball.radius.shape[1:])
    zeros = torch.zeros_like(solved)
    walk = _Walk(
        rows, start, start, gradient, losses, start, losses, gradient, size, zeros.to(torch.int64), losses, ~zeros
    )
    return walk, solved


def _next_point(walk: _Walk, ball: NormBall, momentum: float) -> Tensor:
    """A step uphill, and a part of the step before."""
    ahead = ball.project(walk.point + walk.size * ball.ascent_direction(walk.gradient).to(walk.point))
    inertia = (1 - momentum) * (walk.point - walk.previous)
    return ball.project(walk.point + momentum * (ahead - walk.point) + inertia)


def _note_best(best: Tensor, best_loss: Tensor, walk: _Walk) -> None:
    best[walk.rows], best_loss[walk.rows] = walk.best, walk.best_loss.to(best_loss)


def _checkpoints(steps: int) -> dict[int, int]:
    """The steps after which step sizes are judged, with the number of steps since the one before."""
    shares = [0.0, 0.22]
    while shares[-1] < 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    places = sorted({math.ceil(share * steps) for share in shares if share <= 1})
    return {place: place - before for before, place in itertools.pairwise(places)}
