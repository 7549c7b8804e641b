"""How far predicted lines are from the true ones: lateral error, bend, swing, as torchmetrics.

All take columns (N, 2, R) in pixels with NaN where a line is absent.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_robust.functional.line_motion import bends


def _require_same_shape(columns: Tensor, target: Tensor) -> None:
    if columns.shape != target.shape or columns.ndim != 3:
        raise ValueError(
            f"Expected columns and target of one shape (N, lines, rows), but got {tuple(columns.shape)} and "
            f"{tuple(target.shape)}. Pass NaN where a line is absent."
        )


class _MeanOver(Metric):
    """A sum and a count over all batches and ranks."""

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def _add(self, values: Tensor) -> None:
        known = ~values.isnan()
        # a Trainer in half precision converts states too: the sum goes on in float32
        self.total = self.total.float() + values[known].float().sum()
        self.count = self.count + known.sum()

    def compute(self) -> Tensor:
        """The mean in pixels; 0 without any value."""
        return self.total.float() / self.count.clamp(min=1)


class LateralError(_MeanOver):
    """Mean distance along the row between predicted and true line, in pixels, over the points that are in both.

    Example:
        >>> import torch
        >>> metric = LateralError()
        >>> metric.update(torch.tensor([[[1.0, 5.0, torch.nan]]]), torch.tensor([[[2.0, 2.0, 0.0]]]))
        >>> float(metric.compute()), round(float(metric.found()), 3)
        (2.0, 0.667)
    """

    expected: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("expected", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, columns: Tensor, target: Tensor) -> None:
        """Adds a batch.

        Args:
            columns: Predicted columns, (N, lines, R), NaN where absent.
            target: True columns, (N, lines, R), NaN where absent.

        Raises:
            ValueError: If the shapes differ.
        """
        _require_same_shape(columns, target)
        self._add((columns - target).abs())
        self.expected = self.expected + (~target.isnan()).sum()

    def found(self) -> Tensor:
        """Share of the true points that were predicted to be there, on this rank."""
        return self.count / self.expected.clamp(min=1)


class Found(_MeanOver):
    """Share of the true points that were predicted to be there, in [0, 1]."""

    higher_is_better = True

    def update(self, columns: Tensor, target: Tensor) -> None:
        """Adds a batch of columns (N, lines, R), predicted and true."""
        _require_same_shape(columns, target)
        hits = (~columns.isnan()).to(torch.float32)
        self._add(hits.masked_fill(target.isnan(), torch.nan))


class Bend(_MeanOver):
    """Mean absolute second difference along the rows, of the prediction minus that of the truth, in pixels.

    A line that is right up to a straight shift or a tilt has bend 0.

    Example:
        >>> import torch
        >>> metric = Bend()
        >>> metric.update(torch.tensor([[[0.0, 1.0, 0.0]]]), torch.tensor([[[5.0, 6.0, 7.0]]]))
        >>> float(metric.compute())
        2.0
    """

    def update(self, columns: Tensor, target: Tensor) -> None:
        """Adds a batch of columns (N, lines, R), predicted and true."""
        _require_same_shape(columns, target)
        self._add(bends(columns - target).abs())


class Swing(_MeanOver):
    """Mean absolute frame-to-frame movement of the prediction minus that of the truth, in pixels.

    Frames of one sequence have to be added in their order. A sequence may go on in the next batch.

    Example:
        >>> import torch
        >>> metric = Swing()
        >>> frames = torch.tensor([[[0.0]], [[3.0]], [[9.0]]])
        >>> metric.update(frames, torch.zeros(3, 1, 1), torch.tensor([0, 0, 1]))
        >>> float(metric.compute())
        3.0
    """

    def __init__(self) -> None:
        super().__init__()
        self._last: tuple[Tensor, int] | None = None

    def update(self, columns: Tensor, target: Tensor, sequence: Tensor) -> None:
        """Adds a batch.

        Args:
            columns: Predicted columns, (N, lines, R), NaN where absent.
            target: True columns, (N, lines, R), NaN where absent.
            sequence: Number of each frame's sequence, (N,).

        Raises:
            ValueError: If the shapes differ.
        """
        _require_same_shape(columns, target)
        if len(sequence) != len(columns):
            raise ValueError(f"Expected one sequence number a frame ({len(columns)}), but got {len(sequence)}.")
        if not len(columns):
            return
        error = columns - target
        self._add((error[1:] - error[:-1])[(sequence[1:] == sequence[:-1]).to(error.device)].abs())
        if self._last is not None and self._last[1] == int(sequence[0]):
            self._add((error[0] - self._last[0].to(error.device)).abs())
        self._last = (error[-1], int(sequence[-1]))

    def reset(self) -> None:
        """Forgets everything, the last frame too."""
        super().reset()
        self._last = None
