"""Validation on attacked batches, for several radii. Attacks are in ``functional``, hooks in the callback."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_robust.callbacks.adversarial.objective import AttackInputs, AttackObjective
from lightning_robust.functional.attacks import AttackRecord, fgsm, pgd
from lightning_robust.functional.norm_ball import Norm
from lightning_robust.harness.evaluate import Evaluator
from lightning_robust.harness.steps import call_step
from lightning_robust.structures import Key, get_args, get_item


@dataclass
class RobustValidation:
    """Runs the validation (or test) step on attacked batches.

    Radii are taken in rising order, and each attack begins where the one with the smaller radius ended.
    """

    inputs: AttackInputs
    norm: Norm
    steps: int
    """Of PGD; 0 is a single FGSM step."""
    restarts: int
    batches: int | None
    """Of each loader; all if None."""
    seed: int
    drop_solved: Key | None = None
    """Where the classes are in a batch; samples that are taken for another class are then attacked no further."""
    record: AttackRecord = field(default_factory=AttackRecord)
    doubts: list[str] = field(default_factory=list)
    """Why the numbers may not mean robustness, in words; found on the first batch at the largest radius."""

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

                def perturb(loss: Callable[..., Tensor], inputs: Tensor, radius: Tensor) -> Tensor:
                    start = starts.get((loader, index))
                    judged = loss if self.drop_solved is None else self._judged(pl_module, loss, batch)
                    starts[loader, index] = self._attack(judged, inputs, radius, start, generator)
                    return starts[loader, index]

                objective = AttackObjective(
                    trainer,
                    pl_module,
                    lambda part: call_step(step, part, index),
                    batch,
                    self.inputs,
                    "same",
                    "validating",
                )
                attacked = objective.attacked(perturb, reach)
                if (loader, index) == (0, 0) and reach == max(radii):
                    self.doubts = self._doubts(pl_module, objective, attacked, reach)
                return attacked

            found.append(Evaluator(trainer, pl_module).metrics(transform, self.batches))
        return found

    def _doubts(
        self, pl_module: pl.LightningModule, objective: AttackObjective, attacked: Any, reach: list[float]
    ) -> list[str]:
        """The flags that AutoAttack raises, as far as they can be told for any task."""

        def single(loss: Callable[[Tensor], Tensor], inputs: Tensor, radius: Tensor) -> Tensor:
            return fgsm(loss, inputs, radius, norm=self.norm, bounds=self.inputs.range)

        stepped = objective.attacked(single, reach)
        with objective.quiet(), torch.no_grad():
            losses = [objective.loss_of(each).mean().item() for each in (attacked, attacked, stepped)]
            outputs = None
            # a forward that takes other parts of the batch than the perturbed ones is not looked at
            with suppress(Exception):
                outputs = pl_module(*get_args(objective.batch, self.inputs.keys))
        found = []
        if abs(losses[0] - losses[1]) > 1e-3 * abs(losses[0]):
            found.append("the loss of one batch differs between two passes: random outputs hide the gradient")
        # losses near nothing differ by rounding
        if losses[2] > 1.05 * losses[0] + 1e-3 and self.steps > 1 and self.drop_solved is None:
            found.append(
                f"a single step reaches a higher loss ({losses[2]:.3g}) than {self.steps} steps do ({losses[0]:.3g})"
            )
        if _are_probabilities(outputs):
            found.append("outputs are probabilities; a loss that takes them for logits has hardly any gradient")
        return found

    def _judged(
        self, pl_module: pl.LightningModule, loss: Callable[..., Tensor], batch: Any
    ) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """The loss of some rows, and which of them are taken for another class."""
        classes = get_item(batch, self.drop_solved) if self.drop_solved is not None else None

        def judged(tensor: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            with _outputs(pl_module) as outputs:
                value = loss(tensor, rows)
            logits = outputs[-1] if outputs else None
            if not isinstance(classes, Tensor) or not isinstance(logits, Tensor) or logits.ndim != 2:
                raise ValueError(
                    "Expected a classifier whose training step calls it for logits (N, classes), with classes (N,) at "
                    f"`target_key`, to leave out what is solved, but got {type(logits).__name__} and "
                    f"{type(classes).__name__}. Set val_drop_solved=False for other tasks."
                )
            return value, logits.argmax(1) != classes[rows]

        return judged

    def _attack(
        self,
        loss: Callable[..., Any],
        inputs: Tensor,
        radius: Tensor,
        start: Tensor | None,
        generator: torch.Generator,
    ) -> Tensor:
        common: dict[str, Any] = {"norm": self.norm, "bounds": self.inputs.range, "record": self.record}
        if self.steps == 0:
            return fgsm(loss, inputs, radius, **common)
        common |= {"drop_solved": self.drop_solved is not None, "restarts": self.restarts}
        return pgd(loss, inputs, radius, steps=self.steps, start=start, generator=generator, **common)


@contextmanager
def _outputs(module: torch.nn.Module) -> Iterator[list[Any]]:
    """What the module's forward passes inside the block gave."""
    found: list[Any] = []
    handle = module.register_forward_hook(lambda _, args, output: found.append(output))
    try:
        yield found
    finally:
        handle.remove()


def _are_probabilities(outputs: Any) -> bool:
    """Whether rows lie in [0, 1] and sum to one."""
    if not isinstance(outputs, Tensor) or outputs.ndim != 2 or outputs.shape[1] < 2:
        return False
    inside = bool((outputs >= 0).all()) and bool((outputs <= 1).all())
    return inside and bool(((outputs.float().sum(1) - 1).abs() < 1e-3).all())
