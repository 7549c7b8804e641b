"""One parity pass: the same samples through every target and every perturbation, each compared with the reference."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Mapping, Sequence

from torch import Tensor

from lightning_robust.checks import check_positive
from lightning_robust.complaints import one_line
from lightning_robust.deployment.engines import Runtime, Subject
from lightning_robust.deployment.engines.base import HALF, Runner
from lightning_robust.deployment.engines.execution import Execution, execute, run_in_batches
from lightning_robust.deployment.graph.lint import Finding
from lightning_robust.deployment.parity.attribution import Side, find_chain, find_engine, fp16_metrics, neighbours
from lightning_robust.deployment.parity.baseline import Baseline, Measured, measure_distance
from lightning_robust.deployment.parity.links import Basis, Link, link_bases
from lightning_robust.deployment.parity.perturbed import Perturb, PerturbationSweep, preprocessing_link, with_times_fp16
from lightning_robust.deployment.parity.perturbed_inputs import PerturbedInputs
from lightning_robust.deployment.parity.result import ParityReport, TargetResult
from lightning_robust.deployment.parity.samples import Outputs
from lightning_robust.deployment.parity.scale import Decode, Known, Moved, Task, Truth
from lightning_robust.deployment.parity.scenes import WorstPicture, worst_scenes
from lightning_robust.deployment.parity.storage import storage_metrics
from lightning_robust.deployment.parity.tolerances import check_tolerances
from lightning_robust.deployment.pixels.catalogue import Perturbation
from lightning_robust.deployment.pixels.perturb import perturb as perturb_images
from lightning_robust.functional.pixels import PixelSpace
from lightning_robust.progress import track

Tolerance = Mapping[str, float]


def measure_parity(
    subject: Subject,
    runtimes: Sequence[Runtime],
    *,
    decode: Decode | None = None,
    known: Known | None = None,
    moved: Moved | None = None,
    truth: Truth | None = None,
    perturbations: Sequence[Perturbation] = (),
    pixels: PixelSpace | None = None,
    time_limit: float = 120.0,
    tolerance: Tolerance | None = None,
    perturb_targets: bool = False,
    timed: bool = False,
) -> ParityReport:
    """Run the same samples through every runtime and compare with PyTorch in fp64.

    A runtime that fails becomes a line in the report; the others go on. Samples are taken in windows of 16, 16, 32, 64
    and so on; a runtime or a perturbation takes no further one once its interval is narrower than a tenth of its value,
    or of its tolerance. Engines run on the first window alone.

    Args:
        subject: The model and the samples.
        runtimes: What to compare, from :func:`~.engines.targets.available`.
        decode: Turns the model's outputs into named values in the task's own units.
        known: Which of their points the model knows, as :class:`~.scale.Task` documents.
        moved: What a right answer becomes when the picture moves, as documented there.
        truth: The labels of samples, as documented there.
        perturbations: Differences of preprocessing on the deployed side, from :func:`~.catalogue.perturbations`.
        pixels: How the samples were normalised; needed for perturbations.
        time_limit: Seconds after which nothing new is started.
        tolerance: ``"<target>/<metric>"`` -> largest allowed value; a tenth of it is precise enough.
        perturb_targets: Run every runtime that was measured on the perturbed inputs too (engines once for each).
        timed: Measure how long an inference takes, on the engines that are executed: half a second for each and more.

    Raises:
        ValueError: If there are no samples, nothing to compare or no time, or for a tolerance that is no number from 0.

    Example:
        >>> import torch
        >>> from lightning_robust.deployment.engines import available
        >>> subject = Subject(torch.nn.Linear(3, 1).eval(), (torch.ones(4, 3),))
        >>> report = measure_parity(subject, available(["torch-fp32", "torch-bf16"]))
        >>> report.targets["torch-fp32"].metrics["max_abs"] < 1e-6
        True
    """
    if not runtimes and not perturbations:
        raise ValueError("Expected at least one runtime or perturbation to compare, but got none. Name a target.")
    check_positive(time_limit=time_limit)
    check_tolerances(tolerance)
    task = Task(decode, known, moved, truth)
    measured = ParityPass(subject, task, time_limit, perturb_targets, tolerance, timed=timed)
    return measured.report(runtimes, perturbations, pixels)


class ParityPass:
    """One parity pass: the reference outputs, the clock, and the notes of the pass.

    Args:
        subject: The model and the samples.
        task: What the task says of the outputs.
        time_limit: Seconds after which nothing new is started.
        perturb_targets: Keep the perturbed inputs, so that runtimes can be run on them too.
        tolerance: As for :func:`measure_parity`.
        timed: As there.
    """

    def __init__(
        self,
        subject: Subject,
        task: Task,
        time_limit: float,
        perturb_targets: bool = False,
        tolerance: Tolerance | None = None,
        *,
        timed: bool = False,
    ) -> None:
        self._start, self._timed = time.monotonic(), timed
        self.subject, self._task, self._limit = subject, task, time_limit
        self._tolerance = tolerance or {}
        self.baseline = Baseline(subject, task)
        self.perturbed = PerturbedInputs() if perturb_targets else None
        self._runners: dict[str, Runner] = {}
        self._outputs: dict[str, Outputs] = {}
        self._slow: set[str] = set()
        self._notes: list[str] = []

    def report(
        self,
        runtimes: Sequence[Runtime],
        perturbations: Sequence[Perturbation],
        pixels: PixelSpace | None,
        perturb: Perturb = perturb_images,
    ) -> ParityReport:
        """Measure the runtimes, and how far the perturbations move the outputs."""
        basis: dict[str, Basis] = {}
        targets = {
            runtime.name: self._measure_target(runtime, basis) for runtime in track(runtimes, "Running the targets")
        }
        sweep = PerturbationSweep(
            self.subject, self.baseline, self._task.moved, self._is_late, self._notes, self.perturbed
        )
        moved = sweep.measure(perturbations, pixels, perturb) if perturbations else {}
        on_targets = {
            name: self._perturb_target(name, runner)
            for name, runner in track(self._runners.items(), "Running the targets on perturbed inputs")
        }
        chain = self.chain(targets) + self._preprocessing(targets, moved, on_targets)
        for name, found in moved.items():
            basis |= found.basis(f"sensitivity/{name}")
        findings, scenes = self._find_problems(), self._scenes(targets, pixels)
        return ParityReport(
            targets,
            with_times_fp16(moved, fp16_metrics(targets), self.unit),
            chain,
            self.unit,
            self.baseline.name,
            max((rests.samples for rests in basis.values()), default=self.baseline.first_window.stop),
            time.monotonic() - self._start,
            (*self.baseline.notes, *self.subject.notes, *self._notes),
            findings,
            remarks=tuple(self.baseline.remarks),
            target_sensitivity={name: in_unit(found, self.unit) for name, found in on_targets.items()},
            basis=basis | link_bases(chain),
            scenes=scenes,
        )

    @property
    def unit(self) -> str:
        """The metric that stands for a distance."""
        return self.baseline.unit

    def result(self, runtime: Runtime, execution: Execution) -> tuple[TargetResult, dict[str, Basis]]:
        """A runtime's distance to the reference and what it rests on, or why it has none."""
        if execution.warning:
            self._notes.append(f"{runtime.name}: {execution.warning}")
        metrics, status, note, basis = {}, execution.status, execution.note, {}
        if status == "measured":
            try:
                found = self._distance(runtime, execution)
                metrics, basis = dict(found.metrics), found.basis(f"parity/{runtime.name}")
            except Exception as error:
                status, note = "failed", one_line(error)
        layers, latency, seconds = execution.layers, execution.latency, execution.seconds
        return TargetResult(status, metrics, note, execution.size, seconds, layers=layers, latency=latency), basis

    def chain(self, targets: Mapping[str, TargetResult]) -> tuple[Link, ...]:
        """The links between the targets that were measured, those of an earlier call included."""
        measured = {name: each for name, each in self._outputs.items() if targets[name].status == "measured"}
        if not measured:
            return ()
        widest = self.baseline.widest()
        names = [name for name in neighbours(measured, self.baseline.name) if name in measured]
        sides = {name: self._side(measured[name], name, widest) for name in names}
        sides[self.baseline.name] = Side(widest.stop, lambda samples: self.baseline.readout(slice(0, samples)))
        return find_chain(sides, self.baseline.name, self.unit)

    def target_sensitivity(self, outputs: Mapping[object, list[Tensor]]) -> dict[str, Measured]:
        """Perturbation -> how far it moves a runtime's outputs on the perturbed inputs."""
        pairs = [] if self.perturbed is None else self.perturbed.pairs(outputs)
        read, window = self.baseline.scale.read, self.baseline.first_window
        reference = self.baseline.readout(window)
        return {
            name: measure_distance(read(trained).knowing(reference), read(deployed), window.stop)
            for name, trained, deployed in pairs
        }

    def _is_late(self) -> bool:
        return time.monotonic() - self._start > self._limit

    def _measure_target(self, runtime: Runtime, basis: dict[str, Basis]) -> TargetResult:
        if self._is_late() and runtime.can_build(self.subject.settings):
            return TargetResult("skipped", note=f"the time limit of {self._limit:g} s was reached")
        execution = execute(runtime, self.subject, self.baseline.first_window, timed=self._timed)
        result, found = self.result(runtime, execution)
        basis |= found
        if self.perturbed is not None and execution.run is not None:
            self._runners[runtime.name] = execution.run
        return result

    def _distance(self, runtime: Runtime, execution: Execution) -> Measured:
        """The distance on as many samples as it takes; the first window has been run."""
        tolerance = self._tolerance.get(f"{runtime.name}/{self.unit}")
        outputs = _executed_outputs(execution, self.baseline.first_window, self.subject)
        found = self.baseline.until_settled(outputs, runtime.precision, tolerance, self._is_late, slow=runtime.slow)
        self._outputs[runtime.name] = outputs
        self._slow |= {runtime.name} if runtime.slow else set()
        if runtime.precision in HALF:
            storage = storage_metrics(self.baseline, self.subject, runtime)
            return Measured(found.metrics | storage, found.intervals, found.samples)
        return found

    def _side(self, outputs: Outputs, name: str, widest: slice) -> Side:
        """Outputs on as many samples as their neighbours in the chain have; a slow runtime has the first ones."""
        read = self.baseline.scale.read
        for window in self.baseline.windows:
            if window.stop > outputs.samples and (name in self._slow or self._is_late()):
                break
            outputs.up_to(window)
            reached = window.stop
            if window.stop >= widest.stop:
                break
        return Side(reached, functools.cache(lambda samples: read(outputs.up_to(slice(0, samples)))))

    def _preprocessing(
        self,
        targets: Mapping[str, TargetResult],
        moved: Mapping[str, Measured],
        on_targets: Mapping[str, Mapping[str, Measured]],
    ) -> tuple[Link, ...]:
        """What the deployed side's pixels do: to the executed engine where it was run on them, else to PyTorch."""
        engine = find_engine(targets)
        if on_targets.get(engine):
            return preprocessing_link(on_targets[engine], engine, self.unit)
        return preprocessing_link(moved, "torch-fp32", self.unit)

    def _perturb_target(self, name: str, runner: Runner) -> dict[str, Measured]:
        try:
            return {} if self.perturbed is None else self.target_sensitivity(self.perturbed.run(runner, self._is_late))
        except Exception as error:
            self._notes.append(f"{name} on perturbed inputs failed: {one_line(error)}")
            return {}

    def _scenes(self, targets: Mapping[str, TargetResult], pixels: PixelSpace | None) -> tuple[WorstPicture, ...]:
        """The worst pictures of the target that is farthest off."""
        far = {name: targets[name].metrics.get(self.unit, math.nan) for name in self._outputs if name in targets}
        name = max((name for name, value in far.items() if not math.isnan(value)), key=far.__getitem__, default=None)
        if name is None:
            return ()
        window = slice(0, self._outputs[name].samples)
        try:
            deployed = self.baseline.scale.read(self._outputs[name].up_to(window))
            what = self.baseline.readout(window), deployed, self.subject.rows(window)
            return worst_scenes(name, *what, pixels, self.unit)
        except Exception as error:
            self._notes.append(f"No picture could be shown: {one_line(error)}")
            return ()

    def _find_problems(self) -> tuple[Finding, ...]:
        try:
            return self.subject.findings()
        except Exception as error:
            self._notes.append(f"The graph was not read for findings ({one_line(error)}).")
            return ()


def _executed_outputs(execution: Execution, first: slice, subject: Subject) -> Outputs:
    """A runtime's outputs, of which the first window has been run.

    They hold no pass that holds them: an ONNX Runtime session that waits for the garbage collector may be collected in
    a forked process, a loader's worker for instance, which then waits for the session's threads for ever.
    """

    def run(window: slice) -> list[Tensor]:
        if window == first or execution.run is None:
            return execution.outputs
        return run_in_batches(execution.run, subject.rows(window))

    return Outputs(run)


def in_unit(found: Mapping[str, Measured], unit: str) -> dict[str, float]:
    """The one metric of each."""
    return {name: each.metrics[unit] for name, each in found.items()}
