"""The evaluator of robust validation with attacks of AutoAttack's grade."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor

from lightning_robust.callbacks.robust_validation.batch_evaluator import AskedBatch, BatchEvaluator
from lightning_robust.functional.worst_case import worst_loss, worst_prediction
from lightning_robust.harness.inputs import targets_of

_TARGETS, _MASKED = 9, 0.01


@dataclass
class AutoEvaluator(BatchEvaluator):
    """Attacks of AutoAttack's grade: on the classes of a classifier, else on a loss of each sample.

    Args:
        steps: Of each APGD.
        targets: Wrong classes that are attacked one by one, at most; None is 9, for classifiers.
        queries: Of the Square attack; 0 leaves it out.
        target_key: Where the classes are in a batch; None: behind the inputs of a sequence, or by a usual name.

    Raises:
        ValueError: For arguments out of range.
    """

    ranks_samples: ClassVar[bool] = True

    steps: int = 50
    targets: int | None = None
    queries: int = 500
    target_key: int | str | None = None
    found: Counter[str] = field(default_factory=Counter, init=False, compare=False, repr=False)
    """How many samples each attack solved."""

    def check(self, prefix: str) -> None:
        """Refuse arguments out of range."""
        if self.steps < 1 or self.queries < 0 or (self.targets or 0) < 0:
            raise ValueError(
                f"Expected `{prefix}steps` of at least 1, `{prefix}targets` and `{prefix}queries` of at least 0, but "
                f"got {self.steps}, {self.targets} and {self.queries}."
            )

    def require_rank(self, asked: AskedBatch) -> None:
        """Refuse outputs that say neither which samples are right nor how wrong each is."""
        self._ranks_classes(asked)

    def begin(self) -> None:
        """Forget what was found with another radius."""
        self.found.clear()

    def perturb(self, asked: AskedBatch) -> Tensor:
        """Perturbed pixels."""
        settings: dict[str, Any] = {"steps": self.steps, "queries": self.queries, "norm": asked.norm}
        settings |= {"bounds": asked.bounds, "start": asked.start, "generator": asked.generator}
        settings |= {"record": asked.record}
        pixels = asked.view.pixels
        if self._ranks_classes(asked):
            targets = _TARGETS if self.targets is None else self.targets
            classes = self._classes(asked)
            found = worst_prediction(asked.outputs, pixels, classes, asked.radius, targets=targets, **settings)
        else:
            found = worst_loss(asked.loss, pixels, asked.radius, **settings)
        self.found.update({**found.found, "samples": len(pixels)})
        return found.inputs

    def _ranks_classes(self, asked: AskedBatch) -> bool:
        """Whether samples are ranked by their classes, and not by the loss of each.

        Raises:
            ValueError: If by neither, saying what outputs are and what to define.
        """
        pixels = asked.view.pixels
        with torch.no_grad():
            output = asked.outputs(pixels)
            if _class_logits(output, self._classes(asked)):
                return True
            losses = asked.loss(pixels) if hasattr(asked.module, "attack_loss") else None
        if losses is None or losses.shape != (len(pixels),):
            told = "which the module does not define" if losses is None else "but it gives one value for the batch"
            raise ValueError(
                "Expected outputs that evaluator='auto' can rank sample by sample: logits (N, classes) with classes "
                f"(N,), int64, in the batch, where `target_key` says, or `attack_loss(batch)` with one value for each "
                f"sample, {told}. `forward` of {type(asked.module).__name__} gives {_kind_of_output(output)}. Define "
                "`attack_loss`, or take evaluator='pgd', which climbs the loss of the batch."
            )
        if self.targets is not None:
            raise ValueError(
                "Expected no `targets` where evaluator='auto' climbs `attack_loss`, which has no wrong classes, but "
                f"got {self.targets}. Leave it out."
            )
        return False

    def doubts(self) -> dict[str, str]:
        """Where the Square attack solves what gradients do not: AutoAttack's flag of masked gradients."""
        if self.found["Square"] <= _MASKED * self.found["samples"]:
            return {}
        share = self.found["Square"] / self.found["samples"]
        return {"square": f"{share:.1%} of the samples fall to Square, which needs no gradient, and to no other attack"}

    def _classes(self, asked: AskedBatch) -> Any:
        with suppress(LookupError, TypeError, AttributeError, MisconfigurationException):
            return targets_of(asked.module, asked.view.batch, self.target_key, asked.inputs.given)
        return None


def _class_logits(output: Any, classes: Any) -> bool:
    """Whether outputs are logits of the classes of a batch."""
    if not isinstance(output, Tensor) or not isinstance(classes, Tensor):
        return False
    fits = output.ndim == 2 and output.is_floating_point() and output.shape[1] > 1
    if not fits or classes.dtype != torch.int64 or classes.shape != output.shape[:1]:
        return False
    return bool(((classes >= 0) & (classes < output.shape[1])).all())


def _kind_of_output(output: Any) -> str:
    return f"{tuple(output.shape)} of {output.dtype}" if isinstance(output, Tensor) else type(output).__name__
