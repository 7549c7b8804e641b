"""One parity pass: the same samples through every target and every perturbation, each compared with the reference."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from lightning_robust.deployment.engines import Runtime, Subject, run_module
from lightning_robust.deployment.engines.base import Runner
from lightning_robust.deployment.engines.execution import (
    Execution,
    execute,
    one_line,
    run_in_batches,
)
from lightning_robust.deployment.engines.torch import TorchRuntime
from lightning_robust.deployment.graph.lint import Finding
from lightning_robust.deployment.parity.attribution import attribute, fp16_metrics
from lightning_robust.deployment.parity.perturbed_inputs import PerturbedInputs
from lightning_robust.deployment.parity.result import ParityReport, TargetResult
from lightning_robust.deployment.parity.scale import Decode, Readout, Scale
from lightning_robust.deployment.pixels.catalogue import Perturbation
from lightning_robust.deployment.pixels.perturb import perturb
from lightning_robust.functional.pixels import PixelSpace
from lightning_robust.structures import flatten, rebuild


def measure_parity(
    subject: Subject,
    runtimes: Sequence[Runtime],
    *,
    decode: Decode | None = None,
    perturbations: Sequence[Perturbation] = (),
    pixels: PixelSpace | None = None,
    time_limit: float = 120.0,
    perturb_targets: bool = False,
) -> ParityReport:
    """Run the same samples through every runtime and compare with PyTorch in fp64.

    A runtime that fails becomes a line in the report; the others go on.

    Args:
        subject: The model and the samples.
        runtimes: What to compare, from :func:`~.engines.targets.available`.
        decode: Turns the model's outputs into named values in the task's own units.
        perturbations: Differences of preprocessing on the deployed side, from :func:`~.catalogue.perturbations`.
        pixels: How the samples were normalised; needed for perturbations.
        time_limit: Seconds after which nothing new is started.
        perturb_targets: Run every runtime that was measured on the perturbed inputs too (engines once for each).

    Example:
        >>> import torch
        >>> from lightning_robust.deployment.engines import available
        >>> subject = Subject(torch.nn.Linear(3, 1).eval(), (torch.ones(4, 3),))
        >>> report = measure_parity(subject, available(["torch-fp32", "torch-bf16"]))
        >>> report.targets["torch-fp32"].metrics["max_abs"] < 1e-6
        True
    """
    return ParityPass(subject, decode, time_limit, perturb_targets).report(runtimes, perturbations, pixels)


@dataclass(frozen=True)
class _Fed:
    """Arguments of ``forward`` and what PyTorch in fp32 returned for them."""

    args: tuple[Any, ...]
    readout: Readout


class ParityPass:
    """One parity pass: the reference outputs, the clock, and the notes of the pass.

    Args:
        subject: The model and the samples.
        decode: Turns the model's outputs into named values in the task's own units.
        time_limit: Seconds after which nothing new is started.
        perturb_targets: Keep the perturbed inputs, so that runtimes can be run on them too.
    """

    def __init__(
        self, subject: Subject, decode: Decode | None, time_limit: float, perturb_targets: bool = False
    ) -> None:
        self._start = time.monotonic()
        self._subject = subject
        self._limit = time_limit
        self.perturbed = PerturbedInputs(subject.max_batch) if perturb_targets else None
        self._runners: dict[str, Runner] = {}
        self._notes: list[str] = []
        self._fp32 = partial(run_module, subject.module)
        self._reference_name, outputs = self._run_reference()
        self._scale, self._reference = self._read_reference(outputs, decode)
        self._unit = self._reference.unit

    def report(
        self, runtimes: Sequence[Runtime], perturbations: Sequence[Perturbation], pixels: PixelSpace | None
    ) -> ParityReport:
        """Measure the runtimes, and how far the perturbations move the outputs."""
        targets = {runtime.name: self._measure_target(runtime) for runtime in runtimes}
        sensitivity = self._measure_sensitivity(perturbations, pixels)
        _add_times_fp16(sensitivity, fp16_metrics(targets), self._unit)
        target_sensitivity = {name: self._perturb_target(name, runner) for name, runner in self._runners.items()}
        findings = self._find_problems()
        return ParityReport(
            targets,
            sensitivity,
            attribute(targets, sensitivity, self._unit),
            self._unit,
            self._reference_name,
            len(next(iter(flatten(self._subject.example).values()))),
            time.monotonic() - self._start,
            tuple(self._notes),
            findings,
            target_sensitivity=target_sensitivity,
        )

    def result(self, name: str, execution: Execution) -> TargetResult:
        """A runtime's distance to the reference, or why it has none."""
        if execution.warning:
            self._notes.append(f"{name}: {execution.warning}")
        metrics, status, note = {}, execution.status, execution.note
        if status == "measured":
            try:
                metrics = self._reference.distance(self._scale.read(execution.outputs))
            except Exception as error:
                status, note = "failed", one_line(error)
        return TargetResult(status, metrics, note, execution.size, execution.seconds)

    def target_sensitivity(self, outputs: Mapping[Any, list[Tensor]]) -> dict[str, float]:
        """Perturbation -> how far it moves a runtime's outputs on the perturbed inputs, in the report's unit."""
        pairs = [] if self.perturbed is None else self.perturbed.pairs(outputs)
        read = self._scale.read
        return {name: read(trained).distance(read(deployed))[self._unit] for name, trained, deployed in pairs}

    def _run_reference(self) -> tuple[str, list[Tensor]]:
        if self._subject.reference is not None:
            return self._subject.reference, self._run(self._fp32, self._subject.example)
        try:
            runner = TorchRuntime("torch", "fp64").build(self._subject).run
            if runner is not None:
                return "torch-fp64", self._run(runner, self._subject.example)
        except Exception as error:
            self._notes.append(
                f"The module does not run in fp64 ({one_line(error)}); the reference is PyTorch in fp32."
            )
        return "torch-fp32", self._run(self._fp32, self._subject.example)

    def _read_reference(self, outputs: list[Tensor], decode: Decode | None) -> tuple[Scale, Readout]:
        try:
            scale = Scale(self._subject.module, self._subject.example, decode)
            return scale, scale.read(outputs)
        except Exception as error:
            self._notes.append(f"`decode` failed and is left out: {one_line(error)}")
            return Scale(), Scale().read(outputs)

    def _run(self, runner: Runner, args: tuple[Any, ...]) -> list[Tensor]:
        return run_in_batches(runner, args, self._subject.max_batch)

    def _is_late(self) -> bool:
        return time.monotonic() - self._start > self._limit

    def _measure_target(self, runtime: Runtime) -> TargetResult:
        if self._is_late() and runtime.can_build():
            return TargetResult("skipped", note=f"the time limit of {self._limit:g} s was reached")
        execution = execute(runtime, self._subject)
        result = self.result(runtime.name, execution)
        if self.perturbed is not None and execution.run is not None:
            self._runners[runtime.name] = execution.run
        return result

    def _measure_sensitivity(
        self, perturbations: Sequence[Perturbation], pixels: PixelSpace | None
    ) -> dict[str, dict[str, float]]:
        if not perturbations:
            return {}
        images, *others = flatten(self._subject.example).values()

        def feed(perturbed: Tensor) -> _Fed:
            args = rebuild(self._subject.example, iter([perturbed, *others]))
            return _Fed(args, self._scale.read(self._run(self._fp32, args)))

        try:
            batch = perturb(images, pixels, perturbations)
        except ValueError as error:
            self._notes.append(f"Preprocessing was not perturbed: {error}")
            return {}
        results = {}
        for entry in batch:
            name = entry.entry.name
            if self._is_late():
                self._notes.append(f"Perturbations from {name!r} on were skipped: the time was up.")
                break
            try:
                trained, deployed = entry.through(feed)
                results[name] = trained.readout.distance(deployed.readout)
            except Exception as error:
                self._notes.append(f"Perturbation {name!r} failed: {one_line(error)}")
                continue
            if self.perturbed is not None:
                self.perturbed.add(name, deployed.args, entry.entry.trained, trained.args)
        return results

    def _perturb_target(self, name: str, runner: Runner) -> dict[str, float]:
        try:
            return {} if self.perturbed is None else self.target_sensitivity(self.perturbed.run(runner, self._is_late))
        except Exception as error:
            self._notes.append(f"{name} on perturbed inputs failed: {one_line(error)}")
            return {}

    def _find_problems(self) -> tuple[Finding, ...]:
        try:
            return self._subject.findings()
        except Exception as error:
            self._notes.append(f"The graph was not read for findings ({one_line(error)}).")
            return ()


def _add_times_fp16(sensitivity: dict[str, dict[str, float]], fp16: Mapping[str, float], unit: str) -> None:
    if 0 < fp16.get(unit, 0.0) < math.inf:
        for metrics in sensitivity.values():
            metrics["times_fp16"] = metrics[unit] / fp16[unit]
