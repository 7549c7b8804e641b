"""Validation on attacked batches, for several radii. Attacks are in ``functional``, hooks in the callback."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_robust.callbacks.attack_objective import AttackInputs, AttackObjective
from lightning_robust.functional.attacks import AttackRecord, Norm, fgsm, pgd
from lightning_robust.utilities.evaluation import Evaluator


@dataclass
class RobustValidation:
    """Runs the validation (or test) step on attacked batches.

    Radii are taken in rising order, and each attack begins where the one with the smaller radius ended.
    """

    inputs: AttackInputs
    norm: Norm
    steps: int
    """Of PGD; 0 is a single FGSM step."""
    batches: int | None
    """Of each loader; all if None."""
    seed: int
    record: AttackRecord = field(default_factory=AttackRecord)

    def metrics(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        step: Callable[..., Any],
        radii: list[list[float]],
    ) -> list[dict[str, float]]:
        """What validation logs under attack, for each set of radii (one for each input)."""
        self.record = AttackRecord()
        starts: dict[tuple[int, int], Tensor] = {}
        found = []
        for each in sorted(radii):

            def transform(batch: Any, index: int, loader: int, reach: list[float] = each) -> Any:
                generator = torch.Generator(pl_module.device).manual_seed(self.seed + index)

                def perturb(loss: Callable[[Tensor], Tensor], inputs: Tensor, radius: Tensor) -> Tensor:
                    start = starts.get((loader, index))
                    starts[loader, index] = self._attack(loss, inputs, radius, start, generator)
                    return starts[loader, index]

                objective = AttackObjective(
                    trainer, pl_module, lambda part: step(part, index), batch, self.inputs, "same"
                )
                return objective.attacked(perturb, reach)

            found.append(Evaluator(trainer, pl_module).metrics(transform, self.batches))
        return found

    def _attack(
        self,
        loss: Callable[[Tensor], Tensor],
        inputs: Tensor,
        radius: Tensor,
        start: Tensor | None,
        generator: torch.Generator,
    ) -> Tensor:
        common: dict[str, Any] = {"norm": self.norm, "bounds": self.inputs.range, "record": self.record}
        if self.steps == 0:
            return fgsm(loss, inputs, radius, **common)
        return pgd(loss, inputs, radius, steps=self.steps, start=start, generator=generator, **common)
