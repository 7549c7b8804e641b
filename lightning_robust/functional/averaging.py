"""Averages of weights: running averages over a training, and interpolation between two states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import compress, repeat
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_robust.number_types import has_mean, type_of_mean
from lightning_robust.suggest import first_of
from lightning_robust.torch_names import lerp_all_

State = dict[str, Tensor]
Kind = Literal["uniform", "ema", "lawa"]


class RunningAverage:
    r"""The average over time of a list of tensors, held beside them.

    After updates with :math:`x_1 \ldots x_n`:

    * ``"uniform"`` (SWA, `Izmailov et al. 2018 <https://arxiv.org/abs/1803.05407>`_): :math:`\frac1n \sum_i x_i`;
    * ``"ema"``: :math:`\sum_i w_i x_i / \sum_i w_i` with :math:`w_i` halved every ``half_life`` steps. It is normalised
      at every length, so the first value has no more than its share: after one update the average is that value, and
      the sum of the weights is part of the state;
    * ``"lawa"`` (`Kaddour 2022 <https://arxiv.org/abs/2209.14981>`_): the mean of the last ``window``.

    Integer and bool tensors are copied, never averaged; a tensor of a new shape is copied, and averaged from then on.
    Memory: one copy in ``dtype`` (``window`` copies for lawa); an update allocates nothing where the tensors have that
    type, else one tensor at a time. Cost: one fused kernel, about one read and one read-and-write of the weights.

    Args:
        kind: Which average.
        half_life: In steps, for ``"ema"``.
        window: Number of snapshots, for ``"lawa"``.
        dtype: Type of the average. In bf16 an average with a decay of 0.999 never changes.

    Raises:
        ValueError: If ``half_life`` or ``window`` is missing or not positive.

    Example:
        >>> average = RunningAverage("uniform")
        >>> for value in (1.0, 2.0, 6.0, 11.0):
        ...     average.update([torch.tensor([value])])
        >>> average.values()
        [tensor([5.])]
    """

    def __init__(
        self,
        kind: Kind = "uniform",
        *,
        half_life: float | None = None,
        window: int | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if kind not in ("uniform", "ema", "lawa"):
            raise ValueError(f"Expected `kind` to be 'uniform', 'ema' or 'lawa', but got {kind!r}.")
        if kind == "ema" and not (half_life is not None and half_life > 0):
            raise ValueError(f"Expected a positive `half_life` in steps for an exponential average, got {half_life}.")
        if kind == "lawa" and not (window is not None and window >= 1):
            raise ValueError(f"Expected `window` of at least 1 snapshot for kind 'lawa', but got {window}.")
        self.kind = kind
        self.half_life = half_life
        self.window = window
        self.dtype = dtype
        self.count = 0
        self._mass = 0.0
        self._tensors: list[Tensor] = []
        self._snapshots: list[list[Tensor]] = []
        self._source: tuple[torch.dtype, torch.device] | None = None
        self._infinite: list[bool] | None = None

    @torch.no_grad()
    def update(self, tensors: Sequence[Tensor], steps: int = 1) -> None:
        """Add the present tensors to the average.

        Args:
            tensors: The same list, in the same order, at every update.
            steps: Optimizer steps since the last update; an exponential average then decays by ``decay ** steps``.
        """
        if not self._tensors:
            self._tensors = [_shadow(tensor, self.dtype) for tensor in tensors]
        elif len(tensors) != len(self._tensors):
            raise ValueError(f"Expected {len(self._tensors)} tensors as at the first update, but got {len(tensors)}.")
        self._follow_shapes(tensors)
        if self._infinite is None:
            self._infinite = list(map(_holds_infinity, tensors))
        if self.kind == "lawa":
            self._keep_snapshot(tensors)
        else:
            self._lerp(tensors, self._weight(steps))
        self.count += 1

    def values(self) -> list[Tensor]:
        """The average, in the order of the updates' list. The tensors are the average itself, not copies."""
        return self._tensors

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers, which load with ``weights_only=True``."""
        return {
            "count": self.count,
            "mass": self._mass,
            "tensors": list(self._tensors),
            "snapshots": [list(snapshot) for snapshot in self._snapshots],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state; call :meth:`to` where the weights are on another device."""
        self.count = int(state["count"])
        self._mass = float(state["mass"])
        self._tensors = [tensor.clone() for tensor in state["tensors"]]
        self._snapshots = [[tensor.clone() for tensor in snapshot] for snapshot in state["snapshots"]]
        self._source = None

    def to(self, tensors: Sequence[Tensor]) -> None:
        """Move the average to where ``tensors`` are."""
        for shadows in filter(None, (self._tensors, *self._snapshots)):
            shadows[:] = [s.to(t.device) for s, t in zip(shadows, tensors, strict=True)]
        self._source = None

    def _lerp(self, tensors: Sequence[Tensor], weight: float) -> None:
        """As :func:`lerp_into`, with the tensors that one kernel updates looked up once."""
        # casting or moving a module changes all of its tensors, so that the first one tells
        source = (tensors[0].dtype, tensors[0].device)
        if source != self._source:
            self._source, self._fusable = source, _fusable(self._tensors, tensors, self._infinite)
        _lerp(self._tensors, tensors, weight, self._fusable, self._infinite)

    def _follow_shapes(self, tensors: Sequence[Tensor]) -> None:
        """A buffer that has another shape than before, such as a cache, has no mean: the new one takes its place."""
        for place, tensor in enumerate(tensors):
            if tensor.shape != self._tensors[place].shape:
                for held in (self._tensors, *self._snapshots):
                    held[place] = _shadow(tensor, self.dtype)

    def _weight(self, steps: int) -> float:
        if self.kind == "uniform":
            return 1 / (self.count + 1)
        decay = 0.5 ** (steps / (self.half_life or 1.0))
        self._mass = self._mass * decay + (1 - decay)
        return (1 - decay) / self._mass

    def _keep_snapshot(self, tensors: Sequence[Tensor]) -> None:
        if len(self._snapshots) == self.window:
            self._snapshots.append(self._snapshots.pop(0))
            lerp_into(self._snapshots[-1], tensors, 1.0, self._infinite)
        else:
            self._snapshots.append([_shadow(tensor, self.dtype) for tensor in tensors])
        for count, snapshot in enumerate(self._snapshots, 1):
            lerp_into(self._tensors, snapshot, 1 / count, self._infinite)


