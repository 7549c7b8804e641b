"""How far the deployed model is from the trained one: targets, perturbed inputs, and the split into causes.

Works on any module without a Trainer; DeploymentParityCallback calls it at every validation.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lightning_robust.deployment.engines import Runtime, Subject, run_module
from lightning_robust.deployment.engines.base import Runner
from lightning_robust.deployment.engines.execution import STATUS_CODES as STATUS_CODES
from lightning_robust.deployment.engines.execution import (
    Execution,
    PerturbedInputs,
    Status,
    execute,
    one_line,
    run_in_batches,
)
from lightning_robust.deployment.engines.torch import TorchRuntime
from lightning_robust.deployment.graph.lint import Finding
from lightning_robust.deployment.numerics.sensitivity import KeepList, Sensitivity
from lightning_robust.deployment.parity.distance import compare, compare_decoded
from lightning_robust.deployment.pixels.catalogue import CATALOGUE, Perturbation
from lightning_robust.deployment.pixels.geometry import keep_camera_frames
from lightning_robust.functional.pixels import PixelSpace
from lightning_robust.structures import flatten, rebuild

Decode = Callable[[Any], Mapping[str, Tensor]]
CAUSES = ("export", "tf32", "fp16", "engine", "preprocessing")


@dataclass(frozen=True)
class TargetResult:
    """What became of one target.

    Args:
        status: ``"measured"``; ``"built"`` (an engine exists that cannot be executed here: it has no parity numbers);
            ``"skipped"`` (the time was up); ``"unavailable"`` (a package or device is missing); ``"failed"``.
        metrics: Distances to the reference, only if measured.
        note: Why, in one line.
        size: Bytes of the engine.
        seconds: What it took to build and run.
        step: Of the training, whose weights these are; None for those of the pass itself.
    """

    status: Status
    metrics: dict[str, float] = field(default_factory=dict)
    note: str = ""
    size: int | None = None
    seconds: float = 0.0
    step: int | None = None

    def scalars(self, name: str) -> dict[str, float]:
        """The numbers of the target of this name, under their TensorBoard tags."""
        numbers = {"status": float(STATUS_CODES[self.status])} | self.metrics
        numbers |= {} if self.step is None else {"step": float(self.step)}
        return {f"parity/{name}/{metric}": value for metric, value in numbers.items()}


@dataclass(frozen=True)
class ParityReport:
    """The numbers of one parity pass.

    Args:
        targets: Target -> :class:`TargetResult`.
        sensitivity: Perturbation -> metrics of what it does to the outputs.
        attribution: Cause -> its share of the distance, in ``unit``.
        unit: The metric in which causes are counted: the first decoded value's p99, else ``"rel_l2"``.
        reference: What the distances are measured from, ``"torch-fp64"`` where the module can do that.
        samples: Number of inputs.
        seconds: What the pass took.
        notes: Lines that a reader should see.
        findings: What the graph will do on TensorRT, from :func:`~.lint.lint`; empty for a clean one.
        layers: What each node costs in low precision, where that was measured (:func:`~.localisation.localise`).
        keep: The nodes to keep in fp32 for a tolerance, likewise.
        moved: Target -> perturbation -> how far it moves what this target gives, in ``unit``; where runtimes were
            perturbed too.
    """

    targets: dict[str, TargetResult]
    sensitivity: dict[str, dict[str, float]]
    attribution: dict[str, float]
    unit: str
    reference: str
    samples: int
    seconds: float
    notes: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    layers: Sensitivity | None = None
    keep: KeepList | None = None
    moved: dict[str, dict[str, float]] = field(default_factory=dict)

    def scalars(self) -> dict[str, float]:
        """All numbers under their TensorBoard tags."""
        tags = {"parity/status": float(max((STATUS_CODES[t.status] for t in self.targets.values()), default=0))}
        for name, target in self.targets.items():
            tags |= target.scalars(name)
        for name, metrics in self.sensitivity.items():
            tags |= {f"sensitivity/{name}/{metric}": value for metric, value in metrics.items()}
        tags |= {f"sensitivity/family/{family}": value for family, value in self.families().items()}
        tags |= moved_scalars(self.moved, self.unit)
        tags |= {f"attribution/{cause}": value for cause, value in self.attribution.items()}
        return tags | {"parity/findings": float(len(self.findings)), "parity/seconds": self.seconds}

    def families(self, metric: str | None = None) -> dict[str, float]:
        """Family of perturbations -> how far the worst of them moves the outputs; the worst first.

        Args:
            metric: Any of those in ``sensitivity``, such as ``"times_fp16"``; ``unit`` if None. A family in which it
                was not measured is left out.
        """
        key = self.unit if metric is None else metric
        worst: dict[str, float] = {}
        for name, metrics in self.sensitivity.items():
            if name in CATALOGUE and key in metrics:
                family = CATALOGUE[name].family
                worst[family] = max(worst.get(family, 0.0), metrics[key])
        return dict(sorted(worst.items(), key=lambda item: -item[1]))

    def worst_perturbation(self) -> str | None:
        """The perturbation that moves the outputs most, in ``unit``."""
        return max(self.sensitivity, key=lambda name: self.sensitivity[name][self.unit], default=None)


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
        runtimes: What to compare, from :func:`~.runtimes.available`.
        decode: Turns the model's outputs into named values in the task's own units.
        perturbations: What the car may do differently to the pixels.
        pixels: How the samples were normalised; needed for perturbations.
        time_limit: Seconds after which nothing new is started.
        perturb_targets: Run every runtime that was measured on the perturbed inputs too (engines once for each).

    Example:
        >>> from lightning_robust.deployment.engines import available
        >>> subject = Subject(torch.nn.Linear(3, 1).eval(), (torch.ones(4, 3),))
        >>> report = measure_parity(subject, available(["torch-fp32", "torch-bf16"]))
        >>> report.targets["torch-fp32"].metrics["max_abs"] < 1e-6
        True
    """
    return ParityPass(subject, decode, time_limit, perturb_targets).report(runtimes, perturbations, pixels)


