"""The Square attack: random squares, kept where they raise the loss; no gradient is asked for."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_robust.functional.ascent import AttackedLoss, AttackRecord, require_attackable
from lightning_robust.functional.norm_ball import Bounds, Norm, NormBall, as_radius, per_sample

_FIRST_SHARE, _HALVINGS = 0.8, (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
_TILES, _SMALLEST_TILE, _TINY = 5, 3, 1e-12


def square_attack(
    loss_fn: Callable[..., Any],
    inputs: Tensor,
    eps: float | Tensor,
    *,
    queries: int = 1000,
    norm: Norm = "linf",
    bounds: Bounds | None = None,
    mask: Tensor | None = None,
    drop_solved: bool = False,
    generator: torch.Generator | None = None,
    record: AttackRecord | None = None,
) -> Tensor:
    r"""Square (`Andriushchenko et al. 2020 <https://arxiv.org/abs/1912.00049>`_): random search by squares.

    It needs no gradient, and so also tells where gradients hide what a network does not withstand. For ``"linf"`` it
    starts from vertical stripes of :math:`\pm\epsilon`, and each query sets a square of each sample, in each channel,
    to :math:`\pm\epsilon`. For ``"l2"`` it starts from a grid of bumps, and each query moves the norm of one square of
    each sample into a bump on another one. A change stays where the loss of the sample rises. The squares cover 80 % of
    a picture at first and are halved at shares of the queries, as in the paper. Cost: ``queries`` forward passes, with
    ``drop_solved`` of the samples that are left.

    Args:
        loss_fn: ``loss_fn(inputs)`` gives one value for each sample; no gradient is taken.
        inputs: Pictures ``(batch, channels, height, width)``; of inputs of more dimensions all but the last two are
            channels, of ``(batch, channels, width)`` and ``(batch, width)`` stretches take the place of squares.
        eps: Radius, in the units of the inputs; one number, one for each sample, or (for ``"linf"``) of the inputs'
            shape.
        queries: Forward passes of each sample; 5,000 in AutoAttack.
        norm: ``"linf"`` or ``"l2"``.
        bounds: Smallest and largest value that an input may have.
        mask: Broadcasts to the inputs; where it is 0 (False) nothing changes.
        drop_solved: Attack a sample no further once it is solved. ``loss_fn(inputs, rows)`` is then called with the
            samples still under attack and their row numbers; it gives their losses and which of them are solved.
        generator: Source of the random squares, on the inputs' device.
        record: Counts passes.

    Returns:
        The perturbed inputs, of the type of ``inputs``, without a graph.

    Raises:
        TypeError: For inputs that are not floating point.
        ValueError: For a loss that is not one value for each sample, a radius that is negative or not finite, fewer
            than one query, or inputs outside ``bounds``.

    Example:
        >>> x, draws = torch.zeros(1, 1, 4, 4), torch.Generator().manual_seed(0)
        >>> found = square_attack(lambda z: z.sum((1, 2, 3)), x, 0.5, queries=200, generator=draws)
        >>> bool((found == 0.5).float().mean() > 0.9)
        True
    """
    require_attackable(inputs, queries, 1)
    ball = NormBall(inputs.detach(), as_radius(eps, inputs, "eps"), norm, bounds, mask)
    loss = AttackedLoss(loss_fn, drop_solved, record or AttackRecord(), each=True)
    draw = _Draws(inputs, generator)
    first, change = (_stripes, _move_square) if norm == "linf" else (_bumps, _move_norm)
    with torch.no_grad():
        best = ball.project(first(ball, draw))
        rows = torch.arange(len(inputs), device=inputs.device)
        best_loss, around = AttackedLoss.ranked(*loss.values(best, rows)), ball
        for query in range(1, queries):
            if drop_solved and bool((best_loss[rows] == math.inf).any()):
                rows = rows[best_loss[rows] < math.inf]
                around = ball.of(rows)
            if len(rows) == 0:
                break
            point = around.project(change(around, best[rows], draw, _covered_share(query, queries)))
            losses = AttackedLoss.ranked(*loss.values(point, rows))
            better = losses > best_loss[rows]
            best[rows] = torch.where(per_sample(better, point), point, best[rows])
            best_loss[rows] = torch.where(better, losses, best_loss[rows])
    return best


class _Draws:
    """Random squares and signs for pictures of one size.

    Args:
        inputs: Pictures; see :func:`square_attack`.
        generator: Source of random numbers.
    """

    def __init__(self, inputs: Tensor, generator: torch.Generator | None) -> None:
        self.shape, self.device, self.dtype, self.generator = inputs.shape[1:], inputs.device, inputs.dtype, generator
        self.width = self.shape[-1] if self.shape else 1
        self.height = self.shape[-2] if len(self.shape) > 2 else 1
        self.channels = self.shape.numel() // max(self.height * self.width, 1)

    def pictures(self, flat: Tensor) -> Tensor:
        """Inputs as ``(batch, channels, height, width)``."""
        return flat.reshape(len(flat), self.channels, self.height, self.width)

    def back(self, pictures: Tensor) -> Tensor:
        """Pictures in the shape of the inputs."""
        return pictures.reshape(len(pictures), *self.shape)

    def signs(self, *shape: int) -> Tensor:
        """Numbers that are 1 or -1."""
        drawn = torch.randint(2, shape, generator=self.generator, device=self.device)
        return (2 * drawn - 1).to(self.dtype)

    def upright(self) -> bool:
        """Whether a bump has its halves above each other; those of stretches have theirs side by side."""
        return self.height > 1 and bool(torch.randint(2, (1,), generator=self.generator, device=self.device))

    def sides(self, share: float, smallest: int = 1) -> tuple[int, int]:
        """Height and width of a square that covers a share of the picture, less than all of it where that can be."""
        if self.height == 1:
            return 1, max(min(round(share * self.width), self.width - 1), 1)
        sides = (round(math.sqrt(share) * side) for side in (self.height, self.width))
        tall, wide = (
            max(min(max(size, smallest), side - 1), 1)
            for size, side in zip(sides, (self.height, self.width), strict=True)
        )
        return tall, wide

    def windows(self, count: int, tall: int, wide: int) -> tuple[Tensor, Tensor]:
        """Rows and columns counted from a random corner, ``(count, 1, height, 1)`` and ``(count, 1, 1, width)``."""
        rows, columns = self._from(count, self.height, tall), self._from(count, self.width, wide)
        return rows[:, None, :, None], columns[:, None, None, :]

    def _from(self, count: int, length: int, side: int) -> Tensor:
        corner = torch.randint(length - side + 1, (count, 1), generator=self.generator, device=self.device)
        return torch.arange(length, device=self.device) - corner


def _covered_share(query: int, queries: int) -> float:
    """The share of the picture that a square covers; the halvings are those of 10,000 queries."""
    place = query * 10_000 / queries
    return _FIRST_SHARE / 2.0 ** sum(place > halving for halving in _HALVINGS)


def _stripes(ball: NormBall, draw: _Draws) -> Tensor:
    """Vertical stripes, each of one sign in each channel."""
    count = len(ball.center)
    signs = draw.signs(count, draw.channels, 1, draw.width).expand(count, draw.channels, draw.height, draw.width)
    return ball.center + draw.back(signs) * ball.radius


def _move_square(ball: NormBall, best: Tensor, draw: _Draws, share: float) -> Tensor:
    """A square of each sample at the border of the ball."""
    tall, wide = draw.sides(share)
    rows, columns = draw.windows(len(best), tall, wide)
    inside = ((rows >= 0) & (rows < tall)) & ((columns >= 0) & (columns < wide))
    signs = draw.signs(len(best), draw.channels, 1, 1)
    changed = ball.center + draw.back(signs.expand(-1, -1, draw.height, draw.width)) * ball.radius
    return torch.where(draw.back(inside.expand(-1, draw.channels, -1, -1)), changed, best)


def _bumps(ball: NormBall, draw: _Draws) -> Tensor:
    """A grid of bumps with random signs, of the norm of the radius."""
    count = len(ball.center)
    delta = ball.center.new_zeros(count, draw.channels, draw.height, draw.width)
    tall, wide = max(draw.height // _TILES, 1), max(draw.width // _TILES, 1)
    bump = _bump(tall, wide, draw.upright()).to(delta)
    for top in range((draw.height % tall) // 2, draw.height - tall + 1, tall):
        for left in range((draw.width % wide) // 2, draw.width - wide + 1, wide):
            delta[..., top : top + tall, left : left + wide] = bump * draw.signs(count, draw.channels, 1, 1)
    return ball.center + _on_border(draw.back(delta), ball)


def _move_norm(ball: NormBall, best: Tensor, draw: _Draws, share: float) -> Tensor:
    """The norm of one square, and what is left of the radius, in a bump on another one (the paper's algorithm 3)."""
    tall, wide = draw.sides(share, _SMALLEST_TILE)
    count, delta = len(best), draw.pictures(best - ball.center)
    (rows, columns), (other_rows, other_columns) = (draw.windows(count, tall, wide) for _ in range(2))
    here = ((rows >= 0) & (rows < tall) & (columns >= 0) & (columns < wide)).to(delta)
    there = ((other_rows >= 0) & (other_rows < tall) & (other_columns >= 0) & (other_columns < wide)).to(delta)
    bump = _bump(tall, wide, draw.upright()).to(delta)[rows.clamp(0, tall - 1), columns.clamp(0, wide - 1)] * here
    old = delta * here
    new = bump * draw.signs(count, draw.channels, 1, 1) + old / (_channel_norms(old) + _TINY)
    spare = (ball.radius.reshape(-1, 1, 1, 1) ** 2 - delta.square().sum((1, 2, 3), keepdim=True)).clamp(min=0)
    moved = (delta * torch.maximum(here, there)).square().sum((2, 3), keepdim=True)
    new = new / (_channel_norms(new) + _TINY) * (spare / draw.channels + moved).sqrt()
    delta = torch.where(here > 0, new, delta * (1 - there))
    return ball.center + _on_border(draw.back(delta), ball)


def _bump(tall: int, wide: int, upright: bool) -> Tensor:
    """A hill beside a valley (above it where upright), of norm 1: eta in the paper."""
    if not upright:
        return _bump(wide, tall, True).T
    half = tall // 2
    bump = torch.cat([_hill(half, wide), -_hill(tall - half, wide)])
    return bump / bump.norm()


def _hill(tall: int, wide: int) -> Tensor:
    """Concentric squares of height 1 / (k + 1)^2, k from the middle outwards, on top of each other."""
    rows, columns = ((torch.arange(side) - side // 2).abs() for side in (tall, wide))
    heights = 1 / torch.arange(1, max(tall, wide) // 2 + 2) ** 2
    return heights.flip(0).cumsum(0).flip(0)[torch.maximum(rows[:, None], columns[None, :])]


def _channel_norms(delta: Tensor) -> Tensor:
    return delta.square().sum((2, 3), keepdim=True).sqrt()


def _on_border(delta: Tensor, ball: NormBall) -> Tensor:
    """A perturbation on the border of the ball."""
    norms = delta.flatten(1).norm(dim=1).clamp(min=_TINY)
    return delta / per_sample(norms, delta) * ball.radius
