"""A parity pass of the weights that a Trainer validates: their snapshot, and the measurement on rank 0."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from lightning_robust.callbacks.deployment_parity.engine_settings import EngineSettings
from lightning_robust.deployment.engines import Subject, available
from lightning_robust.deployment.graph.export import frozen_copy, to_args
from lightning_robust.deployment.parity.background import BackgroundParity
from lightning_robust.deployment.parity.localise import localise
from lightning_robust.deployment.parity.measure import measure_parity
from lightning_robust.deployment.parity.result import ParityReport
from lightning_robust.deployment.parity.scale import Decode
from lightning_robust.deployment.pixels.catalogue import Perturbation
from lightning_robust.functional.weights import state_on_cpu
from lightning_robust.harness.batches import validation_batches
from lightning_robust.harness.logging import log_step
from lightning_robust.harness.normalisation import pixel_space
from lightning_robust.harness.quiet import isolated_rng
from lightning_robust.harness.samples import FirstInputs


class Snapshot:
    """The weights of one validation, copied at its first batch, and the first inputs that it feeds.

    Args:
        samples: How many inputs.
        input_key: Which part of a batch goes into ``forward``.
    """

    def __init__(self, samples: int, input_key: int | str | list[int | str] | None) -> None:
        self.inputs = FirstInputs(samples, input_key)
        self.weights: dict[str, Tensor] | None = None

    def add(self, pl_module: pl.LightningModule, batch: Any) -> None:
        """Copy what is still missing: averaged weights are swapped back before the validation ends."""
        if self.weights is None:
            self.weights = state_on_cpu(pl_module)
        self.inputs.add(pl_module, batch)

    def fill(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Copy the weights that the module holds, and inputs of the validation loaders."""
        for batch in validation_batches(trainer, pl_module):
            self.add(pl_module, batch)
            if self.inputs.complete:
                break


class ParityMeter:
    """Measures snapshots without a trace in the training: no random number is drawn, no gradient is recorded.

    Args:
        targets: ``"auto"`` or names of targets.
        perturbations: Differences of preprocessing to measure.
        mean: Mean that the pixels were normalised with; None takes the data module's.
        std: Standard deviation that the pixels were normalised with; None takes the data module's.
        decode: Method of the LightningModule that turns outputs into named values; None for no task units.
        time_limit: Seconds for one pass, and for one engine build.
        engines: How engines are built and run.
    """

    def __init__(
        self,
        targets: Literal["auto"] | list[str],
        perturbations: tuple[Perturbation, ...],
        mean: float | list[float] | None,
        std: float | list[float] | None,
        decode: str | None,
        *,
        time_limit: float,
        engines: EngineSettings,
    ) -> None:
        self._targets, self._perturbations = targets, perturbations
        self._mean, self._std, self._decode = mean, std, decode
        self._time_limit, self._engines = time_limit, engines
        self.background = BackgroundParity(time_limit)

    def measure(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, snapshot: Snapshot
    ) -> tuple[Subject, ParityReport]:
        """Measure everything; during ``fit`` with engines in the background if the settings say so."""
        with _isolated():
            subject = self._subject(pl_module, snapshot)
            settings: dict[str, Any] = {
                "decode": self._decoder(subject.module),
                "perturbations": self._perturbations,
                "pixels": pixel_space(trainer, self._mean, self._std),
                "perturb_targets": self._engines.perturb_targets,
            }
            runtimes = available(self._targets)
            if self._engines.background and trainer.state.fn == "fit":
                step, epoch = log_step(trainer), trainer.current_epoch
                return subject, self.background.measure(subject, runtimes, step=step, epoch=epoch, **settings)
            return subject, measure_parity(subject, runtimes, time_limit=self._time_limit, **settings)

    def scalars(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, snapshot: Snapshot, tag: str
    ) -> dict[str, float]:
        """The numbers of the weights that the module holds; for a tag ``parity/<target>/...`` of this target alone."""
        snapshot.fill(trainer, pl_module)
        if not tag.startswith("parity/"):
            return self.measure(trainer, pl_module, snapshot)[1].scalars()
        with _isolated():
            subject, runtimes = self._subject(pl_module, snapshot), available([tag.split("/")[1]])
            decode = self._decoder(subject.module)
            return measure_parity(subject, runtimes, decode=decode, time_limit=self._time_limit).scalars()

    def localise(self, subject: Subject, report: ParityReport, tolerance: float | None) -> ParityReport:
        """Add what each node of the graph costs; :func:`~.deployment.parity.localise.localise` says what is raised."""
        with _isolated():
            decode = self._decoder(subject.module)
            return localise(subject, report, decode=decode, tolerance=tolerance, time_limit=self._time_limit)

    def _subject(self, pl_module: pl.LightningModule, snapshot: Snapshot) -> Subject:
        if snapshot.weights is None:
            raise ValueError("no validation batch was seen")
        module = frozen_copy(pl_module, snapshot.weights)
        example = to_args(snapshot.inputs.args(), torch.float32)
        return self._engines.subject(module, example, str(pl_module.device), self._time_limit)

    def _decoder(self, module: nn.Module) -> Decode | None:
        return getattr(module, self._decode, None) if self._decode else None


@contextmanager
def _isolated() -> Iterator[None]:
    with isolated_rng(), torch.inference_mode(False), torch.no_grad():
        yield