@torch.no_grad()
def lerp_into(
    average: Sequence[Tensor], tensors: Sequence[Tensor], weight: float, infinite: Sequence[bool] | None = None
) -> None:
    """``average += weight * (tensors - average)`` in place; integers are copied, and weight 1 copies exactly.

    Args:
        average: What is changed.
        tensors: What it moves to.
        weight: How far.
        infinite: Which tensors may hold infinity, as masks do, which stays where both sides have it; none if None.

    Example:
        >>> average = [torch.zeros(1)]
        >>> lerp_into(average, [torch.ones(1)], 0.25)
        >>> average
        [tensor([0.2500])]
    """
    _lerp(average, tensors, weight, _fusable(average, tensors, infinite), infinite)


def interpolate(start: Mapping[str, Tensor], end: Mapping[str, Tensor], alpha: float) -> State:
    r""":math:`(1-\alpha)\,\text{start} + \alpha\,\text{end}` for every tensor; 0 and 1 give the endpoints bit for bit.

    Integer and bool tensors come from the nearer end (``end`` at one half).

    Raises:
        ValueError: If names or shapes differ.

    Example:
        >>> interpolate({"w": torch.tensor(0.0)}, {"w": torch.tensor(4.0)}, 0.25)
        {'w': tensor(1.)}
    """
    require_same(start, end)
    return {
        name: _lerped(first.detach(), end[name].detach().to(first), alpha)
        if has_mean(first)
        else (first if alpha < 0.5 else end[name]).detach().clone()
        for name, first in start.items()
    }


def require_same(
    first: Mapping[str, Tensor],
    other: Mapping[str, Tensor],
    name: str = "the other state",
    advice: str = "Only checkpoints of one architecture can be averaged.",
) -> None:
    """Refuse two states that do not hold the same tensors.

    Args:
        first: The state to compare with.
        other: The state to check.
        name: Names ``other`` in the message.
        advice: How the message ends.

    Raises:
        ValueError: Naming the first keys that are missing, additional, or of another shape.

    Example:
        >>> require_same({"w": torch.zeros(1)}, {"w": torch.ones(1)})
        >>> require_same({"w": torch.zeros(1)}, {"v": torch.ones(1)}, "late.ckpt")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: Expected the same tensors in late.ckpt, but it lacks w and has v besides. ...
    """
    if first.keys() != other.keys():
        missing = first_of(name for name in first if name not in other)
        additional = first_of(name for name in other if name not in first)
        raise ValueError(
            f"Expected the same tensors in {name}, but it lacks {missing} and has {additional} besides. {advice}"
        )
    different = [key for key, tensor in first.items() if tensor.shape != other[key].shape]
    if different:
        key, more = different[0], f" (and {len(different) - 1} more differ)" if len(different) > 1 else ""
        raise ValueError(
            f"Expected {key} of shape {tuple(first[key].shape)} in {name}, but got {tuple(other[key].shape)}{more}. "
            f"{advice}"
        )


def _lerped(first: Tensor, other: Tensor, alpha: float) -> Tensor:
    """The ends bit for bit, and what both have where they are alike, which infinities would make NaN."""
    if alpha in (0, 1):
        return (other if alpha else first).clone()
    return torch.where(first == other, first, torch.lerp(first, other, alpha))


def _holds_infinity(tensor: Tensor) -> bool:
    """Whether a tensor, or this rank's part of it, holds infinity."""
    local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return has_mean(local) and bool(local.isinf().any())


def _fusable(average: Sequence[Tensor], tensors: Sequence[Tensor], infinite: Sequence[bool] | None) -> list[bool]:
    """Which pairs one kernel can update together."""
    return [
        mine.dtype == other.dtype and mine.device == other.device and has_mean(mine) and not held
        for mine, other, held in zip(average, tensors, infinite or repeat(False, len(average)), strict=True)
    ]


def _lerp(
    average: Sequence[Tensor],
    tensors: Sequence[Tensor],
    weight: float,
    fusable: Sequence[bool],
    infinite: Sequence[bool] | None,
) -> None:
    fused = list(compress(average, fusable))
    if fused:
        lerp_all_(fused, list(compress(tensors, fusable)), weight)
    if len(fused) == len(average):
        return
    flags = infinite or repeat(False, len(average))
    for mine, other, done, held in zip(average, tensors, fusable, flags, strict=True):
        if not done and held:
            mine.copy_(_lerped(mine, other.to(mine), weight))
        elif not done and has_mean(mine):
            mine.lerp_(other.to(mine), weight)
        elif not done:
            mine.copy_(other)


def _shadow(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.detach().to(type_of_mean(tensor.dtype, dtype), copy=True)
