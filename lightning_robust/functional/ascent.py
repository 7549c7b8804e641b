"""The ascent that every gradient attack is: steps uphill from several points, and what they cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from lightning_robust.functional.input_gradients import input_gradients
from lightning_robust.functional.norm_ball import NormBall, per_sample

RowLosses = Callable[[Tensor, Tensor], Tensor | None]
# What rounding in bf16 makes of a mean loss.
_ROUNDING = 1e-2


@dataclass
class AttackRecord:
    """Counts of one or several attacks, added up when each has ended.

    Example:
        >>> from lightning_robust.functional import pgd
        >>> record, x = AttackRecord(), torch.tensor([[1.0], [-1.0]])
        >>> _ = pgd(lambda x: x.relu().sum(), x, 0.1, steps=3, random_start=False, record=record)
        >>> record.passes, record.samples, record.zero_share  # the second sample never has a gradient
        (3, 6, 0.5)
    """

    passes: int = 0
    """Forward passes, of which those of a gradient go back to the inputs too."""
    forwards: int = 0
    """Samples that went forward, over all passes."""
    samples: int = 0
    """Samples whose gradient was taken, over all passes."""
    zero_gradients: int = 0
    """Samples whose gradient is zero everywhere."""
    nonfinite: int = 0
    """Samples whose gradient is not finite; they stay where they are in that step."""
    compared_by_batch: int = 0
    """Ends of restarts of which only the loss of the whole batch is known."""

    @property
    def zero_share(self) -> float:
        """Share of gradients that are zero everywhere: above a few percent, robustness is masked, not real."""
        return self.zero_gradients / max(self.samples, 1)

    def add(self, other: AttackRecord) -> None:
        """Add the counts of another record."""
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))

    def add_gradients(self, samples: int, counts: Tensor) -> None:
        """Count gradients; ``counts`` holds how many are zero and how many not finite, and is read at once."""
        zero, nonfinite = counts.tolist()
        self.samples += samples
        self.zero_gradients += zero
        self.nonfinite += nonfinite


def count_useless(gradient: Tensor) -> Tensor:
    """How many samples have a gradient of zero, and how many one that is not finite, on the gradient's device.

    Example:
        >>> count_useless(torch.tensor([[0.0, 0.0], [1.0, math.inf], [0.0, 1.0]]))
        tensor([1, 1])
    """
    largest = gradient.flatten(1).abs().amax(1)
    return torch.stack([(largest == 0).sum(), (~torch.isfinite(largest)).sum()])


@dataclass
class AttackedLoss:
    """The loss that an attack raises, asked for some of the samples; counts of gradients stay on their device.

    Args:
        loss_fn: ``loss_fn(inputs)`` gives a scalar or one value for each sample; with ``drop_solved``,
            ``loss_fn(inputs, rows)`` gives that and which of the samples are solved.
        drop_solved: Which of the two it is.
        record: Counts passes and useless gradients.
        each: Whether a scalar is refused.

    Raises:
        ValueError: With ``each``, for a loss that is not one value for each sample.

    Example:
        >>> loss = AttackedLoss(lambda x: x.square().sum(1), False, AttackRecord())
        >>> losses, gradient, solved = loss.gradients(torch.tensor([[1.0, 2.0]]), torch.tensor([0]))
        >>> losses, gradient, solved
        (tensor([5.]), tensor([[2., 4.]]), tensor([False]))
    """

    loss_fn: Callable[..., Any]
    drop_solved: bool
    record: AttackRecord
    each: bool = False
    _samples: int = field(default=0, init=False)
    _counts: list[Tensor] = field(default_factory=list, init=False)

    def values(self, samples: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """What the loss function gives for some rows, and which of them are solved."""
        self.record.passes += 1
        self.record.forwards += len(samples)
        if self.drop_solved:
            losses, solved = self.loss_fn(samples, rows)
        else:
            losses = self.loss_fn(samples)
            solved = torch.zeros(len(samples), dtype=torch.bool, device=samples.device)
        if self.each and losses.numel() != len(samples):
            raise ValueError(
                f"Expected one loss for each of {len(samples)} samples, by which each chooses its own steps, but got "
                f"{tuple(losses.shape)}. Leave out the mean (`reduction='none'`), or attack with pgd."
            )
        return losses, solved

    def gradients(self, samples: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A loss for each sample (infinite where solved), its gradient (zero where not finite), which are solved."""
        samples = samples.detach().requires_grad_()
        with torch.enable_grad():
            losses, solved = self.values(samples, rows)
            (gradient,) = input_gradients(losses.sum(), [samples])
        self._samples += len(gradient)
        self._counts.append(count_useless(gradient))
        finite = torch.isfinite(gradient.flatten(1).abs().amax(1))
        gradient = torch.where(per_sample(finite, gradient), gradient, 0)
        losses = losses.detach().expand(len(samples)) if losses.ndim == 0 else losses.detach().flatten()
        return losses.masked_fill(solved, math.inf), gradient, solved

    @staticmethod
    def ranked(losses: Tensor, solved: Tensor) -> Tensor:
        """One loss for each sample to compare by: infinite where solved, lowest where it is no number."""
        wide = losses if losses.is_floating_point() else losses.float()
        losses = wide.flatten().masked_fill(solved, math.inf)
        return torch.where(losses.isnan(), -math.inf, losses)

    def settle(self) -> None:
        """Write the counts of gradients into the record; waits for their device."""
        if self._counts:
            self.record.add_gradients(self._samples, torch.stack(self._counts).sum(0))
            self._samples, self._counts = 0, []


