"""The union of several attacks: each next one sees only the samples that withstood those before it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lightning_robust.functional.apgd import apgd
from lightning_robust.functional.ascent import AttackRecord
from lightning_robust.functional.margins import (
    DLR_CLASSES,
    margin_loss,
    require_classes,
    targeted_dlr_loss,
    targeted_margin_loss,
)
from lightning_robust.functional.norm_ball import Bounds, Norm, NormBall, as_radius, per_sample
from lightning_robust.functional.square_attack import square_attack

Judged = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""``judged(inputs, rows)``: losses of some samples, and which of them are solved."""
_MISTAKEN, _CROSS_ENTROPY, _TARGETED, _SQUARE, _LOSS = "no attack", "APGD-CE", "APGD-T", "Square", "APGD"


@dataclass
class WorstCase:
    """What a union of attacks found.

    Example:
        >>> found = WorstCase(torch.zeros(2, 3), torch.tensor([True, False]), {"APGD-CE": 1})
        >>> found.robust_share
        0.5
    """

    inputs: Tensor
    """The perturbed inputs: where solved the first point that is, else the one of the highest loss (cross entropy)."""
    solved: Tensor
    """Which samples some attack has solved, ``(batch,)``."""
    found: dict[str, int]
    """How many samples each attack solved that those before it had not, in their order."""
    record: AttackRecord = field(default_factory=AttackRecord)
    """What all attacks cost: ``forwards`` and ``samples`` count passes forward and back, sample by sample."""

    @property
    def robust_share(self) -> float:
        """The share that no attack has solved."""
        return 1 - self.solved.double().mean().item()


