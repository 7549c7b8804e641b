"""The metrics that validation logs on attacked batches, for several radii, and doubts about them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_robust.callbacks.attacked_batches import AttackInputs, BatchPixels, attack_batch, outside_inference
from lightning_robust.callbacks.module_loss import ModuleLoss, NoLossError, own_step
from lightning_robust.callbacks.robust_validation.batch_evaluator import AskedBatch, BatchEvaluator
from lightning_robust.functional.ascent import AttackRecord
from lightning_robust.functional.attacks import fgsm
from lightning_robust.functional.norm_ball import Norm
from lightning_robust.harness.evaluate import Evaluator
from lightning_robust.harness.inputs import call_forward
from lightning_robust.harness.quiet import muted, quietly
from lightning_robust.harness.steps import call_step


@dataclass
class AttackedEvaluation:
    """Runs the validation (or test) step on attacked batches.

    Radii are taken in rising order, and each attack starts where that of the next smaller radius ended. Batches for
    which the module has no loss are left out.

    Args:
        inputs: What of a batch is perturbed.
        norm: ``"linf"`` or ``"l2"``.
        attack: What perturbs a batch.
        batches: Attacked batches of each loader; all if None.
        seed: Of the random starts.
        prefix: Of the names of arguments in error messages.
    """

    inputs: AttackInputs
    norm: Norm
    attack: BatchEvaluator
    batches: int | None
    seed: int
    prefix: str = ""
    record: AttackRecord = field(default_factory=AttackRecord)
    doubts: dict[str, str] = field(default_factory=dict)
    """Why the metrics may not mean robustness, from the first batch at the largest radius; sentences by kind."""
    attacked: int = 0
    """Batches attacked at the last radius."""
    without_loss: list[NoLossError] = field(default_factory=list)
    """Why each batch was left out that was left out there."""

    def require_rank(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, radii: list[float]) -> None:
        """Refuse a batch whose samples the attack cannot tell apart; see :meth:`.BatchEvaluator.require_rank`."""

        def look(asked: AskedBatch) -> Tensor:
            self.attack.require_rank(asked)
            return asked.view.pixels

        self._perturbed(trainer, pl_module, batch, 0, radii, look)

    def metrics(self, evaluator: Evaluator, radii: list[list[float]]) -> Iterator[dict[str, float]]:
        """The metrics under attack, for each set of radii (one for each input) in rising order.

        Raises:
            NoLossError: If the module has no loss for any batch.
        """
        self.record, self.doubts = AttackRecord(), {}
        starts: dict[tuple[int, int], Tensor] = {}
        for each in sorted(radii):
            self.attack.begin()
            self.attacked, self.without_loss = 0, []
            found = evaluator.metrics(self._attack_at(evaluator, each, starts, last=each == max(radii)), self.batches)
            if self.without_loss and not self.attacked:
                raise self.without_loss[0]
            yield found

    def _attack_at(
        self,
        evaluator: Evaluator,
        radii: list[float],
        starts: dict[tuple[int, int], Tensor],
        *,
        last: bool,
    ) -> Callable[[Any, int, int], Any]:
        """What the evaluation does to each batch: None leaves it out."""
        trainer, pl_module = evaluator.trainer, evaluator.module

        def transform(batch: Any, index: int, loader: int) -> Any:
            def perturb(asked: AskedBatch) -> Tensor:
                found = self.attack.perturb(asked)
                if not last:  # the attack at the next radius begins there
                    starts[loader, index] = found.cpu()
                return found

            start = starts.pop((loader, index), None)
            try:
                attacked, view, loss = self._perturbed(trainer, pl_module, batch, index, radii, perturb, start)
            except NoLossError as error:
                self.without_loss.append(error)
                return None
            if last and not self.attacked:
                self.doubts = self._doubts(trainer, view, loss, attacked)
            self.attacked += 1
            return attacked

        return transform

    def _perturbed(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Any,
        index: int,
        radii: list[float],
        perturb: Callable[[AskedBatch], Tensor],
        start: Tensor | None = None,
    ) -> tuple[Any, BatchPixels, ModuleLoss]:
        """A batch with what ``perturb`` makes of its pixels, without a trace on the module."""
        own, generator = own_step(pl_module), torch.Generator(pl_module.device).manual_seed(self.seed + index)
        module_loss = ModuleLoss(pl_module, lambda part: call_step(own, part, index))
        inputs = self.inputs.in_batch(pl_module, batch)
        view = BatchPixels(inputs, outside_inference(batch), radii)

        def asking(loss: Callable[..., Tensor], pixels: Tensor, radius: Tensor) -> Tensor:
            of_attack = (self.norm, generator, start, self.record, self.prefix)
            return perturb(AskedBatch(pl_module, inputs, view, loss, radius, *of_attack))

        return attack_batch(trainer, view, asking, module_loss, stage="validating"), view, module_loss

    def _doubts(self, trainer: pl.Trainer, view: BatchPixels, loss: ModuleLoss, attacked: Any) -> dict[str, str]:
        """The flags that AutoAttack raises, as far as they make sense for any task."""

        def single_step(raised: Callable[[Tensor], Tensor], pixels: Tensor, radius: Tensor) -> Tensor:
            return fgsm(raised, pixels, radius, norm=self.norm, bounds=self.inputs.range)

        stepped = attack_batch(trainer, view, single_step, loss, stage="validating")
        size = len(view.pixels)

        def loss_of(batch: Any) -> float:
            # each pass finds what the module remembers as it was, such as the queue of a momentum encoder
            with muted(loss.module):
                return loss.mean(batch, size).item()

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
        if by_step > 1.05 * first + 1e-3 and self.attack.has_one_loss:
            doubts["single step"] = (
                f"a single step reaches a higher loss ({by_step:.3g}) than several steps do ({first:.3g})"
            )
        if _are_probabilities(outputs):
            doubts["probabilities"] = (
                "outputs are probabilities: a loss that takes them for logits has hardly a gradient"
            )
        return doubts


def masking_warnings(evaluation: AttackedEvaluation) -> dict[str, str]:
    """Where the metrics may not mean robustness: sentences by kind."""
    doubts = evaluation.doubts | evaluation.attack.doubts()
    told = {kind: f"robust metrics may mean little: {doubt}." for kind, doubt in doubts.items()}
    if evaluation.record.compared_by_batch:
        told["restarts by batch"] = (
            f"`{evaluation.prefix}restarts` help little: the loss of a batch is not the mean of those of its samples "
            "run alone, so the best restart is that of the whole batch. Define `attack_loss(batch)` on the module with "
            "one value for each sample."
        )
    if evaluation.without_loss:
        count, total = len(evaluation.without_loss), len(evaluation.without_loss) + evaluation.attacked
        told["no loss"] = (
            f"the module has no loss for {count} of {total} batches, so the metrics under attack leave them out."
        )
    share = evaluation.record.zero_share
    if share > 0.05:
        told["zero gradients"] = f"{share:.0%} of the gradients are zero at validation: robustness is masked."
    return told


def _are_probabilities(outputs: Any) -> bool:
    """Whether rows lie in [0, 1] and sum to one."""
    if not isinstance(outputs, Tensor) or outputs.ndim != 2 or outputs.shape[1] < 2:
        return False
    inside = bool((outputs >= 0).all()) and bool((outputs <= 1).all())
    return inside and bool(((outputs.float().sum(1) - 1).abs() < 1e-3).all())
