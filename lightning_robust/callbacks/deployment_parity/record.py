"""The parity passes of one run: the last report and its examination, the history, and the numbers for monitors."""

from __future__ import annotations

import functools
from collections.abc import Container, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_robust.callbacks.deployment_parity.examined import Examined
from lightning_robust.callbacks.deployment_parity.kept import kept_elsewhere
from lightning_robust.callbacks.deployment_parity.measure import ParityMeter
from lightning_robust.callbacks.deployment_parity.pass_settings import Log
from lightning_robust.callbacks.deployment_parity.report import layers_report, pass_report
from lightning_robust.callbacks.deployment_parity.tags import STATUS, split_tags
from lightning_robust.callbacks.diagnostics import Report, show
from lightning_robust.deployment.graph.export import ExportError
from lightning_robust.deployment.parity.background import LateResults
from lightning_robust.deployment.parity.readout import PLAIN_UNIT
from lightning_robust.deployment.parity.result import ParityReport
from lightning_robust.deployment.report.page import write_report
from lightning_robust.deployment.report.tables import summary
from lightning_robust.functional.weights import state_on_cpu
from lightning_robust.harness.closing import note_step, note_text, note_warning
from lightning_robust.harness.folders import own_folder
from lightning_robust.harness.logging import log_files, require_room
from lightning_robust.harness.ranks import Guard
from lightning_robust.harness.trainers import is_fast_dev_run
from lightning_robust.tables import number


@dataclass(frozen=True)
class Numbers:
    """The numbers of one pass as all ranks get them, and what went wrong in it.

    Args:
        scalars: Values by tag.
        failures: Target -> why it has no numbers.
        absent: Target -> why it is not available, any more or at all.
        notes: Lines that the user should see.
        unit: The metric that stands for a distance.
        sensitivity: Perturbation -> how far it moves the outputs, as :meth:`~.result.ParityReport.moved` counts.
    """

    scalars: dict[str, float] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    unit: str = PLAIN_UNIT
    sensitivity: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, report: ParityReport | LateResults) -> Numbers:
        """Those of a whole pass, or of engines that were late."""
        failures, absent = (
            {name: target.note for name, target in report.targets.items() if target.status == status}
            for status in ("failed", "unavailable")
        )
        moved = {name: report.moved(name) for name in report.sensitivity} if isinstance(report, ParityReport) else {}
        return cls(report.scalars(), failures, absent, report.notes, report.unit, moved)

    def lost(self, known: Container[str]) -> dict[str, str]:
        """The failures, and what is absent and not known to be."""
        return self.failures | {name: reason for name, reason in self.absent.items() if name not in known}


def chosen_numbers(trainer: pl.Trainer, numbers: Numbers, log: Log, tolerance: Mapping[str, float] | None) -> Report:
    """The numbers of a pass: those that loggers get, and those for monitors alone."""
    shown, others = split_tags(trainer, numbers.scalars, numbers.unit, log, tolerance)
    return Report(shown, unlogged=others)


