"""Robust validation under attack: the radii, what is logged of each, and what the callback draws later."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import lightning.pytorch as pl
from torch import Tensor

from lightning_robust.callbacks.robust_validation.evaluators import EvaluatorName
from lightning_robust.callbacks.robust_validation.measure import AttackedEvaluation, masking_warnings
from lightning_robust.harness.arguments import parse_fraction
from lightning_robust.harness.evaluate import Evaluator
from lightning_robust.harness.ranks import Guard
from lightning_robust.tables import number


class AttackedValidation:
    """Evaluates the weights of a validation under an attack of each radius, on the same batches.

    Args:
        evaluation: Attacks batches and evaluates them.
        radii: In rising order.
        proportions: Radii of several inputs relative to each other; None gives all the same.
    """

    def __init__(
        self, evaluation: AttackedEvaluation, radii: Sequence[float], proportions: Sequence[float] | None
    ) -> None:
        self.evaluation, self._given, self._proportions = evaluation, radii, proportions
        self.found: list[dict[str, float]] = []
        """The module's metrics in the last validation, for each radius; empty where it is not judged by them."""

    def check(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any) -> None:
        """Refuse batches whose samples the evaluator cannot tell apart.

        Raises:
            ValueError: Saying what outputs are, and what to define.
        """
        if self.evaluation.attack.ranks_samples:
            self.evaluation.require_rank(trainer, pl_module, batch, self._radii[-1])

    def measure_and_log(self, evaluator: Evaluator, guard: Guard) -> Iterator[tuple[float, str]]:
        """Evaluate and log; each radius and what was found there in words."""
        attack, module, trainer = self.evaluation.attack, evaluator.module, evaluator.trainer
        found: list[dict[str, float]] = []

        def reduce(counts: Tensor) -> Tensor:
            total: Tensor = trainer.strategy.reduce(counts.to(module.device), reduce_op="sum")
            return total.cpu()

        for radius, values in zip(self._given, self.evaluation.metrics(evaluator, self._radii), strict=True):
            tags = attack.scalars(values, radius, reduce)
            module.log_dict(tags, sync_dist=True, add_dataloader_idx=False)
            found += [values] if attack.judges_metrics else []
            told = values if attack.judges_metrics else tags
            yield radius, ", ".join(f"{name} {number(value)}" for name, value in told.items())
        self.found = found
        for kind, warning in masking_warnings(self.evaluation).items():
            guard.warn(warning, key=kind)

    @property
    def _radii(self) -> list[list[float]]:
        """The radius of each input, for each of the given ones."""
        proportions = self._proportions or [1.0] * len(self.evaluation.inputs.keys)
        return [[radius * each / proportions[0] for each in proportions] for radius in self._given]


def check_proportions(proportions: Sequence[float] | None, inputs: int) -> None:
    """Refuse radii of several inputs that are none, or that there is no first one to count from.

    Raises:
        ValueError: With what was given.
    """
    if proportions is None:
        return
    if len(proportions) != inputs or proportions[0] == 0 or not all(0 <= each < math.inf for each in proportions):
        raise ValueError(
            f"Expected `proportions` for each of {inputs} inputs, of at least 0 and the first above 0, but got "
            f"{proportions}."
        )


def sorted_radii(
    eps: float | str | list[float | str], evaluator: EvaluatorName, prefix: str, *, needed: bool
) -> list[float]:
    """Radii in rising order.

    Args:
        eps: Numbers or quotients, one or several.
        evaluator: What attacks with them.
        prefix: Of the names of arguments in messages.
        needed: Whether none is refused.

    Raises:
        ValueError: For none, for what is no radius, or for one that the evaluator can do nothing with.

    Example:
        >>> sorted_radii(["8/255", 0.01], "pgd", "", needed=True)
        [0.01, 0.03137254901960784]
    """
    radii = sorted(parse_fraction(value, f"{prefix}eps") for value in (eps if isinstance(eps, list) else [eps]))
    if not radii and needed:
        raise ValueError(f"Expected at least one radius in `{prefix}eps`, but got none.")
    if evaluator != "pgd" and radii and radii[0] == 0:
        raise ValueError(
            f"Expected `{prefix}eps` above 0 with evaluator={evaluator!r}, but got 0, with which nothing is attacked. "
            "Leave it out: validation logs the clean metrics by itself."
        )
    if evaluator == "smallest_eps" and len(radii) != 1:
        raise ValueError(
            f"Expected one `{prefix}eps` with evaluator='smallest_eps', the largest radius that is tried, but got "
            f"{len(radii)}."
        )
    return radii
