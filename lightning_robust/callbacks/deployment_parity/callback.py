"""DeploymentParityCallback: at validation end, how far the deployed model is from the trained one, and why.

Hooks, state and logging only; the measuring is done by ``deployment/parity/``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from typing_extensions import override

from lightning_robust.deployment.engines import Subject, available, runtime
from lightning_robust.deployment.engines.execution import STATUS_CODES
from lightning_robust.deployment.graph.export import ExportError, frozen_copy, to_args
from lightning_robust.deployment.parity.background import BackgroundParity, LateResults
from lightning_robust.deployment.parity.localise import localise
from lightning_robust.deployment.parity.measure import measure_parity
from lightning_robust.deployment.parity.result import ParityReport
from lightning_robust.deployment.parity.scale import Decode, unit_label
from lightning_robust.deployment.parity.verdict import violations
from lightning_robust.deployment.pixels.catalogue import Names
from lightning_robust.deployment.pixels.catalogue import perturbations as named_perturbations
from lightning_robust.deployment.report.figures import draw_layers, draw_parity
from lightning_robust.deployment.report.page import write_report
from lightning_robust.deployment.report.tables import (
    finding_rows,
    keep_rows,
    layer_rows,
    perturbation_rows,
    summary,
    target_rows,
)
from lightning_robust.functional.weights import state_on_cpu
from lightning_robust.harness.batches import validation_batches
from lightning_robust.harness.logging import add_layout, log_figure, log_scalars, log_step, log_table, write_layout
from lightning_robust.harness.normalisation import pixel_space
from lightning_robust.harness.quiet import isolated_rng
from lightning_robust.harness.samples import FirstInputs
from lightning_robust.harness.trainers import NoEffectWarning, is_fast_dev_run, refuse_sharded

_STATUS = "parity/status"


@dataclass
class _Outcome:
    """What rank 0 tells the others: numbers, or why there are none."""

    scalars: dict[str, float] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)
    failure: str = ""


class DeploymentParityCallback(pl.Callback):
    r"""Measure at every validation how far the deployed model is from the trained one, and log the causes.

    The weights that were just validated (averaged ones included, whatever the order of callbacks) are copied, exported
    to ONNX, put through every target, and compared with PyTorch in fp64 on the first validation samples:

    .. math:: \mathrm{rel\_l2} = \|y_\text{target} - y_\text{fp64}\| \,/\, \|y_\text{fp64} - \overline{y}_\text{fp64}\|

    If the LightningModule has a method ``decode(outputs) -> dict of tensors``, distances are also given in its units
    (pixels, metres): floating values as mean, p99, max and bias, integers and bools as share of flips. NaN means
    "nothing there".

    Logged: ``parity/<target>/<metric>``, ``sensitivity/<perturbation>/<metric>``, ``attribution/<cause>``, one figure
    and one table. They are ordinary metrics: ``ModelCheckpoint(monitor="parity/emulated-fp16/rel_l2",
    auto_insert_metric_name=False)`` keeps the most deployable epoch. Between two passes the last values stay visible
    to such monitors, but are not logged again.

    Training is bit-identical with and without it. A failure becomes one warning and a status
    (``parity/<target>/status``: 0 measured, 1 built but not run, 2 skipped, 3 unavailable, 4 failed). Cost: one copy
    of the model on the CPU and a few seconds a pass, on rank 0 (``parity/seconds``). Resumes with its history.

    Args:
        targets: ``"auto"`` (all that this machine has) or a list of ``"<runtime>-<precision>"``: ``torch-fp32``,
            ``torch-fp16``, ``torch-bf16``, ``onnxruntime-fp32``, ``emulated-tf32``, ``emulated-fp16``,
            ``emulated-bf16``, ``tensorrt-fp32``, ``tensorrt-fp16``, ``tensorrt-bf16``, ``tensorrt_rtx-fp32``,
            ``tensorrt_rtx-fp16``.
        every_n_epochs: Measure at every n-th epoch's validation, and at the first and the last.
        num_samples: Validation inputs to measure on.
        max_batch: The largest batch that engines are built for.
        time_limit: Seconds for one pass; what does not fit is reported as skipped. Also the limit of one engine build.
        perturbations: ``"typical"``, ``"all"`` (every severity), ``"none"``, or names of entries and families of
            ``lightning_robust.deployment.pixels.catalogue.CATALOGUE``.
        mean: Mean that the pixels were normalised with, for pixels in [0, 1]; one number or one a channel. None takes
            ``mean`` of the Trainer's data module if it has one, else 0.
        std: Standard deviation likewise; None takes the data module's, else 1.
        input_key: Which part of a batch goes into ``forward``: position or name; a list gives several arguments.
        decode: Method of the LightningModule that turns outputs into named values; None for no task units.
        tolerance: ``"<target>"`` or ``"<target>/<metric>"`` -> largest allowed value; the former means ``rel_l2``.
            None takes the defaults of ``lightning_robust.deployment.parity.verdict.DEFAULT_TOLERANCES``.
        on_violation: What to do beyond a tolerance: ``"log"``, ``"warn"``, ``"stop"`` the training, or ``"raise"``.
        on_failure: ``"warn"`` and go on, or ``"raise"``.
        weakly_typed: Build ``tensorrt-fp16`` with the fp16 flag of TensorRT 10, which chooses precisions itself.
        keep_fp32: ONNX nodes or PyTorch modules (with all in them) that stay fp32 in the emulated and built half
            precisions; ``keep_fp32.json`` of an earlier run proposes them.
        localise: After the fit, or a lone ``validate``, find what each node of the last pass costs in half precision
            and the shortest list to keep in fp32 (tables ``parity/layers`` and ``parity/keep_fp32``, one figure), and
            write ``parity/parity.html``, ``parity.json`` and ``keep_fp32.json`` into the logger's folder. Costs
            seconds, at most twice `time_limit`, and until then a copy of the model and the samples.
        keep_tolerance: Distance that the list is to meet, in the report's unit (``lateral_px_p99``); None aims at a
            fifth of what the whole graph costs.
        refit: Where engines can be run, set new weights in the engine of an earlier validation instead of building
            another. A refittable engine may be optimised less than the one that is deployed.
        background: During ``fit``, build and run engines while training goes on. Their numbers arrive at a later
            validation or when training ends, with the step whose weights they belong to in ``parity/<target>/step``; do
            not let a checkpoint be chosen by them.
        perturb_targets: Run every target that is measured on the perturbed inputs too:
            ``sensitivity/<perturbation>/<target>/<unit>``.

    Raises:
        ValueError: For an unknown target, perturbation, metric limit, or a number out of range.
        MisconfigurationException: Under strategies in which no rank has the whole model.

    Example:
        >>> callback = DeploymentParityCallback(["onnxruntime-fp32", "emulated-fp16"], every_n_epochs=2)
        >>> trainer = pl.Trainer(callbacks=[callback], logger=False, enable_checkpointing=False)
    """

    def __init__(
        self,
        targets: Literal["auto"] | list[str] = "auto",
        *,
        every_n_epochs: int = 1,
        num_samples: int = 16,
        max_batch: int = 16,
        time_limit: float = 120.0,
        perturbations: Names = "typical",
        mean: float | list[float] | None = None,
        std: float | list[float] | None = None,
        input_key: int | str | list[int | str] = 0,
        decode: str | None = "decode",
        tolerance: dict[str, float] | None = None,
        on_violation: Literal["log", "warn", "stop", "raise"] = "log",
        on_failure: Literal["warn", "raise"] = "warn",
        weakly_typed: bool = False,
        keep_fp32: list[str] | None = None,
        localise: bool = True,
        keep_tolerance: float | None = None,
        refit: bool = False,
        background: bool = False,
        perturb_targets: bool = False,
    ) -> None:
        super().__init__()
        _check_positive(
            every_n_epochs=every_n_epochs, num_samples=num_samples, max_batch=max_batch, time_limit=time_limit
        )
        if isinstance(targets, list):
            for target in targets:
                runtime(target)
        for key in tolerance or {}:
            runtime(key.split("/")[0])
        self.targets = targets
        self.every_n_epochs = every_n_epochs
        self.num_samples = num_samples
        self.max_batch = max_batch
        self.time_limit = time_limit
        self.perturbations = perturbations
        self.mean, self.std = mean, std
        self.input_key = input_key
        self.decode = decode
        self.tolerance = tolerance
        self.on_violation = on_violation
        self.on_failure = on_failure
        self.weakly_typed = weakly_typed
        self.keep_fp32 = keep_fp32
        self.localise = localise
        self.keep_tolerance = keep_tolerance
        self.refit = refit
        self.background = background
        self.perturb_targets = perturb_targets
        self.report: ParityReport | None = None
        self._perturbations = named_perturbations(perturbations)
        self._engines = BackgroundParity(time_limit)
        self._history: list[tuple[int, dict[str, float]]] = []
        self._last: dict[str, float] = {}
        self._warned: set[str] = set()
        self._due = False
        self._snapshot: dict[str, Tensor] | None = None
        self._inputs: FirstInputs | None = None
        self._attempted = False
        self._subject: Subject | None = None

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse what cannot work and say at once which targets are missing here."""
        refuse_sharded(trainer, "DeploymentParityCallback")
        add_layout(
            trainer,
            "deployment parity",
            {
                "distance to PyTorch": [r"parity/.*/rel_l2"],
                "attribution": [r"attribution/.*"],
                "preprocessing, as a multiple of fp16": [r"sensitivity/.*/times_fp16"],
            },
        )
        if isinstance(self.targets, list):
            for made in map(runtime, self.targets):
                able = made.can_build()
                if not able:
                    self._fail(f"{made.name} cannot be measured here: {able.reason}")

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the page of custom scalars."""
        write_layout(trainer)

    @override
    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Decide whether this validation is measured."""
        self._due = self._is_due(trainer)
        self._snapshot = None
        self._inputs = FirstInputs(self._wanted(trainer), self.input_key)

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
        """Keep the weights as validated (averages are swapped back later), and the first inputs."""
        if not self._due or not trainer.is_global_zero or dataloader_idx > 0 or self._inputs is None:
            return
        if self._snapshot is None:
            self._snapshot = state_on_cpu(pl_module)
        self._inputs.add(batch)

    @override
    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure on rank 0, log on every rank."""
        if self.background or not self._due:
            self._carry(trainer)
        if not self._due:
            pl_module.log_dict(self._arrived(trainer, self._engines.collect), add_dataloader_idx=False)
            return
        self._attempted = True
        outcome = self._measure(trainer, pl_module) if trainer.is_global_zero else _Outcome()
        outcome = trainer.strategy.broadcast(outcome, 0)
        self._snapshot = self._inputs = None
        if outcome.failure:
            self._carry(trainer)
            pl_module.log(_STATUS, float(STATUS_CODES["failed"]), add_dataloader_idx=False)
            self._fail(outcome.failure)
            return
        self._last |= outcome.scalars
        pl_module.log_dict(outcome.scalars, add_dataloader_idx=False)
        for complaint in outcome.complaints:
            self._fail(complaint)
        self._judge(trainer, outcome.scalars)

    def measure(self, trainer: pl.Trainer, pl_module: pl.LightningModule, tag: str) -> dict[str, float]:
        """Parity of the weights that the module holds now, on the first validation samples; logs nothing.

        Call it on every rank, within ``fit`` or ``validate``. Model soups are chosen by it.

        Args:
            trainer: The Trainer.
            pl_module: The module.
            tag: The metric that is wanted; for ``parity/<target>/...`` only that target is measured.

        Returns:
            What was measured, by tag.

        Raises:
            RuntimeError: If the pass failed; the message says why.
        """
        target = tag.split("/")[1] if tag.startswith("parity/") else None
        outcome = _Outcome()
        if trainer.is_global_zero:
            self._snapshot = state_on_cpu(pl_module)
            self._inputs = FirstInputs(self._wanted(trainer), self.input_key)
            for batch in validation_batches(trainer, pl_module):
                self._inputs.add(batch)
                if self._inputs.complete:
                    break
            try:
                with isolated_rng(), torch.inference_mode(False), torch.no_grad():
                    outcome.scalars = self._report(trainer, pl_module, target).scalars()
            except Exception as error:
                outcome.failure = f"The parity pass failed: {type(error).__name__}: {error}."
        self._snapshot = self._inputs = None
        outcome = trainer.strategy.broadcast(outcome, 0)
        if outcome.failure:
            raise RuntimeError(outcome.failure)
        return outcome.scalars

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take what engines still give, while the ranks still hear each other."""
        if arrived := self._arrived(trainer, self._engines.finish):
            log_scalars(trainer, arrived)

    @override
    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the last pass: one table, the worst perturbation, and where to read more."""
        if not self._attempted:
            rank_zero_warn(
                "DeploymentParityCallback measured nothing: no validation batch was seen. "
                "Give the Trainer a validation loader with at least one batch.",
                category=NoEffectWarning,
            )
        self._announce(trainer)

    @override
    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Kill what is being built."""
        self._engines.stop()

    @override
    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Kill what is being built."""
        self._engines.stop()

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """After a lone ``trainer.validate()``, print the table."""
        if trainer.state.fn == "validate":
            self._announce(trainer)

    @override
    def state_dict(self) -> dict[str, Any]:
        """The history of the figure and the last numbers, for a resumed run."""
        return {"history": [[epoch, dict(shares)] for epoch, shares in self._history], "last": dict(self._last)}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the history of the interrupted run."""
        self._history = [(int(epoch), dict(shares)) for epoch, shares in state_dict["history"]]
        self._last = dict(state_dict["last"])

    def _announce(self, trainer: pl.Trainer) -> None:
        if self.report is None:
            return
        page = self._examine(trainer, self.report)
        rank_zero_info(f"\n{summary(self.report)}")
        if page is not None:
            rank_zero_info(f"\nThe whole report:  {page}")
        if any(isinstance(logger, TensorBoardLogger) for logger in trainer.loggers):
            rank_zero_info(f"\nSee it all:  tensorboard --logdir {trainer.log_dir}\n")

    def _examine(self, trainer: pl.Trainer, report: ParityReport) -> Path | None:
        """Find the layers that matter in the last pass and write the page; a failure loses neither fit nor report."""
        subject, self._subject = self._subject, None
        if subject is None:
            return None
        try:
            with isolated_rng(), torch.inference_mode(False), torch.no_grad():
                decode = self._decoder(subject.module)
                self.report = report = localise(
                    subject, report, decode=decode, tolerance=self.keep_tolerance, time_limit=self.time_limit
                )
            if report.layers is not None:
                log_figure(trainer, "parity/layers", draw_layers(report.layers, unit_label(report.unit)))
                log_table(trainer, "parity/layers", *layer_rows(report))
                log_table(trainer, "parity/keep_fp32", *keep_rows(report))
        except ExportError as error:
            self.report = report = replace(report, notes=(*report.notes, f"Layers were not measured: {error}"))
        except Exception as error:
            self._fail(f"the layers that matter could not be found: {type(error).__name__}: {error}.")
        if trainer.logger is None or trainer.log_dir is None or is_fast_dev_run(trainer):
            return None
        try:
            folder = Path(trainer.log_dir) / "parity"
            return write_report(report, folder, history=self._history, tolerance=self.tolerance)
        except OSError as error:
            self._fail(f"the report could not be written: {error}.")
            return None

    def _is_due(self, trainer: pl.Trainer) -> bool:
        if trainer.sanity_checking:
            return False
        if trainer.state.fn != "fit":
            return True
        epoch = trainer.current_epoch + 1
        return not self._last or epoch % self.every_n_epochs == 0 or epoch == trainer.max_epochs

    def _wanted(self, trainer: pl.Trainer) -> int:
        return min(self.num_samples, 2) if is_fast_dev_run(trainer) else self.num_samples

    def _measure(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> _Outcome:
        try:
            with isolated_rng(), torch.inference_mode(False), torch.no_grad():
                report = self._report(trainer, pl_module)
        except Exception as error:
            return _Outcome(failure=f"the parity pass failed: {type(error).__name__}: {error}.")
        self.report = report
        self._history.append((trainer.current_epoch, report.attribution))
        outcome = _Outcome(report.scalars(), self._complaints(report))
        try:
            self._show(trainer, report)
        except Exception as error:
            outcome.complaints.append(f"the figure or a table could not be logged: {type(error).__name__}: {error}.")
        return outcome

    def _arrived(self, trainer: pl.Trainer, fetch: Callable[[], LateResults | None]) -> dict[str, float]:
        """The numbers of engines that were built in the meantime, on every rank; none where none were."""
        if not self.background:
            return {}
        late = fetch() if trainer.is_global_zero else None
        outcome = _Outcome() if late is None else _Outcome(late.scalars(), self._complaints(late))
        if late is not None and self.report is not None:
            self.report = late.merged_into(self.report)
        outcome = trainer.strategy.broadcast(outcome, 0)
        self._last |= outcome.scalars
        for complaint in outcome.complaints:
            self._fail(complaint)
        self._judge(trainer, outcome.scalars)
        return outcome.scalars

    def _complaints(self, report: ParityReport | LateResults) -> list[str]:
        """What went wrong in a pass, each line once in a run."""
        failed = {name: target for name, target in report.targets.items() if target.status == "failed"}
        for note in self._new(report.notes):
            rank_zero_warn(f"Deployment parity: {note}")
        return self._new(f"{name} failed: {target.note}" for name, target in failed.items())

    def _new(self, lines: Iterable[str]) -> list[str]:
        """The lines whose part before the colon was not seen before."""
        new = {line.split(":")[0]: line for line in lines if line.split(":")[0] not in self._warned}
        self._warned |= new.keys()
        return list(new.values())

    def _report(self, trainer: pl.Trainer, pl_module: pl.LightningModule, target: str | None = None) -> ParityReport:
        """Measure everything, or one target without perturbations."""
        if self._inputs is None or self._snapshot is None:
            raise ValueError("no validation batch was seen")
        module = frozen_copy(pl_module, self._snapshot)
        example = to_args(self._inputs.args(), torch.float32)
        subject = Subject(
            module,
            example,
            max_batch=self.max_batch,
            device=str(pl_module.device),
            time_limit=self.time_limit,
            weakly_typed=self.weakly_typed,
            keep_fp32=tuple(self.keep_fp32 or ()),
            refit=self.refit,
        )
        self._subject = subject if self.localise and target is None else self._subject
        runtimes = available(self.targets if target is None else [target])
        settings: dict[str, Any] = {
            "decode": self._decoder(module),
            "perturbations": self._perturbations if target is None else [],
            "pixels": pixel_space(trainer, self.mean, self.std),
            "perturb_targets": self.perturb_targets,
        }
        if self.background and target is None and trainer.state.fn == "fit":
            step, epoch = log_step(trainer), trainer.current_epoch
            return self._engines.measure(subject, runtimes, step=step, epoch=epoch, **settings)
        return measure_parity(subject, runtimes, time_limit=self.time_limit, **settings)

    def _decoder(self, module: torch.nn.Module) -> Decode | None:
        return getattr(module, self.decode, None) if self.decode else None

    def _show(self, trainer: pl.Trainer, report: ParityReport) -> None:
        log_figure(trainer, "parity/overview", draw_parity(self._history, report))
        log_table(trainer, "parity/targets", *target_rows(report))
        log_table(trainer, "sensitivity/perturbations", *perturbation_rows(report))
        if report.findings:
            log_table(trainer, "parity/findings", *finding_rows(report))

    def _fail(self, message: str) -> None:
        if self.on_failure == "raise":
            raise RuntimeError(f"Deployment parity: {message}")
        rank_zero_warn(f"Deployment parity: {message} Training goes on.")

    def _carry(self, trainer: pl.Trainer) -> None:
        """Keep the last numbers visible to monitors without logging them twice."""
        if not trainer.sanity_checking:
            last = {tag: torch.tensor(value) for tag, value in self._last.items() if tag != _STATUS}
            trainer.callback_metrics.update(last)

    def _judge(self, trainer: pl.Trainer, scalars: dict[str, float]) -> None:
        broken = [str(violation) for violation in violations(scalars, self.tolerance)]
        if not broken or self.on_violation == "log":
            return
        message = "Deployment parity is violated: " + "; ".join(broken) + "."
        if self.on_violation == "raise":
            raise MisconfigurationException(message)
        rank_zero_warn(message)
        if self.on_violation == "stop":
            trainer.should_stop = True


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if value <= 0:
            raise ValueError(f"Expected `{name}` to be positive, but got {value}.")
