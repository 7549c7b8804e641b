"""A parity pass of the weights that a Trainer validates: their snapshot, and the measurement on rank 0."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_robust.callbacks.deployment_parity.about import about_run
from lightning_robust.callbacks.deployment_parity.calibration import CalibrationInputs
from lightning_robust.callbacks.deployment_parity.examined import Examined
from lightning_robust.callbacks.deployment_parity.pass_settings import PassSettings
from lightning_robust.callbacks.deployment_parity.task import needs_whole_batches, task_of
from lightning_robust.deployment.engines import Subject, available
from lightning_robust.deployment.graph.export import frozen_copy, to_args
from lightning_robust.deployment.graph.keeper import GraphKeeper
from lightning_robust.deployment.parity.background import BackgroundParity
from lightning_robust.deployment.parity.links import link_bases
from lightning_robust.deployment.parity.localise import localise
from lightning_robust.deployment.parity.measure import ParityPass, Tolerance
from lightning_robust.deployment.parity.result import MeasuredWeights, ParityReport
from lightning_robust.deployment.parity.scale import Task
from lightning_robust.deployment.parity.storage import examine_head
from lightning_robust.deployment.pixels.catalogue import Perturbation
from lightning_robust.deployment.pixels.perturb import KeptPixels
from lightning_robust.functional.pixels import PixelSpace
from lightning_robust.functional.weights import state_on_cpu
from lightning_robust.harness.batches import validation_batches
from lightning_robust.harness.digest import digest
from lightning_robust.harness.logging import log_step
from lightning_robust.harness.normalisation import pixel_space
from lightning_robust.harness.quiet import isolated_rng
from lightning_robust.harness.ranks import Postponed
from lightning_robust.harness.samples import FirstInputs
from lightning_robust.harness.trainers import is_fast_dev_run


class Snapshot:
    """The weights of one validation, copied at its first batch, and the first inputs that it feeds.

    What fails while validation goes on is raised when the copies are asked for, under the guard of the pass.

    Args:
        samples: How many inputs, at most.
        input_key: Which part of a batch goes into ``forward``.
        at_least: How many, whatever they take.
    """

    def __init__(self, samples: int, input_key: int | str | list[int | str] | None, at_least: int) -> None:
        self.inputs = FirstInputs(samples, input_key, at_least)
        self._weights: dict[str, Tensor] | None = None
        self._copies = Postponed()

    @property
    def weights(self) -> dict[str, Tensor]:
        """The copied weights.

        Raises:
            ValueError: If no batch was seen.
            Exception: What went wrong when they were copied.
        """
        self._copies.check()
        if self._weights is None:
            raise ValueError("no validation batch was seen")
        return self._weights

    def add(self, pl_module: pl.LightningModule, batch: Any, *, keep: bool = True) -> None:
        """Copy what is still missing: averaged weights are swapped back before the validation ends.

        Args:
            pl_module: The module.
            batch: What it is validated on.
            keep: Whether this rank measures; sharded weights are gathered by the others too.
        """
        self._copies.attempt(lambda: self._add(pl_module, batch, keep))

    def _add(self, pl_module: pl.LightningModule, batch: Any, keep: bool) -> None:
        if self._weights is None:
            self._weights = state_on_cpu(pl_module, keep=keep)
        if keep:
            self.inputs.add(pl_module, batch, whole=needs_whole_batches(pl_module))

    def fill(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Copy the weights that the module holds, and inputs of the validation loaders."""
        for batch in validation_batches(trainer, pl_module):
            self.add(pl_module, batch)
            if self.inputs.complete:
                break


