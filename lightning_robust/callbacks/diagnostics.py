"""What the diagnostics share: one report of scalars, tables and figures, and one guard around measuring it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info
from typing_extensions import override

from lightning_robust.callbacks.attacked_batches import AttackInputs
from lightning_robust.callbacks.conditions import ATTACK, PGD, Condition, attacked, named_entries, pictured
from lightning_robust.callbacks.module_loss import require_own_loss
from lightning_robust.checks import check_texts
from lightning_robust.deployment.pixels.corruptions.names import MIDDLE
from lightning_robust.harness.arguments import parse_fraction
from lightning_robust.harness.closing import join_summary, note_step
from lightning_robust.harness.inputs import require_inputs
from lightning_robust.harness.logging import log_figure, log_scalars, log_table, write_layout
from lightning_robust.harness.memory import require_reversible
from lightning_robust.harness.ranks import Guard
from lightning_robust.harness.trainers import is_fast_dev_run, refuse_sharded
from lightning_robust.structures import Key

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Table = tuple[Sequence[str], Sequence[Sequence[str]]]
"""Names of the columns, and the rows."""


@dataclass(frozen=True)
class Report:
    """The result of a diagnostic, ready to be logged by :func:`show`.

    Args:
        scalars: Numbers by tag.
        tables: Tables by tag.
        figures: What draws a figure, by tag; called only where there is a logger.
        sentences: For the terminal.
        unlogged: Numbers by tag for ``trainer.callback_metrics`` alone: they can be monitored, and no logger gets them.
    """

    scalars: Mapping[str, float] = field(default_factory=dict)
    tables: Mapping[str, Table] = field(default_factory=dict)
    figures: Mapping[str, Callable[[], Figure]] = field(default_factory=dict)
    sentences: Sequence[str] = ()
    unlogged: Mapping[str, float] = field(default_factory=dict)


def show(
    trainer: pl.Trainer,
    report: Report,
    module: pl.LightningModule | None = None,
    step: tuple[str, pl.LightningModule] | None = None,
) -> None:
    """Log a report; the scalars first, so that a table or figure that fails costs nothing else.

    Args:
        trainer: The Trainer.
        report: What to log.
        module: Logs the scalars by its ``log_dict``, inside of the loops; None writes them to the loggers directly,
            after the fit.
        step: What the sentences belong to in the closing summary: the key of the technique, and the module whose
            weights it measured. None prints them at once.
    """
    # not by `log_dict(logger=False)`: Lightning refuses a name that is logged now with a logger, now without
    trainer.callback_metrics.update({tag: torch.tensor(value) for tag, value in report.unlogged.items()})
    if module is not None:
        module.log_dict(dict(report.scalars), add_dataloader_idx=False)
    elif report.scalars:
        log_scalars(trainer, report.scalars)
    if step is not None and report.sentences:
        note_step(trainer, step[0], " ".join(report.sentences), step[1])
    else:
        for sentence in report.sentences:
            rank_zero_info(sentence)
    if trainer.is_global_zero and trainer.loggers and not is_fast_dev_run(trainer):
        _log_pictures(trainer, report)


def _log_pictures(trainer: pl.Trainer, report: Report) -> None:
    for tag, (columns, rows) in report.tables.items():
        log_table(trainer, tag, columns, rows)
    for tag, draw in report.figures.items():
        log_figure(trainer, tag, draw())


def finite(numbers: Mapping[str, float]) -> dict[str, float]:
    """The numbers that are neither infinite nor NaN, which loggers have no place for.

    Example:
        >>> finite({"a": 1.0, "b": math.nan})
        {'a': 1.0}
    """
    return {tag: value for tag, value in numbers.items() if math.isfinite(value)}


class DiagnosticCallback(pl.Callback):
    """A callback that measures and leaves training alone: a measurement that fails becomes a warning on every rank.

    Args:
        on_failure: ``"warn"``, or ``"raise"``.
        gathers: Whether it gathers the whole weights of a module that FSDP2 has sharded.

    Raises:
        MisconfigurationException: In ``setup``, under strategies in which no rank holds the whole model.
    """

    def __init__(self, on_failure: Literal["warn", "raise"] = "warn", *, gathers: bool = False) -> None:
        super().__init__()
        self._gathers = gathers
        self.on_failure = on_failure
        self.guard = Guard(type(self).__name__, on_failure)

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse strategies that shard the weights, and forget the warnings of an earlier fit."""
        super().setup(trainer, pl_module, stage)
        join_summary(trainer)
        refuse_sharded(trainer, type(self).__name__, by_dtensors=self._gathers)
        self.guard.reset()

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse a module whose steps leave traces that cannot be undone, and write the page of custom scalars."""
        super().on_fit_start(trainer, pl_module)
        require_reversible(pl_module)
        self.guard.attempt(trainer, lambda: write_layout(trainer), "TensorBoard's custom scalars have no layout")


class InputDiagnostic(DiagnosticCallback):
    """A diagnostic that runs the network on validation batches.

    Raises:
        MisconfigurationException: At the sanity check, or the first validation batch, without inputs for ``forward``.
    """

    input_key: Key | list[Key] | None = None
    """Which part of a batch goes into ``forward``; None infers it."""

    @override
    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Refuse batches without inputs."""
        if batch_idx == dataloader_idx == 0:
            require_inputs(pl_module, batch, self.input_key, type(self).__name__)