class ParityPass:
    """One parity pass: the reference outputs, the clock, and the notes that gather on the way.

    Args:
        subject: The model and the samples.
        decode: Turns the model's outputs into named values in the task's own units.
        time_limit: Seconds after which nothing new is started.
        perturb_targets: Keep the perturbed inputs, for runtimes to be run on them too.
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
        self._samples = next(iter(flatten(subject.example).values())).shape[0]
        with torch.no_grad():
            self._template = subject.module(*subject.example)
        self._decode = decode
        self._fp32 = partial(run_module, subject.module)
        self._name, self._reference = self._make_reference()
        self._decoded = self._try_decode()
        self._unit = self._choose_unit()

    def report(
        self, runtimes: Sequence[Runtime], perturbations: Sequence[Perturbation], pixels: PixelSpace | None
    ) -> ParityReport:
        """Measure the runtimes, and what the perturbations do."""
        targets = {made.name: self._target(made) for made in runtimes}
        fp16 = next((targets[n].metrics for n in _FP16 if n in targets and targets[n].metrics), None)
        sensitivity = self._sensitivity(perturbations, pixels, fp16)
        moved = {name: self._moved_of(name, runner) for name, runner in self._runners.items()}
        findings = self._findings()
        return ParityReport(
            targets,
            sensitivity,
            attribute(targets, sensitivity, self._unit),
            self._unit,
            self._name,
            self._samples,
            time.monotonic() - self._start,
            tuple(self._notes),
            findings,
            moved=moved,
        )

    def _findings(self) -> tuple[Finding, ...]:
        try:
            return self._subject.findings()
        except Exception as error:
            self._notes.append(f"The graph was not read for findings ({one_line(error)}).")
            return ()

    def _make_reference(self) -> tuple[str, list[Tensor]]:
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

    def _run(self, runner: Runner, args: tuple[Any, ...]) -> list[Tensor]:
        return run_in_batches(runner, args, self._subject.max_batch)

    def _decoded_from(self, outputs: list[Tensor]) -> dict[str, Tensor]:
        if self._decode is None:
            return {}
        values = self._decode(rebuild(self._template, iter(outputs)))
        if not isinstance(values, Mapping) or not all(isinstance(v, Tensor) for v in values.values()):
            raise TypeError(f"Expected `decode` to return a dict of tensors, but got {type(values).__name__}.")
        return dict(values)

    def _try_decode(self) -> dict[str, Tensor]:
        try:
            return self._decoded_from(self._reference)
        except Exception as error:
            self._notes.append(f"`decode` failed and is left out: {one_line(error)}")
            self._decode = None
            return {}

    def _choose_unit(self) -> str:
        floating = [name for name, value in self._decoded.items() if value.is_floating_point()]
        return f"{floating[0]}_p99" if floating else "rel_l2"

    def _distance(self, reference: list[Tensor], decoded: dict[str, Tensor], outputs: list[Tensor]) -> dict[str, float]:
        return compare(reference, outputs) | compare_decoded(decoded, self._decoded_from(outputs))

    def _late(self) -> bool:
        return time.monotonic() - self._start > self._limit

    def _target(self, made: Runtime) -> TargetResult:
        if self._late() and made.can_build():
            return TargetResult("skipped", note=f"the time limit of {self._limit:g} s was reached")
        execution = execute(made, self._subject)
        result = self.judge(made.name, execution)
        if self.perturbed is not None and execution.run is not None:
            self._runners[made.name] = execution.run
        return result

    def judge(self, name: str, execution: Execution) -> TargetResult:
        """The distance of what a runtime gave to the reference."""
        if execution.warning:
            self._notes.append(f"{name}: {execution.warning}")
        metrics, status, note = {}, execution.status, execution.note
        if status == "measured":
            try:
                metrics = self._distance(self._reference, self._decoded, execution.outputs)
            except Exception as error:
                status, note = "failed", one_line(error)
        return TargetResult(status, metrics, note, execution.size, execution.seconds)

    @keep_camera_frames()
    def _sensitivity(
        self, perturbations: Sequence[Perturbation], pixels: PixelSpace | None, fp16: dict[str, float] | None
    ) -> dict[str, dict[str, float]]:
        if not perturbations:
            return {}
        images = self._images()
        if images is None or pixels is None:
            self._notes.append("Preprocessing was not perturbed: the first input is no image batch (N, 1 or 3, H, W).")
            return {}
        try:
            pixels.check(images)
        except ValueError as error:
            self._notes.append(f"Preprocessing was not perturbed: {error}")
            return {}
        rounded = (pixels.to_pixels(images) * 255).round().clamp(0, 255) / 255
        cache: dict[Any, tuple[tuple[Any, ...], list[Tensor], dict[str, Tensor]]] = {}
        results = {}
        for perturbation in perturbations:
            if self._late():
                self._notes.append(f"Perturbations from {perturbation.name!r} on were skipped: the time was up.")
                break
            if perturbation.applies_to(images.shape[1]):
                try:
                    results[perturbation.name] = self._perturb(perturbation, rounded, pixels, cache, fp16)
                except Exception as error:
                    self._notes.append(f"Perturbation {perturbation.name!r} failed: {one_line(error)}")
        return results

    def _perturb(
        self,
        perturbation: Perturbation,
        rounded: Tensor,
        pixels: PixelSpace,
        cache: dict[Any, tuple[tuple[Any, ...], list[Tensor], dict[str, Tensor]]],
        fp16: dict[str, float] | None,
    ) -> dict[str, float]:
        key, deployed = perturbation.trained, self._args(pixels.from_pixels(perturbation.deployed(rounded)))
        if key not in cache:
            trained = self._args(pixels.from_pixels(perturbation.trained(rounded)))
            outputs = self._run(self._fp32, trained)
            cache[key] = trained, outputs, self._decoded_from(outputs)
        trained, outputs, decoded = cache[key]
        metrics = self._distance(outputs, decoded, self._run(self._fp32, deployed))
        if self.perturbed is not None:
            self.perturbed.add(perturbation.name, deployed, key, trained)
        if fp16 and 0 < fp16.get(self._unit, 0.0) < math.inf:
            metrics["times_fp16"] = metrics[self._unit] / fp16[self._unit]
        return metrics

    def _images(self) -> Tensor | None:
        first = next(iter(flatten(self._subject.example).values()))
        is_image = first.ndim == 4 and first.shape[1] in (1, 3) and first.is_floating_point()
        return first if is_image else None

    def _args(self, images: Tensor) -> tuple[Any, ...]:
        tensors = iter([images, *list(flatten(self._subject.example).values())[1:]])
        args: tuple[Any, ...] = rebuild(self._subject.example, tensors)
        return args

    def moved(self, outputs: Mapping[Any, list[Tensor]]) -> dict[str, float]:
        """Perturbation -> how far it moves what a runtime gave on the perturbed inputs, in the report's unit."""
        pairs = [] if self.perturbed is None else self.perturbed.pairs(outputs)
        return {name: self._distance(old, self._decoded_from(old), new)[self._unit] for name, old, new in pairs}

    def _moved_of(self, name: str, runner: Runner) -> dict[str, float]:
        try:
            return {} if self.perturbed is None else self.moved(self.perturbed.run(runner, self._late))
        except Exception as error:
            self._notes.append(f"{name} on perturbed inputs failed: {one_line(error)}")
            return {}


