"""Engines built and run in a thread while training goes on; each result carries the step whose weights it measured.

The thread waits for child processes and draws no random number. Exporting and comparing stay in the caller's thread.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from lightning_robust.complaints import one_line
from lightning_robust.deployment.engines import Runtime, Subject
from lightning_robust.deployment.engines.child.process import CANCELLED
from lightning_robust.deployment.engines.execution import Execution, execute
from lightning_robust.deployment.parity.attribution import find_engine
from lightning_robust.deployment.parity.baseline import Measured
from lightning_robust.deployment.parity.links import Basis, Link, chain_scalars, link_bases
from lightning_robust.deployment.parity.measure import ParityPass, in_unit
from lightning_robust.deployment.parity.perturbed import Perturb, preprocessing_link
from lightning_robust.deployment.parity.result import (
    ParityReport,
    TargetResult,
    interval_scalars,
    target_sensitivity_scalars,
)
from lightning_robust.deployment.pixels.catalogue import Perturbation
from lightning_robust.deployment.pixels.perturb import perturb as perturb_images
from lightning_robust.functional.pixels import PixelSpace


@dataclass(frozen=True)
class LateResults:
    """Results of engines that were started in an earlier pass.

    Args:
        targets: Target -> result, with the step whose weights it belongs to.
        chain: The links that end at an engine, measured against the emulation in that same pass.
        target_sensitivity: As in :class:`~.result.ParityReport`.
        unit: As there.
        notes: Lines that a reader should see.
        basis: As there.
    """

    targets: dict[str, TargetResult]
    chain: tuple[Link, ...]
    target_sensitivity: dict[str, dict[str, float]]
    unit: str
    notes: tuple[str, ...] = ()
    basis: dict[str, Basis] = field(default_factory=dict)

    def scalars(self) -> dict[str, float]:
        """All numbers under their TensorBoard tags."""
        tags = target_sensitivity_scalars(self.target_sensitivity, self.unit)
        for name, target in self.targets.items():
            tags |= target.scalars(name) | interval_scalars(self.basis, f"parity/{name}/{self.unit}")
        return tags | chain_scalars(self.chain)

    def merged_into(self, report: ParityReport) -> ParityReport:
        """A later pass's report with these results in it.

        Distances in another unit than the pass has, as before the first box is found, have no place on its scale.
        """
        if self.unit != report.unit:
            return replace(report, targets=report.targets | self.targets, notes=report.notes + self.notes)
        late = {link.key for link in self.chain}
        return replace(
            report,
            targets=report.targets | self.targets,
            chain=(*(link for link in report.chain if link.key not in late), *self.chain),
            basis=report.basis | self.basis,
            target_sensitivity=report.target_sensitivity | self.target_sensitivity,
            notes=report.notes + self.notes,
        )


@dataclass
class _Job:
    """The work of one thread: build and run engines one after the other, on the weights of one step."""

    subject: Subject
    runtimes: Sequence[Runtime]
    parity: ParityPass
    report: ParityReport
    step: int
    epoch: int
    time_limit: float
    executions: dict[str, Execution] = field(default_factory=dict)
    perturbed: dict[str, dict[Any, list[Tensor]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    cancelled: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        self._start = time.monotonic()
        self.thread = threading.Thread(target=self._work, name="engine builds", daemon=True)
        self.thread.start()  # RuntimeError where the system gives no further thread

    def is_late(self) -> bool:
        return self.cancelled.is_set() or time.monotonic() - self._start > self.time_limit

    def results(self) -> LateResults:
        """The distances, computed in the caller's thread."""
        basis: dict[str, Basis] = {}
        targets = {runtime.name: self._result(runtime, basis) for runtime in self.runtimes}
        moved = {name: self._target_sensitivity(name) for name in self.perturbed}
        everything = self.report.targets | targets
        engine, unit = find_engine(targets), self.report.unit
        links = [link for link in self.parity.chain(everything) if link.target in targets]
        links += preprocessing_link(moved.get(engine, {}), engine, unit)
        basis |= link_bases(links)
        on_targets = {name: in_unit(found, unit) for name, found in moved.items()}
        return LateResults(targets, tuple(links), on_targets, unit, tuple(self.notes), basis)

    def _work(self) -> None:
        with self._noting("The engines in the background"):
            self._execute_all()

    def _execute_all(self) -> None:
        CANCELLED.set(self.cancelled)
        for runtime in self.runtimes:
            if self.is_late():
                return
            with torch.no_grad():
                execution = execute(runtime, self.subject, self.parity.baseline.first_window)
            if not self.cancelled.is_set():  # else it failed because its process was killed
                self.executions[runtime.name] = execution
                self._run_perturbed(runtime.name, execution)

    def _run_perturbed(self, name: str, execution: Execution) -> None:
        if self.parity.perturbed is None or execution.run is None:
            return
        with self._noting(f"{name} on perturbed inputs"):
            self.perturbed[name] = self.parity.perturbed.run(execution.run, self.is_late)

    def _target_sensitivity(self, name: str) -> dict[str, Measured]:
        with self._noting(f"{name} on perturbed inputs"):
            return self.parity.target_sensitivity(self.perturbed[name])
        return {}

    @contextlib.contextmanager
    def _noting(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.notes.append(f"{what} failed: {one_line(error)}")

    def _result(self, runtime: Runtime, basis: dict[str, Basis]) -> TargetResult:
        if runtime.name not in self.executions:
            return TargetResult("skipped", note=f"not ready in time, with the weights of step {self.step}")
        execution = self.executions[runtime.name]
        if execution.warning:
            self.notes.append(f"{runtime.name}: {execution.warning}")
        result, found = self.parity.result(runtime, execution)
        basis |= found
        note = ", ".join(part for part in (result.note, f"weights of step {self.step}, epoch {self.epoch}") if part)
        return replace(result, note=note, step=self.step)


class BackgroundParity:
    """Parity passes whose slow runtimes work beside the training, one job at a time.

    A pass measures the fast runtimes at once, starts the slow ones on the same weights and samples, and returns with
    the results of those that an earlier pass had started. While they work no other job is started, and none waits.

    Args:
        time_limit: Seconds for one pass, and again for the engines that it started.
    """

    def __init__(self, time_limit: float) -> None:
        self._limit = time_limit
        self._job: _Job | None = None

    def measure(
        self,
        parity: ParityPass,
        runtimes: Sequence[Runtime],
        perturbations: Sequence[Perturbation] = (),
        pixels: PixelSpace | None = None,
        *,
        step: int,
        epoch: int,
        perturb: Perturb = perturb_images,
    ) -> ParityReport:
        """Measure as :meth:`ParityPass.report` does, without waiting for slow runtimes.

        Args:
            parity: The pass. Neither its model nor its samples may be changed afterwards.
            runtimes: What to compare.
            perturbations: Differences of preprocessing on the deployed side.
            pixels: How the samples were normalised.
            step: Of the training; results that arrive later are marked with it.
            epoch: Of the training, for their notes.
            perturb: Makes the perturbed pictures.
        """
        slow = [runtime for runtime in runtimes if runtime.slow and runtime.can_build(parity.subject.settings)]
        fast = [runtime for runtime in runtimes if runtime not in slow]
        report = parity.report(fast, perturbations, pixels, perturb)
        late = self.collect()
        waiting = self._start(_Job(parity.subject, slow, parity, report, step, epoch, self._limit))
        report = replace(report, targets=report.targets | {runtime.name: waiting for runtime in slow})
        report = report if late is None else late.merged_into(report)
        return replace(report, targets={runtime.name: report.targets[runtime.name] for runtime in runtimes})

    def collect(self) -> LateResults | None:
        """The results since the last call; None if there are none, or engines are still being built."""
        if self._job is None or self._job.thread.is_alive():
            return None
        job, self._job = self._job, None
        return job.results()

    def finish(self) -> LateResults | None:
        """What is ready within the time limit; the rest is given up and reported as skipped."""
        if self._job is None:
            return None
        job = self._job
        job.thread.join(self._limit)
        self.stop()
        return job.results()

    def stop(self) -> None:
        """Kill what is being built and wait until the thread is gone; calling it again costs nothing."""
        job, self._job = self._job, None
        if job is not None:
            job.cancelled.set()
            job.thread.join()

    def _start(self, job: _Job) -> TargetResult:
        """Start a thread, unless one is at work or there is nothing to do; what runtimes are until numbers come."""
        if self._job is not None or not job.runtimes:
            return _still_building(self._job or job)
        # what changes state of the whole process (exporter, cached look-ups) is done before there are two threads
        with contextlib.suppress(Exception):  # the subject keeps the error, and each runtime fails with it
            _ = job.subject.exported
        with contextlib.suppress(Exception):  # a runtime that cannot be asked fails when it is run
            for runtime in job.runtimes:
                runtime.can_run(job.subject.settings)
        try:
            job.start()
        except RuntimeError as error:
            return TargetResult("failed", note=f"no thread could be started: {one_line(error)}")
        self._job = job
        return _still_building(job)


def _still_building(job: _Job) -> TargetResult:
    return TargetResult("skipped", note=f"still building since step {job.step}")
