"""DeploymentParityCallback: at validation end, how far the deployed model is from the trained one, and why."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import lightning.pytorch as pl
from typing_extensions import override

from lightning_robust.callbacks.deployment_parity.calibration import CalibratedDiagnostic, CalibrationInputs
from lightning_robust.callbacks.deployment_parity.measure import ParityMeter, SampleCounts, Snapshot
from lightning_robust.callbacks.deployment_parity.pass_settings import PassSettings
from lightning_robust.callbacks.deployment_parity.record import Numbers, ParityRecord, chosen_numbers
from lightning_robust.callbacks.deployment_parity.report import charts
from lightning_robust.callbacks.deployment_parity.tags import STATUS
from lightning_robust.callbacks.deployment_parity.tolerance import (
    Action,
    hold_tolerances,
    missing_targets,
    require_targets,
)
from lightning_robust.callbacks.diagnostics import Report, show
from lightning_robust.checks import check_positive
from lightning_robust.complaints import naming
from lightning_robust.deployment.budget_keys import read_parity_limits
from lightning_robust.deployment.engines import available
from lightning_robust.deployment.engines.execution import STATUS_CODES
from lightning_robust.deployment.parity.background import LateResults
from lightning_robust.deployment.parity.result import ParityReport
from lightning_robust.deployment.parity.scale import decoder_of
from lightning_robust.deployment.pixels import catalogue
from lightning_robust.deployment.pixels.names import Names
from lightning_robust.harness.logging import add_layout
from lightning_robust.harness.ranks import describe_error, on_rank_zero
from lightning_robust.harness.trainers import NoEffectWarning


class TargetError(RuntimeError):
    """A target was asked for and has no numbers."""


_UNSEEN = "nothing was measured: no validation batch was seen. Give the Trainer a loader that has one."


class DeploymentParityCallback(CalibratedDiagnostic):
    r"""Measure at every validation how far the deployed model is from the trained one, and log the causes.

    The weights that were just validated (averaged ones included, whatever the order of callbacks) are copied, exported
    to ONNX, put through every target, and compared with PyTorch in fp64 on the first validation samples:

    .. math:: \mathrm{rel\_l2} = \|y_\text{target} - y_\text{fp64}\| \,/\, \|y_\text{fp64} - \overline{y}_\text{fp64}\|

    If the LightningModule has a method ``decode(outputs) -> dict of tensors``, distances are also given in its units
    (pixels, metres): floating values as mean, p99, max and bias, integers and bools as share of flips; NaN is "nothing
    there". Boxes and masks of ``lightning_robust.decoding`` are matched first. Further methods tell more:
    ``known(values, batch) -> bools`` says what is no guess (else a decoded ``"confidence"`` of at least 0.5 does),
    ``truth(batch)`` gives labels as values, ``moved(values, matrix)`` right answers in a moved picture.

    Measured: ``parity/<target>/<metric>``, ``sensitivity/<perturbation>/<metric>``, ``attribution/<link>``, as ordinary
    metrics: ``ModelCheckpoint(monitor="parity/emulated-fp16/rel_l2", auto_insert_metric_name=False)`` keeps the most
    deployable epoch; between two passes it sees the last values. Loggers get few of them, or all with ``log="full"``.

    Training is bit-identical with and without it. A failure becomes one warning and a status
    (``parity/<target>/status``: 0 measured, 1 built but not run, 2 skipped, 3 unavailable, 4 failed). Cost: one copy
    of the model on the CPU and a few seconds a pass on rank 0 (``parity/seconds``). Resumes with its history.

    Args:
        targets: ``"auto"`` (all that this machine has) or a list of ``"<runtime>-<precision>"``, such as
            ``torch-bf16``, ``onnxruntime-fp32``, ``emulated-tf32``, ``emulated-fp16``, ``tensorrt-fp16``; all names are
            in ``lightning_robust.deployment.engines.TARGETS``.
        every_n_epochs: Measure at every n-th epoch's validation, and at the first and the last.
        num_samples: Validation inputs to measure on after the fit and in a lone ``validate``, at most, and at most 256
            MB of them. Fewer do where the interval of a number is below a tenth of it.
        pass_samples: Validation inputs for the passes during the fit, at most.
        time_limit: Seconds for one pass; what does not fit is reported as skipped. Also the limit of one engine build.
        perturbations: ``"typical"``, ``"all"`` (every severity), ``"none"``, or names of entries and families of
            ``lightning_robust.deployment.pixels.catalogue.CATALOGUE``.
        mean: Mean that the pixels were normalised with, for pixels in [0, 1]; one number or one a channel. None takes
            ``mean`` of the Trainer's data module if it has one, else 0.
        std: Standard deviation that the pixels were normalised with; None takes the data module's, else 1.
        input_key: Which part of a batch goes into ``forward``: position, name or list; None infers it by signature.
        decode: Method of the module, or an installed decoder, that names the values in outputs; None for no task units.
        tolerance: ``"<target>"`` or ``"<target>/<metric>"`` -> largest allowed value; or a budget file. None takes
            the defaults of ``lightning_robust.deployment.parity.verdict.DEFAULT_TOLERANCES``.
        on_violation: What to do beyond a tolerance: ``"log"``, ``"warn"``, ``"stop"`` the training, or ``"raise"``.
        on_failure: ``"warn"`` and go on, or ``"raise"``.
        localise: After the fit, or a lone ``validate``, find what each node costs in half precision, and in int8 where
            that is a target, and the shortest lists to keep in fp32; write ``parity/parity.html``, ``keep_fp32.json``
            and others into the run's own folder. Costs at most three times `time_limit` for each of the two.
        keep_tolerance: Distance that the list is to meet, in the report's unit (``lateral_px_p99``); None aims at a
            fifth of what the whole graph costs.
        engines: How engines are built and run, and what is logged, as :class:`~.pass_settings.PassSettings` documents:
            ``batch``, ``keep_fp32``, ``tf32``, ``calibration``, ``deployed``, ``command``, ``background``, ``log``...

    Raises:
        ValueError: For an unknown target, perturbation, metric limit, or a number out of range.
        MisconfigurationException: Under strategies in which no rank has the whole model.

    Example:
        >>> callback = DeploymentParityCallback(["onnxruntime-fp32", "emulated-fp16"], every_n_epochs=2, tf32=True)
    """

    def __init__(
        self,
        targets: Literal["auto"] | list[str] = "auto",
        *,
        every_n_epochs: int = 1,
        num_samples: int = 256,
        pass_samples: int = 16,
        time_limit: float = 120.0,
        perturbations: Names = "typical",
        mean: float | list[float] | None = None,
        std: float | list[float] | None = None,
        input_key: int | str | list[int | str] | None = None,
        decode: str | None = "decode",
        tolerance: dict[str, float] | str | None = None,
        on_violation: Action = "log",
        on_failure: Literal["warn", "raise"] = "warn",
        localise: bool = True,
        keep_tolerance: float | None = None,
        **engines: Any,
    ) -> None:
        super().__init__(on_failure, gathers=True)
        check_positive(every_n_epochs=every_n_epochs, num_samples=num_samples, pass_samples=pass_samples)
        check_positive(time_limit=time_limit, keep_tolerance=1.0 if keep_tolerance is None else keep_tolerance)
        self.targets, self.every_n_epochs, self.num_samples = targets, every_n_epochs, num_samples
        self.pass_samples, self.time_limit = pass_samples, time_limit
        self.perturbations, self.mean, self.std = perturbations, mean, std
        self.input_key, self.decode, self.tolerance = input_key, decode, tolerance
        self.on_violation, self.localise, self.keep_tolerance = on_violation, localise, keep_tolerance
        self.engines = PassSettings(**engines, time_limit=time_limit)
        with naming("tolerance"):
            self._limits = dict(read_parity_limits(tolerance)[0]) if tolerance else None
        require_targets(targets, self._limits, on_violation, [made.name for made in available([], self.engines)])
        entries = catalogue.perturbations(perturbations)
        self.calibration = CalibrationInputs(targets, self.engines, input_key)
        meant = targets, entries, mean, std, decode, time_limit, self._limits
        self._meter = ParityMeter(*meant, engines=self.engines, calibration=self.calibration)
        self._counts = SampleCounts(num_samples, pass_samples, input_key, examined=localise)
        self._record = ParityRecord()
        self._due = False
        self._told: dict[str, str] = {}
        self._snapshot: Snapshot | None = None

    @property
    def report(self) -> ParityReport | None:
        """The last pass; None before the first, and on ranks other than 0."""
        return self._record.report

    @property
    def sensitivity(self) -> dict[str, float] | None:
        """Perturbation -> how far it moved the outputs in the last pass that has such numbers; None before any pass."""
        return self._record.sensitivity

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse what cannot work and say at once which targets are missing here."""
        super().setup(trainer, pl_module, stage)
        self._record = self._record.at_setup(trainer, stage)
        named = self.targets if isinstance(self.targets, list) else []
        add_layout(trainer, "deployment parity", charts(decoder_of(pl_module, self.decode) is not None, named))
        self._told = missing_targets(trainer, self.guard, available(named, self.engines), self.engines)
        for name, reason in self._told.items():
            error = TargetError(f"{name} cannot be measured here: {reason}")
            self.guard.fail(trainer, error, f"{name} will have no numbers")

    @override
    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Decide whether this validation is measured."""
        self._due = self._record.is_due(trainer, self.every_n_epochs)
        self._snapshot = self._counts.snapshot(trainer) if self._due else None

    @override
    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Copy the weights as validated (averages are swapped back later), and the first inputs."""
        if self._snapshot is not None and dataloader_idx == 0:
            self._snapshot.add(pl_module, batch, keep=trainer.is_global_zero)

    @override
    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure on rank 0, log on every rank."""
        if self.engines.background or not self._due:
            self._record.carry(trainer)
        if not self._due:
            show(trainer, self._collect(trainer, self._meter.background.collect), pl_module)
            return
        self._record.attempted = True
        measure = functools.partial(self._measure, trainer, pl_module)
        numbers = self.guard.attempt(trainer, lambda: on_rank_zero(trainer, measure, "It"), "the parity pass failed")
        self._snapshot = None
        if numbers is None:
            self._record.fail(trainer)
            pl_module.log(STATUS, float(STATUS_CODES["failed"]), add_dataloader_idx=False)
            return
        show(trainer, chosen_numbers(trainer, numbers, self.engines.log, self._limits), pl_module)
        lost = "a figure or a table could not be logged"
        self.guard.attempt(trainer, lambda: show(trainer, self._record.shown(Report())), lost, once=True)
        self._take(trainer, numbers)

    def measure(self, trainer: pl.Trainer, pl_module: pl.LightningModule, tag: str) -> dict[str, float]:
        """Parity of the weights that the module holds now, on the first validation samples; logs nothing.

        Call it on every rank, within ``fit`` or ``validate``. Model soups are chosen by it.

        Args:
            trainer: The Trainer.
            pl_module: The module.
            tag: The metric to measure; for ``parity/<target>/...`` only that target is measured.

        Returns:
            The numbers by tag.

        Raises:
            RuntimeError: If the pass failed; the message says why.
        """
        count, snapshot = self._counts.now(trainer), self._counts.snapshot(trainer)
        work = functools.partial(self._meter.scalars, trainer, pl_module, snapshot, count, tag)
        try:
            return on_rank_zero(trainer, work, "It")
        except Exception as error:
            raise RuntimeError(f"The parity pass failed: {describe_error(error)}.") from error

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the numbers of engines that are still at work, while the ranks still hear each other."""
        show(trainer, self._collect(trainer, self._meter.background.finish))

    @override
    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure and examine what the fit returned, and print it."""
        if not self._record.attempted:
            self.guard.warn(_UNSEEN, NoEffectWarning)
        self._close(trainer, pl_module)

    @override
    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Kill what is being built."""
        self._meter.background.stop()

    @override
    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Kill what is being built."""
        self._meter.background.stop()

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """After a lone ``trainer.validate()``, print the table."""
        if trainer.state.fn == "validate":
            self._close(trainer, pl_module)

    @override
    def state_dict(self) -> dict[str, Any]:
        """The history of the figure and the last numbers, for a resumed run."""
        return self._record.state_dict()

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the history of the interrupted run."""
        self._record.load_state_dict(state_dict)

    def _measure(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> Numbers:
        """The pass itself, on rank 0."""
        snapshot = self._snapshot or self._counts.snapshot(trainer)
        examined = self._meter.measure(trainer, pl_module, snapshot, self._counts.now(trainer))
        return self._record.add(examined, trainer.current_epoch, self.localise)

    def _collect(self, trainer: pl.Trainer, fetch: Callable[[], LateResults | None]) -> Report:
        """The numbers of engines that were built in the meantime, on every rank; empty without any."""
        if not self.engines.background:
            return Report()
        add = functools.partial(on_rank_zero, trainer, lambda: self._record.add_late(fetch()), "It")
        numbers = self.guard.attempt(trainer, add, "the numbers of engines in the background are lost", Numbers())
        self._take(trainer, numbers)
        return chosen_numbers(trainer, numbers, self.engines.log, self._limits)

    def _take(self, trainer: pl.Trainer, numbers: Numbers) -> None:
        """Keep the numbers for monitors, pass on what went wrong, and hold the tolerances."""
        self._record.take(numbers)
        for note in numbers.notes:
            self.guard.warn(note, key=note.split(":")[0])
        for name, reason in numbers.lost(self._told if isinstance(self.targets, list) else numbers.absent).items():
            self.guard.fail(trainer, TargetError(f"{name} failed: {reason}"), f"{name} has no numbers", once=True)
        hold_tolerances(trainer, numbers.scalars, self._limits, self.on_violation, self.guard)

    def _close(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._record.close(trainer, pl_module, self._meter, self.guard, self._limits, self.keep_tolerance)
