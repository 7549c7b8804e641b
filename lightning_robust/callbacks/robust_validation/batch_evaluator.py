"""One batch to perturb, and what every evaluator of robust validation does with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_robust.callbacks.attacked_batches import AttackInputs, BatchPixels
from lightning_robust.functional.ascent import AttackRecord
from lightning_robust.functional.norm_ball import Bounds, Norm
from lightning_robust.harness.inputs import call_forward

PixelLoss = Callable[..., Tensor]
"""``loss(pixels)``, or ``loss(pixels, rows)`` of some samples."""
Reduce = Callable[[Tensor], Tensor]
"""Adds counts over ranks."""


@dataclass
class AskedBatch:
    """What of one batch is to be perturbed, and by how much.

    Args:
        module: The module.
        inputs: What of the batch is perturbed.
        view: The batch and its pixels.
        loss: The loss that ``attack_loss`` or the training step has for other pixels.
        radius: Broadcasts to the pixels.
        norm: ``"linf"`` or ``"l2"``.
        generator: Source of random numbers.
        start: Where the attack with the next smaller radius ended.
        record: Counts passes and gradients.
        prefix: Of the names of arguments in messages.
    """

    module: pl.LightningModule
    inputs: AttackInputs
    view: BatchPixels
    loss: PixelLoss
    radius: Tensor
    norm: Norm
    generator: torch.Generator
    start: Tensor | None
    record: AttackRecord
    prefix: str

    @property
    def bounds(self) -> Bounds | None:
        """Smallest and largest pixel."""
        return self.inputs.range

    def outputs(self, pixels: Tensor, rows: Tensor | None = None) -> Any:
        """What ``forward`` gives for other pixels of some samples."""
        some = None if rows is None or len(rows) == len(self.view.pixels) else rows
        return call_forward(self.module, self.view.batch_with(pixels, some), self.inputs.given)


class BatchEvaluator:
    """What perturbs batches; its arguments are attributes of the same names."""

    judges_metrics: ClassVar[bool] = True
    """Whether the module's own metrics on perturbed batches are what is asked for."""
    ranks_samples: ClassVar[bool] = False
    """Whether it needs to tell the samples of a batch apart."""
    has_one_loss: bool = False
    """Whether all of it climbs one loss to the end, so that a single step cannot reach a higher one."""

    def check(self, prefix: str) -> None:
        """Refuse arguments that make no sense, alone or together."""

    def require_rank(self, asked: AskedBatch) -> None:
        """Refuse a batch whose samples it cannot tell apart."""

    def begin(self) -> None:
        """Forget what was found with another radius, or in another validation."""

    def perturb(self, asked: AskedBatch) -> Tensor:
        """Perturbed pixels."""
        raise NotImplementedError

    def scalars(self, metrics: Mapping[str, float], eps: float, reduce: Reduce) -> dict[str, float]:
        """What is logged, by tag.

        Args:
            metrics: Of the module, on the perturbed batches.
            eps: The radius.
            reduce: Adds counts over ranks.
        """
        return {f"adversarial/{name.replace('/', '_')}@{eps:g}": value for name, value in metrics.items()}

    def doubts(self) -> dict[str, str]:
        """Why what it found may not mean robustness; sentences by kind."""
        return {}
