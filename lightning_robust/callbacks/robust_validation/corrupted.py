"""Validation on corrupted batches: the metrics under each corruption, their mean corruption error, and its file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from lightning_robust.callbacks.attacked_batches import AttackInputs
from lightning_robust.callbacks.conditions import name_of, named_entries, pictured, require_pictures, sequence_length
from lightning_robust.callbacks.robust_validation.corruption_error import (
    CLEAN_NAME,
    UnderEach,
    errors,
    mean_corruption_error,
    mean_error,
    means,
    read_baseline,
)
from lightning_robust.callbacks.robust_validation.corruption_figure import corruption_figures
from lightning_robust.deployment.pixels.corruptions import Corruption
from lightning_robust.harness.batches import count_samples
from lightning_robust.harness.directions import Mode, named_direction, words_of
from lightning_robust.harness.evaluate import Evaluator
from lightning_robust.harness.folders import output_folder
from lightning_robust.harness.ranks import Guard
from lightning_robust.harness.trainers import find_callbacks, is_fast_dev_run
from lightning_robust.progress import track
from lightning_robust.tables import number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FOLDER, FILE = "robust_validation", "corruptions.json"


class CorruptedValidation:
    """Evaluates the weights of a validation clean and under each condition, on the same batches.

    Args:
        under: Names of corruptions and perturbations.
        baseline: Numbers of another run, or the path of its ``corruptions.json``; None for none.
        inputs: Where in a batch the pictures are, and how they were normalised.
        batches: Batches of each loader; all if None.
        prefix: Of the names of arguments in messages.

    Raises:
        ValueError: For no name, an unknown one, or a baseline that lacks a condition.
    """

    def __init__(
        self,
        under: str | list[str],
        baseline: str | Mapping[str, Any] | None,
        inputs: AttackInputs,
        batches: int | None,
        prefix: str = "",
    ) -> None:
        names = [under] if isinstance(under, str) else under
        if not names:
            raise ValueError(
                f"Expected at least one corruption or perturbation in `{prefix}under`, but got none. Leave it out, or "
                "name some, such as 'fog@3'; 'corruptions' is all of them."
            )
        self.entries = named_entries(names)
        conditions = [name_of(entry) for entry in self.entries]
        self.baseline = None if baseline is None else read_baseline(baseline, conditions, f"{prefix}baseline")
        self.measured: UnderEach = {}
        """What the last validation found."""
        self._inputs, self._batches = inputs, batches

    def check(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, guard: Guard) -> None:
        """Refuse batches that the corruptions cannot be put on, and say where a batch cuts a sequence.

        Raises:
            ValueError: Saying which, and why.
        """
        require_pictures(trainer, pl_module, batch, self.entries, self._inputs)
        size, frames = count_samples(batch), sequence_length(trainer, pl_module)
        if size % frames and any(isinstance(entry, Corruption) and entry.in_time for entry in self.entries):
            guard.warn(
                f"batches of {size} pictures cut sequences of {frames} frames, so that corruptions in time begin anew "
                "within them. Take a batch size that is a multiple of `sequence_length`.",
                key="cut sequences",
            )

    def measure_and_log(self, evaluator: Evaluator, guard: Guard) -> str:
        """Evaluate, log, write the file; the finding in one sentence."""
        trainer = evaluator.trainer
        self.measure(evaluator)
        scalars = self.scalars(trainer, guard)
        evaluator.module.log_dict(scalars, sync_dist=True, add_dataloader_idx=False)
        guard.attempt(trainer, lambda: self.write(trainer), "corruptions.json is not written", once=True)
        return self.tell(trainer, scalars)

    def measure(self, evaluator: Evaluator) -> None:
        """Evaluate clean and under each condition."""
        trainer, module = evaluator.trainer, evaluator.module
        measured = {CLEAN_NAME: evaluator.metrics(limit=self._batches)}
        for entry in track(self.entries, "Corruptions"):
            condition = pictured(trainer, module, entry, self._inputs)
            measured[condition.name] = evaluator.metrics(condition.transform, self._batches)
        common = [name for name in measured[CLEAN_NAME] if all(name in metrics for metrics in measured.values())]
        self.measured = {each: {name: metrics[name] for name in common} for each, metrics in measured.items()}

    def scalars(self, trainer: pl.Trainer, guard: Guard) -> dict[str, float]:
        """What is logged of the last validation."""
        scalars = {
            f"corruption/{corruption}/{metric.replace('/', '_')}": value
            for corruption, metrics in means(self.measured).items()
            for metric, value in metrics.items()
        }
        return scalars | self.summary(trainer, guard)

    def summary(self, trainer: pl.Trainer, guard: Guard) -> dict[str, float]:
        """The mean corruption error of the metric that counts, and relative to the baseline; empty where none does."""
        judged = judged_metric(trainer, list(self.measured[CLEAN_NAME]))
        found = None if judged is None else errors(self.measured, *judged)
        if judged is None or found is None:
            guard.warn(
                "no mean corruption error is logged: no metric of the validation is known to be an error, or "
                "an accuracy from 0 to 1. Watch one with ModelCheckpoint or EarlyStopping, which say its mode.",
                key="no error",
            )
            return {}
        summary = {"corruption/mean_error": mean_error(found)}
        if self.baseline is not None:
            summary |= self._relative(found, judged, guard)
        return summary

    def _relative(self, found: Mapping[str, float], judged: tuple[str, Mode], guard: Guard) -> dict[str, float]:
        baseline = self.baseline or {}
        metric = judged[0]
        if not all(metric in baseline[name] for name in found if name != CLEAN_NAME):
            guard.warn(f"there is no mCE: the baseline has no {metric}. Measure it with the same module.", key="metric")
            return {}
        others = errors({name: baseline[name] for name in found if name in baseline}, *judged)
        try:
            return {} if others is None else {"corruption/mce": mean_corruption_error(found, others)}
        except ZeroDivisionError:
            guard.warn(f"there is no mCE: the baseline makes no error in {metric} under a corruption.", key="zero")
            return {}

    def tell(self, trainer: pl.Trainer, summary: Mapping[str, float]) -> str:
        """The finding in one sentence."""
        judged = judged_metric(trainer, list(self.measured[CLEAN_NAME]))
        if judged is None:
            return f"measured under {len(self.entries)} conditions"
        metric, mode = judged
        each = {name: metrics[metric] for name, metrics in means(self.measured).items()}
        worst = (max if mode == "min" else min)(each, key=lambda name: each[name])
        mean = sum(each.values()) / len(each)
        told = (
            f"{metric} {number(self.measured[CLEAN_NAME][metric])} clean, {number(mean)} in the mean over {len(each)} "
            f"corruptions, worst {worst} with {number(each[worst])}"
        )
        relative = summary.get("corruption/mce")
        return told if relative is None else f"{told}; mCE {number(relative)} of the baseline's"

    def write(self, trainer: pl.Trainer) -> None:
        """Write ``corruptions.json``, which another run takes for its baseline."""
        folder = output_folder(trainer, None, FOLDER, FILE)
        if trainer.is_global_zero and not is_fast_dev_run(trainer):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / FILE).write_text(json.dumps(self.measured, indent=2))

    def figures(self, trainer: pl.Trainer) -> dict[str, Callable[[], Figure]]:
        """What draws each figure, by tag."""
        if not self.measured:
            return {}
        judged = judged_metric(trainer, list(self.measured[CLEAN_NAME]))
        names = [metric for metric in self.measured[CLEAN_NAME] if judged is None or metric != judged[0]]
        return corruption_figures(self.measured, [*([judged[0]] if judged else []), *names])


def judged_metric(trainer: pl.Trainer, metrics: list[str]) -> tuple[str, Mode] | None:
    """The metric that counts, and its better direction.

    That is the first one that a ModelCheckpoint or EarlyStopping callback watches, else the first whose name says what
    is better; losses come last.
    """
    for watcher in find_callbacks(trainer, ModelCheckpoint | EarlyStopping):
        if watcher.monitor in metrics:
            return watcher.monitor, "max" if watcher.mode == "max" else "min"
    known = [(name, mode) for name in metrics if (mode := named_direction(name)) is not None]
    return min(known, key=lambda pair: bool({"loss", "losses"} & {*words_of(pair[0])}), default=None)
