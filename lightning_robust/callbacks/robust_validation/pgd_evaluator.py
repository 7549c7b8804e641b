"""The evaluator of robust validation that climbs the module's own loss by PGD."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_robust.callbacks.robust_validation.batch_evaluator import AskedBatch, BatchEvaluator, PixelLoss
from lightning_robust.functional.ascent import RowLosses
from lightning_robust.functional.attacks import fgsm, pgd
from lightning_robust.harness.inputs import targets_of


@dataclass
class PGDEvaluator(BatchEvaluator):
    """Projected gradient descent on the module's own loss.

    Args:
        steps: Number of steps; 0 takes a single FGSM step.
        restarts: Attacks from random points.
        drop_solved: Whether samples that are taken for another class are attacked no further.
        target_key: Where the classes are in a batch; None: behind the inputs of a sequence, or by a usual name.

    Raises:
        ValueError: For arguments out of range, or that make no sense together.
    """

    steps: int = 10
    restarts: int = 1
    drop_solved: bool = False
    target_key: int | str | None = None

    def check(self, prefix: str) -> None:
        """Refuse arguments of the attack that make no sense, alone or together."""
        if self.steps < 0 or self.restarts < 1 or (self.steps == 0 and (self.drop_solved or self.restarts > 1)):
            raise ValueError(
                f"Expected `{prefix}restarts` of at least 1, and `{prefix}steps` of at least 0, or 1 with restarts or "
                f"`{prefix}drop_solved`, but got {self.restarts} and {self.steps}."
            )
        self.has_one_loss = self.steps > 1 and not self.drop_solved

    def perturb(self, asked: AskedBatch) -> Tensor:
        """Perturbed pixels."""
        settings: dict[str, Any] = {"norm": asked.norm, "bounds": asked.bounds, "record": asked.record}
        pixels = asked.view.pixels
        if self.steps == 0:
            return fgsm(asked.loss, pixels, asked.radius, **settings)
        loss = self._with_solved(asked) if self.drop_solved else asked.loss
        settings |= {"drop_solved": self.drop_solved, "restarts": self.restarts, "generator": asked.generator}
        settings |= {"start": asked.start, "row_losses": single_rows(asked.loss)}
        return pgd(loss, pixels, asked.radius, steps=self.steps, **settings)

    def _with_solved(self, asked: AskedBatch) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """The loss of some rows, and which of them are taken for another class."""
        classes = targets_of(asked.module, asked.view.batch, self.target_key, asked.inputs.given)

        def loss_and_solved(pixels: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            with _outputs_of(asked.module) as outputs:
                value = asked.loss(pixels, rows)
            logits = outputs[-1] if outputs else None
            if not isinstance(classes, Tensor) or not isinstance(logits, Tensor) or logits.ndim != 2:
                raise ValueError(
                    "Expected a classifier whose training step calls it for logits (N, classes), with classes (N,) at "
                    f"`target_key`, to leave out solved samples, but got {type(logits).__name__} and "
                    f"{type(classes).__name__}. Set {asked.prefix}drop_solved=False for other tasks."
                )
            return value, logits.argmax(1) != classes[rows]

        return loss_and_solved


def single_rows(loss: PixelLoss) -> RowLosses:
    """The losses of single samples: a step of the module with each of them alone; None where it fails on one.

    Args:
        loss: ``loss(pixels, rows)`` is the loss of some rows of a batch.
    """

    def row_losses(pixels: Tensor, rows: Tensor) -> Tensor | None:
        # any error of the user's step says that it does not take one sample
        with suppress(Exception):
            singles = [loss(pixels[i : i + 1], rows[i : i + 1]) for i in range(len(rows))]
            return torch.stack([single.reshape(()) for single in singles])
        return None

    return row_losses


@contextmanager
def _outputs_of(module: torch.nn.Module) -> Iterator[list[Any]]:
    """The outputs of the module's forward passes inside the block."""
    outputs: list[Any] = []
    handle = module.register_forward_hook(lambda _, args, output: outputs.append(output))
    try:
        yield outputs
    finally:
        handle.remove()