class ParityRecord:
    """What a run has measured so far. Reports and subjects are on rank 0 only, numbers on every rank."""

    def __init__(self) -> None:
        self.report: ParityReport | None = None
        self.history: list[tuple[int, dict[str, float]]] = []
        self.last: dict[str, float] = {}
        self.sensitivity: dict[str, float] | None = None
        self._examined: Examined | None = None
        self._unit = ""
        self.attempted = False
        """Whether a pass was begun."""

    def at_setup(self, trainer: pl.Trainer, stage: str) -> ParityRecord:
        """A new one where a fit begins at its first epoch, which what a checkpoint holds is then loaded into."""
        if stage != "fit" or trainer.current_epoch > 0:
            return self
        new = ParityRecord()
        new.sensitivity = self.sensitivity  # of a `validate` before, which training may draw by
        return new

    def is_due(self, trainer: pl.Trainer, every_n_epochs: int) -> bool:
        """Whether a validation is measured: every n-th epoch's, the first and the last of a fit, and each lone one."""
        if trainer.sanity_checking:
            return False
        if trainer.state.fn != "fit":
            return True
        epoch = trainer.current_epoch + 1
        return not self.last or epoch % every_n_epochs == 0 or epoch == trainer.max_epochs

    def add(self, examined: Examined, epoch: int, keep: bool) -> Numbers:
        """A pass, with its subject and samples if they are to be examined later."""
        self.report, self._examined = examined.report, examined if keep else None
        unit = self.report.unit.replace("_known", "")
        self.history = self.history if self._unit in ("", unit) else []  # pixels and relative distances share no axis
        self._unit = unit
        self.history.append((epoch, self.report.attribution))
        return Numbers.of(self.report)

    def shown(self, numbers: Report) -> Report:
        """Numbers with the tables and figures of the last pass."""
        pictures = pass_report(self.report, self.history)
        return replace(numbers, tables=pictures.tables, figures=pictures.figures)

    def take(self, numbers: Numbers) -> None:
        """Keep the numbers of a pass, or of late engines, for monitors and for training."""
        self.last |= numbers.scalars
        self.sensitivity = numbers.sensitivity or self.sensitivity or {}

    def fail(self, trainer: pl.Trainer) -> None:
        """A pass that gave nothing: the last numbers stay."""
        self.take(Numbers())
        self.carry(trainer)

    def add_late(self, late: LateResults | None) -> Numbers:
        """Results of engines that an earlier pass had started, if there are any."""
        if late is None:
            return Numbers()
        if self.report is not None:
            self.report = late.merged_into(self.report)
            self.history[-1:] = [(epoch, self.report.attribution) for epoch, _ in self.history[-1:]]
        return Numbers.of(late)

    def carry(self, trainer: pl.Trainer) -> None:
        """Keep the last numbers visible to monitors without logging them twice."""
        if not trainer.sanity_checking:
            last = {tag: torch.tensor(value) for tag, value in self.last.items() if tag != STATUS}
            trainer.callback_metrics.update(last)

    def close(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        meter: ParityMeter,
        guard: Guard,
        tolerance: Mapping[str, float] | None,
        keep_tolerance: float | None,
    ) -> None:
        """Measure what the fit returned, examine and print it, write its page; no failure loses fit or numbers."""
        measure = functools.partial(self._measure_again, trainer, pl_module, meter)
        examine = functools.partial(self._examine, trainer, meter, keep_tolerance)
        write = functools.partial(self._write, trainer, tolerance)
        again = guard.attempt(trainer, measure, "the report is of the last validation, not of what the fit returned")
        guard.attempt(trainer, examine, "the layers that matter could not be found")
        show_all = functools.partial(self._show, trainer, again)
        guard.attempt(trainer, show_all, "a figure or a table could not be logged", once=True)
        page = guard.attempt(trainer, write, "the report could not be written")
        # on every rank, though rank 0 alone has a page: the ranks meet at each attempt
        send = functools.partial(log_files, trainer, None if page is None else page.parent)
        guard.attempt(trainer, send, "a logger did not take the report")
        announce = functools.partial(self._announce, trainer, pl_module, page)
        guard.attempt(trainer, announce, "the report could not be printed")

    def state_dict(self) -> dict[str, Any]:
        """The history of the figure and the last numbers."""
        history = [[epoch, dict(causes)] for epoch, causes in self.history]
        return {"history": history, "unit": self._unit, "last": dict(self.last), "sensitivity": self.sensitivity}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the history of an interrupted run."""
        self.history = [(int(epoch), dict(causes)) for epoch, causes in state_dict["history"]]
        self._unit = state_dict.get("unit", "")
        self.last = dict(state_dict["last"])
        self.sensitivity = state_dict.get("sensitivity")

    def _measure_again(self, trainer: pl.Trainer, pl_module: pl.LightningModule, meter: ParityMeter) -> bool:
        """Measure the weights that the fit returned, on all samples, where the last pass was of others or of fewer."""
        state = state_on_cpu(pl_module, keep=trainer.is_global_zero)  # by all ranks, for some shard it
        last = self._examined
        if last is None or self.report is None:
            return False
        last.report = self.report  # with the numbers of engines that were late
        self._examined = meter.measure_again(trainer, pl_module, last, state)
        self.report = self._examined.report
        return self._examined is not last

    def _examine(self, trainer: pl.Trainer, meter: ParityMeter, tolerance: float | None) -> None:
        """Measure and log what each node of the last pass's graph costs in half precision."""
        if self._examined is None or self.report is None:
            return
        self._examined.report = self.report
        try:
            self.report = meter.localise(self._examined, tolerance)
        except (ExportError, ValueError) as error:
            self.report = replace(self.report, notes=(*self.report.notes, f"Layers were not measured: {error}"))

    def _show(self, trainer: pl.Trainer, again: bool | None) -> None:
        """Log the layers, and the figure and tables of a pass that was made again.

        Its numbers are not logged, so that those of the last validation stay as they are.
        """
        if self._examined is None or self.report is None:
            return
        if again:
            show(trainer, pass_report(self.report, self.history))
        show(trainer, layers_report(self.report))

    def _write(self, trainer: pl.Trainer, tolerance: Mapping[str, float] | None) -> Path | None:
        """Write the page of the last pass, if it was to be examined and the run has a folder; drop the subject."""
        examined, self._examined = self._examined, None
        if examined is None or self.report is None:
            return None
        others = tuple(kept_elsewhere(trainer, examined))
        self.report = replace(self.report, notes=(*self.report.notes, *others))
        for sentence in others:
            note_warning(sentence)
        if is_fast_dev_run(trainer):
            return None
        folder = own_folder(trainer, "parity")
        require_room(folder)
        return write_report(self.report, folder, history=self.history, tolerance=tolerance)

    def _announce(self, trainer: pl.Trainer, pl_module: pl.LightningModule, page: Path | None) -> None:
        """Print the last pass, and where to read more."""
        if self.report is None:
            return
        note_text(trainer, f"\n{summary(self.report)}")
        if page is not None:
            note_text(trainer, f"\nThe whole report:  {page}")
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                note_text(trainer, f"\nSee it all:  tensorboard --logdir {logger.log_dir}\n")
        if trainer.state.fn == "fit":
            self._note_step(trainer, pl_module, self.report)

    def _note_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, report: ParityReport) -> None:
        """The line of the closing summary; the page is of what the fit returned where the weights have a digest."""
        measured = {name: target.metrics.get("rel_l2") for name, target in report.targets.items()}
        told = ", ".join(f"{name} {number(value)}" for name, value in measured.items() if value is not None)
        told = f"relative L2 distance {told}" if told else "no target has numbers"
        module = pl_module if report.weights.digest else None
        note_step(trainer, "deployment_parity", told, module, str(report.weights))
