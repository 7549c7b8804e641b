"""Averages of weights: running ones, and interpolation.

Tensors in, tensors out. How they get into a module is ``weights.py``'s business, when to update the callback's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

State = dict[str, Tensor]
Kind = Literal["uniform", "ema", "lawa"]


class RunningAverage:
    r"""The average of a list of tensors that change, kept beside them.

    After updates with :math:`x_1 \ldots x_n`:

    * ``"uniform"`` (SWA, `Izmailov et al. 2018 <https://arxiv.org/abs/1803.05407>`_): :math:`\frac1n \sum_i x_i`;
    * ``"ema"``: :math:`\sum_i w_i x_i / \sum_i w_i` with :math:`w_i` halved every ``half_life`` steps. It is normalised
      at every length, so nothing of the first value lingers: after one update it is that value, and the sum of the
      weights is part of the state;
    * ``"lawa"`` (`Kaddour 2022 <https://arxiv.org/abs/2209.14981>`_): the mean of the last ``window``.

    Integer and bool tensors are copied, never averaged. Memory: one copy in ``dtype`` (``window`` copies for lawa);
    an update allocates nothing where the tensors have that type, else one tensor at a time. Cost: one fused
    ``torch._foreach_lerp_``, about one read and one read-and-write of the weights.

    Args:
        kind: Which average.
        half_life: In steps, for ``"ema"``.
        window: Number of snapshots, for ``"lawa"``.
        dtype: Of the average. In bf16 an average with a decay of 0.999 never moves.

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
        self._kind: tuple[torch.dtype, torch.device] | None = None

    @torch.no_grad()
    def update(self, tensors: Sequence[Tensor], steps: int = 1) -> None:
        """Take the tensors in.

        Args:
            tensors: The same list, in the same order, at every update.
            steps: Optimizer steps since the last update; an exponential average then decays by ``decay ** steps``.
        """
        if not self._tensors:
            self._tensors = [_shadow(tensor, self.dtype) for tensor in tensors]
        elif len(tensors) != len(self._tensors):
            raise ValueError(f"Expected {len(self._tensors)} tensors as at the first update, but got {len(tensors)}.")
        if self.kind == "lawa":
            self._keep_snapshot(tensors)
        else:
            self._blend(tensors, self._weight(steps))
        self.count += 1

    def values(self) -> list[Tensor]:
        """The average, in the order of the updates' list. The tensors are the average itself, not copies."""
        return self._tensors

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers; loads with ``weights_only=True``."""
        return {
            "count": self.count,
            "mass": self._mass,
            "tensors": list(self._tensors),
            "snapshots": [list(snapshot) for snapshot in self._snapshots],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state. Tensors move to the device of the weights at the next update."""
        self.count = int(state["count"])
        self._mass = float(state["mass"])
        self._tensors = [tensor.clone() for tensor in state["tensors"]]
        self._snapshots = [[tensor.clone() for tensor in snapshot] for snapshot in state["snapshots"]]
        self._kind = None

    def to(self, tensors: Sequence[Tensor]) -> None:
        """Move the average to where ``tensors`` are."""
        for shadows in filter(None, (self._tensors, *self._snapshots)):
            shadows[:] = [s.to(t.device) for s, t in zip(shadows, tensors, strict=True)]
        self._kind = None

    def _blend(self, tensors: Sequence[Tensor], weight: float) -> None:
        """As :func:`blend`, with what can be fused looked up once."""
        # casting or moving a module changes all of its tensors, so that one of them tells
        kind = (tensors[0].dtype, tensors[0].device)
        if kind != self._kind:
            pairs = enumerate(zip(self._tensors, tensors, strict=True))
            self._kind = kind
            self._fused = [index for index, pair in pairs if _is_fusable(*pair)]
            self._rest = [index for index in range(len(tensors)) if index not in set(self._fused)]
            self._fused_tensors = [self._tensors[index] for index in self._fused]
        if self._fused:
            live = [tensors[index] for index in self._fused] if self._rest else list(tensors)
            torch._foreach_lerp_(self._fused_tensors, live, weight)
        for index in self._rest:
            _blend_one(self._tensors[index], tensors[index], weight)

    def _weight(self, steps: int) -> float:
        if self.kind == "uniform":
            return 1 / (self.count + 1)
        kept = 0.5 ** (steps / (self.half_life or 1.0))
        self._mass = self._mass * kept + (1 - kept)
        return (1 - kept) / self._mass

    def _keep_snapshot(self, tensors: Sequence[Tensor]) -> None:
        if len(self._snapshots) == self.window:
            self._snapshots.append(self._snapshots.pop(0))
            blend(self._snapshots[-1], tensors, 1.0)
        else:
            self._snapshots.append([_shadow(tensor, self.dtype) for tensor in tensors])
        for number, snapshot in enumerate(self._snapshots, 1):
            blend(self._tensors, snapshot, 1 / number)


@torch.no_grad()
def blend(into: Sequence[Tensor], tensors: Sequence[Tensor], weight: float) -> None:
    """``into += weight * (tensors - into)`` in place; integers are copied, and weight 1 copies exactly.

    Example:
        >>> average = [torch.zeros(1)]
        >>> blend(average, [torch.ones(1)], 0.25)
        >>> average
        [tensor([0.2500])]
    """
    pairs = list(zip(into, tensors, strict=True))
    alike = [pair for pair in pairs if _is_fusable(*pair)]
    if alike:
        # a private name of torch, used by all of its optimizers; one kernel for the whole list
        torch._foreach_lerp_([mine for mine, _ in alike], [other for _, other in alike], weight)
    for mine, other in pairs:
        if not _is_fusable(mine, other):
            _blend_one(mine, other, weight)


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
        name: torch.lerp(first.detach(), end[name].detach().to(first), alpha)
        if first.is_floating_point()
        else (first if alpha < 0.5 else end[name]).detach().clone()
        for name, first in start.items()
    }


def require_same(first: Mapping[str, Tensor], other: Mapping[str, Tensor], name: str = "the other state") -> None:
    """Refuse two states that do not hold the same tensors.

    Raises:
        ValueError: Naming the first keys that are missing, additional, or of another shape.
    """
    missing = [key for key in first if key not in other]
    extra = [key for key in other if key not in first]
    if missing or extra:
        raise ValueError(
            f"Expected the same tensors in {name}, but it lacks {_few(missing)} and has {_few(extra)} besides. "
            "Only checkpoints of one architecture can be averaged."
        )
    wrong = {k: (tuple(t.shape), tuple(other[k].shape)) for k, t in first.items() if t.shape != other[k].shape}
    if wrong:
        key, (mine, theirs) = next(iter(wrong.items()))
        raise ValueError(
            f"Expected {key} of shape {mine} in {name}, but got {theirs}"
            + (f" (and {len(wrong) - 1} more differ)." if len(wrong) > 1 else ".")
            + " Only checkpoints of one architecture can be averaged."
        )


def _is_fusable(mine: Tensor, other: Tensor) -> bool:
    return mine.dtype == other.dtype and mine.device == other.device and mine.is_floating_point()


def _blend_one(mine: Tensor, other: Tensor, weight: float) -> None:
    if mine.is_floating_point():
        mine.lerp_(other.to(mine), weight)
    else:
        mine.copy_(other)


def _shadow(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.detach().to(dtype if tensor.is_floating_point() else tensor.dtype, copy=True)


def _few(names: list[str]) -> str:
    return ("nothing" if not names else ", ".join(names[:3])) + (f" and {len(names) - 3} more" if names[3:] else "")
