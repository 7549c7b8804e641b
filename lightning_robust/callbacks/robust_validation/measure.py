"""The metrics that validation logs on attacked batches, for several radii, and doubts about them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_robust.callbacks.attacked_batches import (
    AttackInputs,
    BatchPixels,
    ModuleLoss,
    attack_batch,
    outside_inference,
    own_step,
)
from lightning_robust.functional.ascent import AttackRecord, RowLosses
from lightning_robust.functional.attacks import fgsm, pgd
from lightning_robust.functional.norm_ball import Norm
from lightning_robust.harness.evaluate import Evaluator
from lightning_robust.harness.inputs import call_forward
from lightning_robust.harness.quiet import muted, quietly
from lightning_robust.harness.steps import call_step
from lightning_robust.structures import Key, get_item


def check_attack(norm: str, steps: int, restarts: int, drop_solved: bool, prefix: str) -> None:
    """Refuse arguments of the attack that make no sense, alone or together.

    Raises:
        ValueError: Naming them.
    """
    if norm not in ("linf", "l2"):
        raise ValueError(f"Expected `norm` to be 'linf' or 'l2', but got {norm!r}.")
    if steps < 0 or restarts < 1 or (steps == 0 and (drop_solved or restarts > 1)):
        raise ValueError(
            f"Expected `{prefix}restarts` of at least 1, and `{prefix}steps` of at least 0, or 1 with restarts or "
            f"`{prefix}drop_solved`, but got {restarts} and {steps}."
        )


@dataclass
class AttackedEvaluation:
    """Runs the validation (or test) step on attacked batches.

    Radii are taken in rising order, and each attack starts where that of the next smaller radius ended.

    Args:
        inputs: What of a batch is perturbed.
        norm: ``"linf"`` or ``"l2"``.
        steps: Of PGD; 0 is a single FGSM step.
        restarts: Attacks from random points, of which the highest loss counts.
        batches: Attacked batches of each loader; all if None.
        seed: Of the random starts.
        drop_solved: Where the classes are in a batch; samples that are taken for another class are then attacked no
            further. None attacks all of them to the end.
        prefix: Of the names of arguments in error messages.
    """

    inputs: AttackInputs
    norm: Norm
    steps: int
    restarts: int
    batches: int | None
    seed: int
    drop_solved: Key | None = None
    prefix: str = ""
    record: AttackRecord = field(default_factory=AttackRecord)
    doubts: dict[str, str] = field(default_factory=dict)
    """Why the metrics may not mean robustness, from the first batch at the largest radius; sentences by kind."""

    def metrics(self, evaluator: Evaluator, radii: list[list[float]]) -> list[dict[str, float]]:
        """The metrics under attack, for each set of radii (one for each input) in rising order."""
        self.record = AttackRecord()
        starts: dict[tuple[int, int], Tensor] = {}
        return [
            evaluator.metrics(self._attack_at(evaluator, each, starts, last=each == max(radii)), self.batches)
            for each in sorted(radii)
        ]

    def _attack_at(
        self,
        evaluator: Evaluator,
        radii: list[float],
        starts: dict[tuple[int, int], Tensor],
        *,
        last: bool,
    ) -> Callable[[Any, int, int], Any]:
        """What the evaluation does to each batch."""
        trainer, pl_module = evaluator.trainer, evaluator.module
        own = own_step(pl_module)

        def transform(batch: Any, index: int, loader: int) -> Any:
            generator = torch.Generator(pl_module.device).manual_seed(self.seed + index)
            module_loss = ModuleLoss(pl_module, lambda part: call_step(own, part, index))
            view = BatchPixels(self.inputs.in_batch(pl_module, batch), outside_inference(batch), radii)

            def perturb(loss: Callable[..., Tensor], pixels: Tensor, radius: Tensor) -> Tensor:
                raised = loss if self.drop_solved is None else self._with_solved(pl_module, loss, batch)
                where = {"start": starts.get((loader, index)), "row_losses": single_rows(loss)}
                starts[loader, index] = self._attack(raised, pixels, radius, generator, where)
                return starts[loader, index]

            attacked = attack_batch(trainer, view, perturb, module_loss, stage="validating")
            if last and (loader, index) == (0, 0):
                self.doubts = self._doubts(trainer, view, module_loss, attacked)
            return attacked

        return transform

    def _attack(
        self,
        loss: Callable[..., Any],
        pixels: Tensor,
        radius: Tensor,
        generator: torch.Generator,
        of_pgd: dict[str, Any],
    ) -> Tensor:
        settings: dict[str, Any] = {"norm": self.norm, "bounds": self.inputs.range, "record": self.record}
        if self.steps == 0:
            return fgsm(loss, pixels, radius, **settings)
        settings |= {"drop_solved": self.drop_solved is not None, "restarts": self.restarts, "generator": generator}
        return pgd(loss, pixels, radius, steps=self.steps, **settings, **of_pgd)

    def _with_solved(
        self, pl_module: pl.LightningModule, loss: Callable[..., Tensor], batch: Any
    ) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """The loss of some rows, and which of them are taken for another class."""
        classes = None if self.drop_solved is None else get_item(batch, self.drop_solved)

        def loss_and_solved(pixels: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            with _outputs_of(pl_module) as outputs:
                value = loss(pixels, rows)
            logits = outputs[-1] if outputs else None
            if not isinstance(classes, Tensor) or not isinstance(logits, Tensor) or logits.ndim != 2:
                raise ValueError(
                    "Expected a classifier whose training step calls it for logits (N, classes), with classes (N,) at "
                    f"`target_key`, to leave out solved samples, but got {type(logits).__name__} and "
                    f"{type(classes).__name__}. Set {self.prefix}drop_solved=False for other tasks."
                )
            return value, logits.argmax(1) != classes[rows]

        return loss_and_solved

    def _doubts(self, trainer: pl.Trainer, view: BatchPixels, loss: ModuleLoss, attacked: Any) -> dict[str, str]:
        """The flags that AutoAttack raises, as far as they make sense for any task."""

        def single_step(raised: Callable[[Tensor], Tensor], pixels: Tensor, radius: Tensor) -> Tensor:
            return fgsm(raised, pixels, radius, norm=self.norm, bounds=self.inputs.range)

        stepped = attack_batch(trainer, view, single_step, loss, stage="validating")
        size = len(view.pixels)

        def loss_of(batch: Any) -> float:
            # each pass finds what the module remembers as it was, such as the queue of a momentum encoder
            with muted(loss.module):
                return loss(batch, size).mean().item()

        with quietly(trainer, loss.module, "validating"), torch.no_grad():
            first, again, by_step = (loss_of(batch) for batch in (attacked, attacked, stepped))
            outputs = None
            # the check is skipped for a forward that takes other parts of the batch than the perturbed ones
            with suppress(Exception):
                outputs = call_forward(loss.module, view.batch)
        doubts = {}
        if abs(first - again) > 1e-3 * abs(first):
            doubts["random"] = "the loss of one batch differs between two passes: random outputs hide the gradient"
        # losses near zero differ by rounding
        if by_step > 1.05 * first + 1e-3 and self.steps > 1 and self.drop_solved is None:
            doubts["single step"] = (
                f"a single step reaches a higher loss ({by_step:.3g}) than {self.steps} steps do ({first:.3g})"
            )
        if _are_probabilities(outputs):
            doubts["probabilities"] = (
                "outputs are probabilities: a loss that takes them for logits has hardly a gradient"
            )
        return doubts


def masking_warnings(evaluation: AttackedEvaluation) -> dict[str, str]:
    """Where the metrics may not mean robustness: sentences by kind."""
    told = {kind: f"robust metrics may mean little: {doubt}." for kind, doubt in evaluation.doubts.items()}
    if evaluation.record.compared_by_batch and evaluation.restarts > 1:
        told["restarts by batch"] = (
            f"`{evaluation.prefix}restarts` help little: the loss of a batch is not the mean of those of its samples "
            "run alone, so the best restart is that of the whole batch. Define `attack_loss(batch)` on the module with "
            "one value for each sample."
        )
    share = evaluation.record.zero_share
    if share > 0.05:
        told["zero gradients"] = f"{share:.0%} of the gradients are zero at validation: robustness is masked."
    return told


def single_rows(loss: Callable[[Tensor, Tensor], Tensor]) -> RowLosses:
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


def _are_probabilities(outputs: Any) -> bool:
    """Whether rows lie in [0, 1] and sum to one."""
    if not isinstance(outputs, Tensor) or outputs.ndim != 2 or outputs.shape[1] < 2:
        return False
    inside = bool((outputs >= 0).all()) and bool((outputs <= 1).all())
    return inside and bool(((outputs.float().sum(1) - 1).abs() < 1e-3).all())