def worst_prediction(
    logits_fn: Callable[[Tensor, Tensor], Tensor],
    inputs: Tensor,
    classes: Tensor,
    eps: float | Tensor,
    *,
    steps: int = 50,
    targets: int = 9,
    queries: int = 500,
    norm: Norm = "linf",
    bounds: Bounds | None = None,
    start: Tensor | None = None,
    generator: torch.Generator | None = None,
    record: AttackRecord | None = None,
) -> WorstCase:
    r"""Perturbations that make a classifier err, by attacks of AutoAttack's grade and at a fraction of its passes.

    In turn, each on the samples that are still right: the clean inputs; :func:`~.apgd.apgd` on the cross entropy; the
    same on the targeted DLR loss, for one wrong class after the other, the likeliest first; :func:`~.square_attack.
    square_attack` on the margin. A sample leaves an attack at the first wrong iterate. These are the attacks of
    AutoAttack (`Croce and Hein 2020 <https://arxiv.org/abs/2003.01690>`_) without FAB, with fewer steps and queries.
    With fewer than four classes, for which there is no targeted DLR loss, the difference of the two logits takes its
    place.

    Args:
        logits_fn: ``logits_fn(inputs, rows)`` gives the logits ``(samples, classes)`` of some samples; ``rows`` are
            their numbers in the batch.
        inputs: ``(batch, ...)``, floating point; never changed.
        classes: The right ones ``(batch,)``.
        eps: Radius, in the units of the inputs; one number, one for each sample, or (for ``"linf"``) of the inputs'
            shape.
        steps: Of each APGD; 100 in AutoAttack.
        targets: Wrong classes that are attacked, at most; 9 in AutoAttack.
        queries: Of the Square attack; 5,000 in AutoAttack. 0 leaves it out.
        norm: ``"linf"`` or ``"l2"``.
        bounds: Smallest and largest value that an input may have.
        start: Where samples are looked at first, after projection, such as the ends of an attack with a smaller radius;
            None is the inputs.
        generator: Source of random starts and squares, on the inputs' device.
        record: Counts passes and useless gradients too.

    Raises:
        TypeError: For inputs that are not floating point.
        ValueError: For what are no logits, for classes that there are not, or arguments out of range.

    Example:
        >>> net, x = torch.nn.Linear(4, 3), torch.rand(8, 4)
        >>> found = worst_prediction(lambda z, rows: net(z), x, net(x).argmax(1), 5.0, steps=10, queries=0)
        >>> found.robust_share, bool((net(found.inputs).argmax(1) != net(x).argmax(1)).all())
        (0.0, True)
    """
    if targets < 0 or queries < 0:
        raise ValueError(f"Expected `targets` and `queries` of at least 0, but got {targets} and {queries}.")
    union = _Union(inputs, as_radius(eps, inputs, "eps"), norm, bounds, generator)
    order: list[Tensor] = []

    def logits_of(points: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, right = logits_fn(points, rows), classes[rows]
        require_classes(logits, right)
        return logits, right, logits.argmax(1) != right

    def first(points: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        logits, right, wrong = logits_of(points, rows)
        order.append(logits.scatter(1, right[:, None], -torch.inf).argsort(1, descending=True))
        return cross_entropy(logits, right, reduction="none"), wrong

    def by_cross_entropy(points: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        logits, right, wrong = logits_of(points, rows)
        return cross_entropy(logits, right, reduction="none"), wrong

    def toward(rank: int) -> Judged:
        def by_target(points: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            logits, right, wrong = logits_of(points, rows)
            loss = targeted_dlr_loss if logits.shape[1] >= DLR_CLASSES else targeted_margin_loss
            return loss(logits, right, order[0][rows, rank]), wrong

        return by_target

    def by_margin(points: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        logits, right, wrong = logits_of(points, rows)
        return margin_loss(logits, right), wrong

    union.look(_MISTAKEN, first, start)
    union.ascend(_CROSS_ENTROPY, by_cross_entropy, steps)
    for rank in range(min(targets, order[0].shape[1] - 1)):
        union.ascend(_TARGETED, toward(rank), steps, only_solving=True)
    union.search(_SQUARE, by_margin, queries, only_solving=True)
    return union.result(record)


def worst_loss(
    loss_fn: Callable[..., Any],
    inputs: Tensor,
    eps: float | Tensor,
    *,
    steps: int = 50,
    restarts: int = 2,
    queries: int = 500,
    norm: Norm = "linf",
    bounds: Bounds | None = None,
    start: Tensor | None = None,
    drop_solved: bool = False,
    generator: torch.Generator | None = None,
    record: AttackRecord | None = None,
) -> WorstCase:
    """Perturbations that raise any loss that has one value for each sample: APGD, then Square, the best for each.

    Args:
        loss_fn: ``loss_fn(inputs)`` gives one value for each sample; with ``drop_solved``, ``loss_fn(inputs, rows)``
            gives the losses of some samples and which of them are solved.
        inputs: ``(batch, ...)``, floating point; never changed.
        eps: Radius, in the units of the inputs; one number, one for each sample, or (for ``"linf"``) of the inputs'
            shape.
        steps: Of each APGD.
        restarts: APGD from so many random points.
        queries: Of the Square attack. 0 leaves it out.
        norm: ``"linf"`` or ``"l2"``.
        bounds: Smallest and largest value that an input may have.
        start: Where samples are looked at first and the first APGD starts, after projection; None is the inputs, and a
            random point.
        drop_solved: Attack a sample no further once it is solved.
        generator: Source of random starts and squares, on the inputs' device.
        record: Counts passes and useless gradients too.

    Raises:
        TypeError: For inputs that are not floating point.
        ValueError: For a loss that is not one value for each sample, or arguments out of range.

    Example:
        >>> found = worst_loss(lambda z: z.sum(1), torch.zeros(2, 3), 0.5, steps=5, queries=10)
        >>> found.inputs.sum().item(), found.solved.any().item()
        (3.0, False)
    """
    if restarts < 1 or queries < 0:
        raise ValueError(f"Expected `restarts` of at least 1 and `queries` of at least 0, got {restarts}, {queries}.")
    union = _Union(inputs, as_radius(eps, inputs, "eps"), norm, bounds, generator)

    def judged(points: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        if drop_solved:
            losses, solved = loss_fn(points, rows)
            return losses, solved
        losses = loss_fn(points)
        losses = losses.clamp(max=torch.finfo(losses.dtype).max)  # an infinite one is large, and not solved
        return losses, torch.zeros(len(points), dtype=torch.bool, device=points.device)

    union.look(_MISTAKEN, judged, start)
    for restart in range(restarts):
        union.ascend(_LOSS, judged, steps, go_on=start is not None and restart == 0)
    union.search(_SQUARE, judged, queries)
    return union.result(record)


class _Union:
    """Attacks in turn, each on what is left.

    Args:
        inputs: ``(batch, ...)``.
        radius: Broadcasts to the inputs.
        norm: ``"linf"`` or ``"l2"``.
        bounds: Smallest and largest value.
        generator: Source of random numbers.
    """

    def __init__(
        self, inputs: Tensor, radius: Tensor, norm: Norm, bounds: Bounds | None, generator: torch.Generator | None
    ) -> None:
        self.ball = NormBall(inputs.detach(), radius, norm, bounds)
        self.settings: dict[str, Any] = {"norm": norm, "bounds": bounds, "generator": generator}
        self.points, self.solved = self.ball.center.clone(), torch.zeros(len(inputs), dtype=torch.bool)
        self.solved = self.solved.to(inputs.device)
        self.losses = torch.full((len(inputs),), -math.inf, device=inputs.device)
        self.found: dict[str, int] = {}
        self.record = AttackRecord()

    def look(self, name: str, judged: Judged, start: Tensor | None) -> None:
        """Which samples are solved without an attack."""
        if start is not None:
            self.points = self.ball.project(start.detach().to(self.points))
        rows = torch.arange(len(self.points), device=self.points.device)
        with torch.no_grad():
            losses, solved = judged(self.points, rows)
        self.record.passes += 1
        self.record.forwards += len(rows)
        self.solved, self.losses = solved, _without_nan(losses).masked_fill(solved, math.inf)
        self.found[name] = int(solved.sum())

    def ascend(self, name: str, judged: Judged, steps: int, *, only_solving: bool = False, go_on: bool = False) -> None:
        """APGD from a random point, or from where samples are."""

        def attack(loss: Judged, ball: NormBall, points: Tensor) -> Tensor:
            settings = {**self.settings, "start": points if go_on else None, "record": self.record}
            return apgd(loss, ball.center, ball.radius, steps=steps, drop_solved=True, **settings)

        self._run(name, judged, attack, only_solving)

    def search(self, name: str, judged: Judged, queries: int, *, only_solving: bool = False) -> None:
        """The Square attack."""

        def attack(loss: Judged, ball: NormBall, points: Tensor) -> Tensor:
            settings = {**self.settings, "record": self.record}
            return square_attack(loss, ball.center, ball.radius, queries=queries, drop_solved=True, **settings)

        if queries > 0:
            self._run(name, judged, attack, only_solving)

    def _run(
        self, name: str, judged: Judged, attack: Callable[[Judged, NormBall, Tensor], Tensor], only_solving: bool
    ) -> None:
        """One attack on what is left; it counts where it solves a sample, or has a higher loss of the same kind."""
        left = torch.nonzero(~self.solved).flatten()
        if len(left) == 0:
            return
        reached = torch.full((len(left),), -math.inf, device=left.device)
        by_attack = torch.zeros_like(reached, dtype=torch.bool)

        def noting(points: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            losses, solved = judged(points, left[rows])
            by_attack[rows] |= solved
            reached[rows] = torch.maximum(reached[rows], _without_nan(losses.detach()))
            return losses, solved

        points = attack(noting, self.ball.of(left), self.points[left])
        reached = reached.masked_fill(by_attack, math.inf)
        better = by_attack if only_solving else reached > self.losses[left]
        self.points[left] = torch.where(per_sample(better, points), points, self.points[left])
        self.losses[left] = torch.where(better, reached, self.losses[left])
        self.solved = self.solved.index_put((left,), by_attack)
        self.found[name] = self.found.get(name, 0) + int(by_attack.sum())

    def result(self, record: AttackRecord | None) -> WorstCase:
        """What was found, the costs added to another record too."""
        if record is not None:
            record.add(self.record)
        return WorstCase(self.points, self.solved, self.found, self.record)


def _without_nan(losses: Tensor) -> Tensor:
    return losses.flatten().float().nan_to_num(-math.inf, math.inf, -math.inf)