def moved_scalars(moved: Mapping[str, Mapping[str, float]], unit: str) -> dict[str, float]:
    """How far perturbations move each target, under their TensorBoard tags."""
    return {f"sensitivity/{p}/{name}/{unit}": value for name, of in moved.items() for p, value in of.items()}


_FP16 = ("tensorrt-fp16", "tensorrt_rtx-fp16", "torch-fp16", "emulated-fp16")


def attribute(
    targets: Mapping[str, TargetResult], sensitivity: Mapping[str, Mapping[str, float]], unit: str
) -> dict[str, float]:
    """Cause -> distance: what the export, TF32, fp16, the engine beyond its precision, and pixels account for."""

    def distance(name: str) -> float | None:
        return targets[name].metrics.get(unit) if name in targets else None

    shares: dict[str, float | None] = {
        "export": distance("onnxruntime-fp32"),
        "tf32": distance("emulated-tf32"),
        "fp16": distance("emulated-fp16"),
    }
    engine = next((d for d in map(distance, _FP16[:2]) if d is not None), None)
    if engine is not None and shares["fp16"] is not None:
        shares["engine"] = max(0.0, engine - shares["fp16"])
    moved = sorted(metrics[unit] for metrics in sensitivity.values())
    if moved:
        shares["preprocessing"] = moved[len(moved) // 2]
    return {cause: share for cause, share in shares.items() if share is not None}