@dataclass
class Ascent:
    """Steps uphill within a ball.

    Args:
        loss_fn: As in :func:`~lightning_robust.functional.attacks.pgd`.
        ball: What points are projected onto.
        step_size: Broadcasts to the points.
        steps: From each start.
        keep_best: Whether the best iterate of each sample counts, not the last.
        drop_solved: Whether samples that are solved are left alone.
        row_losses: As in :func:`~lightning_robust.functional.attacks.pgd`.
        record: Counts passes and useless gradients.

    Example:
        >>> ball = NormBall(torch.zeros(1, 2), torch.ones(1, 1))
        >>> ascent = Ascent(lambda x: x.sum(), ball, torch.ones(1, 1), 1, False, False, None, AttackRecord())
        >>> ascent.best_of([torch.zeros(1, 2)])
        tensor([[1., 1.]])
    """

    loss_fn: Callable[..., Any]
    ball: NormBall
    step_size: Tensor
    steps: int
    keep_best: bool
    drop_solved: bool
    row_losses: RowLosses | None
    record: AttackRecord
    _loss: AttackedLoss = field(init=False)

    def __post_init__(self) -> None:
        """Make the loss countable."""
        self._loss = AttackedLoss(self.loss_fn, self.drop_solved, self.record)

    def best_of(self, starts: Iterable[Tensor], *, compare: bool = False) -> Tensor:
        """The ends of the ascents from all starts that have, for each sample, the highest loss.

        A solved sample has won over every loss: no later ascent moves it.

        Args:
            starts: Points of the ball.
            compare: Whether there are several of them.
        """
        best = self.ball.center
        best_loss = torch.full((len(best),), -math.inf, device=best.device)
        rows = torch.arange(len(best), device=best.device)
        for index, start in enumerate(starts):
            if self.drop_solved and index > 0:
                rows = torch.nonzero(best_loss < math.inf).flatten()
                if len(rows) == 0:
                    break
            end, loss = self._climb(start, rows, compare)
            # a loss that is not a number keeps the first end
            better = loss > best_loss if index > 0 else torch.ones_like(loss, dtype=torch.bool)
            best, best_loss = torch.where(per_sample(better, end), end, best), torch.where(better, loss, best_loss)
        self._loss.settle()
        return best

    def _climb(self, point: Tensor, rows: Tensor, compare: bool) -> tuple[Tensor, Tensor]:
        """The end of an ascent of some rows, and the loss of each sample there if it is asked for."""
        best, best_loss = point, torch.full((len(point),), -math.inf, device=point.device)
        attacked = rows
        for _ in range(self.steps):
            if len(attacked) == 0:
                break
            losses, gradient, solved = self._loss.gradients(_rows(point, attacked), attacked)
            if self.keep_best:
                best, best_loss = _keep_better(best, best_loss, point, losses, attacked)
            if self.drop_solved:
                attacked, gradient = attacked[~solved], gradient[~solved]
            # a gradient of zero leaves solved samples where they are
            full = _at_rows(gradient, attacked, len(point))
            point = self.ball.project(point + self.step_size * self.ball.ascent_direction(full).to(point))
        if len(rows) == 0 or not (self.keep_best or compare):
            return point, best_loss
        with torch.no_grad():
            losses = self._compared(_rows(point, rows), rows)
        return _keep_better(best if self.keep_best else point, best_loss, point, losses, rows)

    def _compared(self, samples: Tensor, rows: Tensor) -> Tensor:
        """The losses by which the ends of ascents are compared."""
        losses, solved = self._loss.values(samples, rows)
        if losses.ndim == 0:
            each = None if self.row_losses is None else self.row_losses(samples, rows)
            if each is None or not _adds_up(each, losses):
                self.record.compared_by_batch += 1
                each = losses.expand(len(samples))
            losses = each
        return losses.flatten().masked_fill(solved, math.inf)


def require_attackable(inputs: Tensor, steps: int, restarts: int) -> None:
    """Refuse inputs that have no gradient, and attacks that do nothing.

    Raises:
        TypeError: For inputs that are not floating point.
        ValueError: For fewer than one step or restart.

    Example:
        >>> require_attackable(torch.zeros(1, 2), 1, 1)
    """
    if not inputs.is_floating_point():
        raise TypeError(
            f"Expected floating-point inputs to perturb, but got {inputs.dtype}. Token indices are perturbed behind "
            "their embedding (functional/embeddings.py); pictures of bytes have to be scaled first."
        )
    if steps < 1 or restarts < 1:
        raise ValueError(f"Expected at least one step and one restart, but got {steps} and {restarts}.")


def _rows(tensor: Tensor, rows: Tensor) -> Tensor:
    """Some rows, in order; without a copy where they are all."""
    return tensor if len(rows) == len(tensor) else tensor[rows]


def _at_rows(values: Tensor, rows: Tensor, size: int) -> Tensor:
    """Values at some rows, zeros at the others."""
    if len(rows) == size:
        return values
    return values.new_zeros((size, *values.shape[1:])).index_copy(0, rows, values)


def _adds_up(each: Tensor, whole: Tensor) -> bool:
    """Whether a batch's loss is the mean or the sum of the losses of its rows, up to rounding."""
    total = each.sum()
    candidates = torch.stack([total, total / len(each)])
    sizes = torch.stack([each.abs().sum(), each.abs().mean()])
    return bool(((candidates - whole).abs() <= _ROUNDING * sizes).any())


def _keep_better(best: Tensor, best_loss: Tensor, point: Tensor, losses: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The better of two points for each sample; ``losses`` are those of some rows of ``point``."""
    full = torch.full_like(best_loss, -math.inf).index_copy(0, rows, losses.to(best_loss))
    better = full > best_loss
    return torch.where(per_sample(better, best), point, best), torch.where(better, full, best_loss)
