"""Engines built and run in a thread while training goes on; their distances are told when they arrive, with their step.

The thread waits for child processes and draws no random number; exporting and comparing stay with the caller, and what
is measured is ``parity/measure.py``'s business.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from lightning_robust.deployment.engines import Runtime, Subject
from lightning_robust.deployment.engines.child.process import CANCELLED
from lightning_robust.deployment.engines.execution import Execution, execute, one_line
from lightning_robust.deployment.parity.measure import (
    Decode,
    ParityPass,
    ParityReport,
    TargetResult,
    attribute,
    moved_scalars,
)
from lightning_robust.deployment.pixels.catalogue import Perturbation
from lightning_robust.functional.pixels import PixelSpace


@dataclass(frozen=True)
class LateResults:
    """What engines gave that were started in an earlier pass.

    Args:
        targets: Target -> result, with the step whose weights it belongs to.
        attribution: ``"engine"``, measured against the emulation in that same pass; empty where it is not known.
        moved: As in :class:`~.parity.ParityReport`.
        unit: Likewise.
        notes: Lines that a reader should see.
    """

    targets: dict[str, TargetResult]
    attribution: dict[str, float]
    moved: dict[str, dict[str, float]]
    unit: str
    notes: tuple[str, ...] = ()

    def scalars(self) -> dict[str, float]:
        """All numbers under their TensorBoard tags."""
        tags = moved_scalars(self.moved, self.unit)
        for name, target in self.targets.items():
            tags |= target.scalars(name)
        return tags | {f"attribution/{cause}": value for cause, value in self.attribution.items()}

    def merged_into(self, report: ParityReport) -> ParityReport:
        """A later pass's report with these results in it."""
        return replace(
            report,
            targets=report.targets | self.targets,
            attribution=report.attribution | self.attribution,
            moved=report.moved | self.moved,
            notes=report.notes + self.notes,
        )


@dataclass
class _Job:
    """What one thread does: build and run engines one after the other, on the weights of one step."""

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
        self.thread.start()

    def late(self) -> bool:
        return self.cancelled.is_set() or time.monotonic() - self._start > self.time_limit

    def _work(self) -> None:
        CANCELLED.set(self.cancelled)
        for made in self.runtimes:
            if self.late():
                return
            with torch.no_grad():
                execution = execute(made, self.subject)
            if not self.cancelled.is_set():  # else it failed because its process was killed
                self.executions[made.name] = execution
                self._perturb(made.name, execution)

    def _perturb(self, name: str, execution: Execution) -> None:
        if self.parity.perturbed is None or execution.run is None:
            return
        try:
            self.perturbed[name] = self.parity.perturbed.run(execution.run, self.late)
        except Exception as error:
            self.notes.append(f"{name} on perturbed inputs failed: {one_line(error)}")

    def results(self) -> LateResults:
        """The distances, in the caller's thread."""
        targets = {made.name: self._result(made.name) for made in self.runtimes}
        shares = attribute(self.report.targets | targets, {}, self.report.unit)
        return LateResults(
            targets,
            {cause: share for cause, share in shares.items() if cause == "engine"},
            {name: self._moved(name) for name in self.perturbed},
            self.report.unit,
            tuple(self.notes),
        )

    def _moved(self, name: str) -> dict[str, float]:
        try:
            return self.parity.moved(self.perturbed[name])
        except Exception as error:
            self.notes.append(f"{name} on perturbed inputs failed: {one_line(error)}")
            return {}

    def _result(self, name: str) -> TargetResult:
        if name not in self.executions:
            return TargetResult("skipped", note=f"not ready in time, with the weights of step {self.step}")
        execution = self.executions[name]
        if execution.warning:
            self.notes.append(f"{name}: {execution.warning}")
        result = self.parity.judge(name, execution)
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
        subject: Subject,
        runtimes: Sequence[Runtime],
        *,
        step: int,
        epoch: int,
        decode: Decode | None = None,
        perturbations: Sequence[Perturbation] = (),
        pixels: PixelSpace | None = None,
        perturb_targets: bool = False,
    ) -> ParityReport:
        """As :func:`~.parity.measure_parity`, without waiting for slow runtimes.

        Args:
            subject: The model and the samples; neither may be changed afterwards.
            runtimes: What to compare.
            step: Of the training, which the results that arrive later are marked with.
            epoch: Likewise.
            decode: As there, like all that follow.
            perturbations: What the car may do differently to the pixels.
            pixels: How the samples were normalised.
            perturb_targets: Run every runtime on the perturbed inputs too.
        """
        slow = [made for made in runtimes if made.slow and made.can_build()]
        parity = ParityPass(subject, decode, self._limit, perturb_targets)
        report = parity.report([made for made in runtimes if made not in slow], perturbations, pixels)
        arrived = self.collect()
        if slow and self._job is None:
            self._start(_Job(subject, slow, parity, report, step, epoch, self._limit))
        waiting = {made.name: self._waiting() for made in slow}
        report = replace(report, targets=report.targets | waiting)
        report = report if arrived is None else arrived.merged_into(report)
        return replace(report, targets={made.name: report.targets[made.name] for made in runtimes})

    def collect(self) -> LateResults | None:
        """What has arrived since the last call; None if nothing has, or engines are still being built."""
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
        """Kill what is being built and wait until the thread is gone; call it again at no cost."""
        job, self._job = self._job, None
        if job is not None:
            job.cancelled.set()
            job.thread.join()

    def _start(self, job: _Job) -> None:
        # what changes state of the whole process (exporter, cached look-ups) is done before there are two threads
        with contextlib.suppress(Exception):  # the subject keeps the error, and each runtime fails with it
            _ = job.subject.exported
        for made in job.runtimes:
            made.can_run()
        self._job = job
        job.start()

    def _waiting(self) -> TargetResult:
        step = self._job.step if self._job is not None else None
        return TargetResult("skipped", note=f"still building since step {step}")