class NamedConditions:
    """The conditions that an argument ``under`` names: checked when a callback is made, built when it measures.

    Args:
        under: Names of attacks, of corruptions (``"fog@5"``; the middle severity, 3, where none is given), of
            perturbations of the catalogue, or of other conditions.
        inputs: What an attack perturbs.
        eps: Radius of the attacks, in pixels in [0, 1].
        steps: Steps of PGD.
        attacks: The attacks that may be named.
        others: Further names, of conditions that leave batches alone.

    Raises:
        ValueError: For an unknown name; the message names the nearest.
    """

    def __init__(
        self,
        under: str | list[str] | None,
        inputs: AttackInputs,
        eps: float | str,
        *,
        steps: int = 10,
        attacks: Sequence[str] = (ATTACK,),
        others: Sequence[str] = (),
    ) -> None:
        check_texts(under=under)
        self.names = [under] if isinstance(under, str) else list(under or [])
        self._inputs, self._eps, self._steps = inputs, parse_fraction(eps), steps
        self._attacks, self._others = attacks, others
        self._entries = {n: named_entries([n], MIDDLE) for n in self.names if n not in (*attacks, *others)}

    def require_losses(self, pl_module: pl.LightningModule) -> None:
        """Refuse attacks on a module that has no loss that can be asked for without training.

        Raises:
            MisconfigurationException: Naming what to define.
        """
        if any(name in self._attacks for name in self.names):
            require_own_loss(pl_module)

    def build(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> list[Condition]:
        """The conditions in the order of their names, each once."""
        conditions: dict[str, Condition] = {}
        for name in self.names:
            for condition in self._named(name, trainer, pl_module):
                conditions[condition.name] = condition
        return list(conditions.values())

    def attack(self, trainer: pl.Trainer, pl_module: pl.LightningModule, name: str = ATTACK) -> Condition:
        """An attack on the weights that the module holds when a batch comes."""
        return attacked(trainer, pl_module, self._inputs, self._eps, steps=self._steps if name == PGD else None)

    def _named(self, name: str, trainer: pl.Trainer, pl_module: pl.LightningModule) -> list[Condition]:
        if name in self._others:
            return [Condition(name)]
        if name in self._attacks:
            return [self.attack(trainer, pl_module, name)]
        return [pictured(trainer, pl_module, entry, self._inputs) for entry in self._entries[name]]


def check_at_least(least: float, **values: float) -> None:
    """Refuse arguments below their smallest value.

    Raises:
        ValueError: Naming the argument.
    """
    for name, value in values.items():
        if not value >= least:
            raise ValueError(f"Expected `{name}` of at least {least}, but got {value}.")