@dataclass(frozen=True)
class SampleCounts:
    """How many inputs are gathered, and how many a pass takes.

    Args:
        most: After the fit, and in a lone ``validate``.
        during_fit: In a pass during the fit.
        input_key: Which part of a batch goes into ``forward``.
        examined: Whether the fit's end takes a closer look.
    """

    most: int
    during_fit: int
    input_key: int | str | list[int | str] | None
    examined: bool

    def now(self, trainer: pl.Trainer) -> int:
        """How many inputs a pass takes now."""
        samples = min(self.most, self.during_fit) if trainer.state.fn == "fit" else self.most
        return min(samples, 2) if is_fast_dev_run(trainer) else samples

    def snapshot(self, trainer: pl.Trainer) -> Snapshot:
        """A snapshot with as many inputs as this pass and the end of the fit need."""
        now = self.now(trainer)
        return Snapshot(self.most if self.examined and not is_fast_dev_run(trainer) else now, self.input_key, now)


class ParityMeter:
    """Measures snapshots without a trace in the training: no random number is drawn, no gradient is recorded.

    Args:
        targets: ``"auto"`` or names of targets.
        perturbations: Differences of preprocessing to measure.
        mean: Mean that the pixels were normalised with; None takes the data module's.
        std: Standard deviation that the pixels were normalised with; None takes the data module's.
        decode: Method of the LightningModule that turns outputs into named values; None for no task units.
        time_limit: Seconds for one pass, and for one engine build.
        tolerance: As for :func:`~.deployment.parity.measure.measure_parity`.
        engines: How engines are built and run.
        calibration: The training inputs that int8 finds its ranges on.
    """

    def __init__(
        self,
        targets: Literal["auto"] | list[str],
        perturbations: tuple[Perturbation, ...],
        mean: float | list[float] | None,
        std: float | list[float] | None,
        decode: str | None,
        time_limit: float,
        tolerance: Tolerance | None,
        *,
        engines: PassSettings,
        calibration: CalibrationInputs,
    ) -> None:
        self._targets, self._perturbations = targets, perturbations
        self._mean, self._std, self._decode = mean, std, decode
        PixelSpace(0.0 if mean is None else mean, 1.0 if std is None else std)  # refuses what is no normalisation
        self._tolerance, self._time_limit, self._engines = tolerance, time_limit, engines
        self.background, self._calibration = BackgroundParity(time_limit), calibration
        self._graphs, self._pictures = GraphKeeper(), KeptPixels()

    def measure(self, trainer: pl.Trainer, pl_module: pl.LightningModule, snapshot: Snapshot, samples: int) -> Examined:
        """Measure everything on the first samples; during ``fit`` with engines in the background if that is set."""
        with _isolated():
            if trainer.state.fn != "fit":
                self._calibration.fill(trainer, pl_module)
            subject, task = self._subject(pl_module, snapshot.weights, snapshot.inputs, samples)
            runtimes = available(self._targets, self._engines)
            what = runtimes, self._perturbations, pixel_space(trainer, self._mean, self._std)
            parity = self._pass(subject, task, timed=trainer.state.fn != "fit")
            step, perturb = log_step(trainer), self._pictures.perturb
            if self._engines.background and trainer.state.fn == "fit":
                epoch = trainer.current_epoch
                report = self.background.measure(parity, *what, step=step, epoch=epoch, perturb=perturb)
            else:
                report = parity.report(*what, perturb=perturb)
            if trainer.state.fn == "fit":
                weights = MeasuredWeights(trainer.current_epoch, trainer.global_step)
            else:
                weights = MeasuredWeights(None, None, str(trainer.ckpt_path or ""), digest(snapshot.weights))
            report = replace(report, weights=weights, about=about_run(trainer, pl_module))
            return Examined(subject, task, report, snapshot.inputs, step)

    def measure_again(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, last: Examined, state: Mapping[str, Tensor]
    ) -> Examined:
        """Measure the weights that the fit returned, on all samples that the last pass had gathered.

        Slow runtimes keep their numbers of the last pass where they are of the same weights. Where that pass was of
        these weights, took all samples and every slow runtime has its numbers, it is given back with the latencies
        that a pass during the fit does not take.
        """
        with _isolated():
            same = are_equal(state, last.subject.module.state_dict())
            runtimes = available(self._targets, self._engines)
            whole = same and last.subject.samples >= last.inputs.count
            if whole and not any(last.lacks(made, self._engines.background) for made in runtimes):
                last.time(runtimes)
                last.report = replace(last.report, weights=replace(last.report.weights, digest=digest(state)))
                return last
            subject, task = self._subject(pl_module, state, last.inputs, last.inputs.count)
            runtimes = [made for made in runtimes if not (same and last.has_numbers(made, self._engines.background))]
            report = self._pass(subject, task, timed=True).report(
                runtimes, self._perturbations, pixel_space(trainer, self._mean, self._std), self._pictures.perturb
            )
            if same:
                report = _with_slow_targets(report, last.report)
            weights = last.report.weights if same else MeasuredWeights(None, trainer.global_step)
            report = replace(report, weights=replace(weights, digest=digest(state)), about=last.report.about)
            return Examined(subject, task, report, last.inputs, log_step(trainer))

    def scalars(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, snapshot: Snapshot, samples: int, tag: str
    ) -> dict[str, float]:
        """The numbers of the weights that the module holds; for a tag ``parity/<target>/...`` of this target alone."""
        snapshot.fill(trainer, pl_module)
        if not tag.startswith("parity/"):
            return self.measure(trainer, pl_module, snapshot, samples).report.scalars()
        with _isolated():
            subject, task = self._subject(pl_module, snapshot.weights, snapshot.inputs, samples)
            name = tag.split("/")[1]
            runtimes = [made for made in available([name], self._engines) if made.name == name]
            return self._pass(subject, task).report(runtimes, (), None).scalars()

    def localise(self, last: Examined, tolerance: float | None) -> ParityReport:
        """Add what each node and the head of the graph cost.

        :func:`~.deployment.parity.localise.localise` says what is raised.
        """
        with _isolated():
            report = examine_head(last.subject, last.report, last.task)
            return localise(
                last.subject,
                report,
                decode=last.task.decode,
                known=last.task.known,
                tolerance=tolerance,
                limits=self._tolerance,
                time_limit=self._time_limit,
            )

    def _pass(self, subject: Subject, task: Task, *, timed: bool = False) -> ParityPass:
        perturbed = self._engines.perturb_targets
        return ParityPass(subject, task, self._time_limit, perturbed, self._tolerance, timed=timed)

    def _subject(
        self, pl_module: pl.LightningModule, weights: Mapping[str, Tensor], inputs: FirstInputs, samples: int
    ) -> tuple[Subject, Task]:
        module = frozen_copy(pl_module, weights)
        example = to_args(inputs.spread(samples), torch.float32)
        settings = replace(self._engines, device=self._engines.device or str(pl_module.device))
        calibration = self._calibration.args(example)
        subject = Subject(module, example, settings, calibration, exporter=self._graphs.export)
        return subject, task_of(module, self._decode, inputs)


def are_equal(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> bool:
    """Whether weights are the same, but for the precision that a copy is held in."""
    return ours.keys() == theirs.keys() and all(
        torch.equal(value.to(theirs[name]), theirs[name]) for name, value in ours.items()
    )


def _with_slow_targets(report: ParityReport, earlier: ParityReport) -> ParityReport:
    """A report with the targets that an earlier one has beyond it, their links and what they rest on."""
    missing = earlier.targets.keys() - report.targets.keys()
    links = [link for link in earlier.chain if link.target.split(" ")[0] in missing]
    keys = {link.key for link in links}
    ours = {tag: rests for tag, rests in earlier.basis.items() if tag.split("/")[1] in missing}
    return replace(
        report,
        targets={name: report.targets.get(name, target) for name, target in earlier.targets.items()},
        chain=(*(link for link in report.chain if link.key not in keys), *links),
        target_sensitivity=earlier.target_sensitivity | report.target_sensitivity,
        basis=ours | report.basis | link_bases(links),
    )


@contextmanager
def _isolated() -> Iterator[None]:
    with isolated_rng(), torch.inference_mode(False), torch.no_grad():
        yield
