"""How far perturbed pixels move PyTorch's outputs: all of it, and what goes beyond the motion of the picture."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from lightning_robust.complaints import one_line
from lightning_robust.deployment.engines import Subject
from lightning_robust.deployment.parity.attribution import bias_of
from lightning_robust.deployment.parity.baseline import Baseline, Measured, measure_distance
from lightning_robust.deployment.parity.links import Link
from lightning_robust.deployment.parity.perturbed_inputs import PerturbedInputs
from lightning_robust.deployment.parity.readout import DECISIONS, PLAIN_UNIT, Readout, Values
from lightning_robust.deployment.parity.result import BEYOND, lost_first
from lightning_robust.deployment.parity.scale import Moved, mean_of
from lightning_robust.deployment.pixels.catalogue import Perturbation
from lightning_robust.deployment.pixels.perturb import PerturbedImages
from lightning_robust.functional.pixels import PixelSpace
from lightning_robust.progress import track
from lightning_robust.rows import join_rows
from lightning_robust.statistics import Interval
from lightning_robust.structures import flatten, rebuild

Perturb = Callable[[Tensor, PixelSpace | None, Sequence[Perturbation]], Sequence[PerturbedImages]]

_FURTHER = " on further samples"


@dataclass(frozen=True)
class _Fed:
    """Arguments of ``forward`` and what PyTorch in fp32 returned for them."""

    args: tuple[Any, ...]
    outputs: list[Tensor]


@dataclass
class _Entry:
    """One perturbation on its way through the windows."""

    entry: Perturbation
    trained: list[list[Tensor]] = field(default_factory=list)
    deployed: list[list[Tensor]] = field(default_factory=list)
    found: Measured | None = None


@dataclass
class PerturbationSweep:
    """The perturbations of one pass; PyTorch computes in fp32 on both sides.

    Args:
        subject: The model and the samples.
        baseline: Reads outputs, and says which points are known.
        moved: What a right answer becomes when the picture moves; None if that is not known.
        is_late: Whether the time is up.
        notes: Where to say what failed.
        inputs: Keeps the perturbed inputs of the first window, if runtimes are to be run on them.
    """

    subject: Subject
    baseline: Baseline
    moved: Moved | None
    is_late: Callable[[], bool]
    notes: list[str]
    inputs: PerturbedInputs | None = None

    def measure(
        self, entries: Sequence[Perturbation], pixels: PixelSpace | None, perturb: Perturb
    ) -> dict[str, Measured]:
        """Perturbation -> how far it moves the outputs, in the catalogue's order.

        Args:
            entries: From :func:`~.catalogue.perturbations`.
            pixels: How the samples were normalised.
            perturb: :func:`~.perturb.perturb`, or something that keeps what it made.
        """
        everything = active = list(map(_Entry, entries))
        for window in self.baseline.readable():
            try:
                batch = perturb(self._images(window), pixels, [each.entry for each in active])
            except ValueError as error:
                self.notes.append(f"Preprocessing was not perturbed{_FURTHER if window.start else ''}: {error}")
                break
            made = {images.entry.name: images for images in track(batch, "Perturbing pictures", len(active))}
            active = self._add_all(active, made, window)
            if not active or self.is_late():
                break
        return {each.entry.name: each.found for each in everything if each.found is not None}

    def _add_all(self, active: Sequence[_Entry], images: Mapping[str, PerturbedImages], window: slice) -> list[_Entry]:
        """Measure perturbations on one more window; those that apply and are worth another."""
        applied = [each for each in active if each.entry.name in images]
        return [
            each
            for each in track(applied, "Measuring perturbations")
            if self._add(each, images[each.entry.name], window)
        ]

    def _add(self, each: _Entry, images: PerturbedImages, window: slice) -> bool:
        """Measure one perturbation on one more window; whether it is worth another."""
        name = each.entry.name
        if self.is_late():
            self._note_skipped(each)
            return False
        try:
            trained, deployed = images.through(lambda perturbed: self._feed(perturbed, window))
            each.trained.append(trained.outputs)
            each.deployed.append(deployed.outputs)
            each.found = self._compare(each, window)
        except Exception as error:
            self.notes.append(f"Perturbation {name!r} failed: {one_line(error)}")
            each.found = None
            return False
        if self.inputs is not None and window == self.baseline.first_window:
            self.inputs.add(name, deployed.args, each.entry.trained, trained.args)
        counted = BEYOND if BEYOND in each.found.metrics else mean_of(self.baseline.unit)
        return not each.found.is_settled(counted, None)

    def _note_skipped(self, each: _Entry) -> None:
        note = "the time was up"
        if each.found is None and not any(note in line for line in self.notes):
            self.notes.append(f"Perturbations from {each.entry.name!r} on were skipped: {note}.")

    def _images(self, window: slice) -> Tensor:
        return next(iter(flatten(self.subject.rows(window)).values()))

    def _feed(self, perturbed: Tensor, window: slice) -> _Fed:
        example = self.subject.rows(window)
        _, *others = flatten(example).values()
        args = rebuild(example, iter([perturbed, *others]))
        return _Fed(args, self.baseline.run_fp32(args))

    def _compare(self, each: _Entry, window: slice) -> Measured:
        sizes = [window.stop - window.start for window in self.baseline.windows[: len(each.trained)]]
        joined = (join_rows(parts, sizes) for parts in (each.trained, each.deployed))
        trained, deployed = map(self.baseline.scale.read, joined)
        trained = trained.knowing(self.baseline.readout(window))
        found = measure_distance(trained, deployed, window.stop)
        beyond = found
        if each.entry.motion is not None:
            values = self._expected(trained.values, each.entry.matrix(*self._images(window).shape[-2:]))
            if not values or self.baseline.unit in (PLAIN_UNIT, DECISIONS):  # of outputs nobody knows how they move
                return found
            expected = Readout(trained.outputs, values, trained.known)
            beyond = measure_distance(expected, deployed, window.stop)
        unit = mean_of(self.baseline.unit)
        intervals = {BEYOND: beyond.intervals[unit]} if unit in beyond.intervals else {}
        return Measured(found.metrics | {BEYOND: beyond.metrics[unit]}, found.intervals | intervals, window.stop)

    def _expected(self, values: Values, matrix: Tensor) -> Values:
        """The right answers in a moved picture; empty where they are not known."""
        try:
            return {} if self.moved is None or not values else {**values, **self.moved(values, matrix)}
        except Exception as error:
            self.moved = None
            self.notes.append(f"`moved` failed and is left out: {one_line(error)}")
            return {}


def preprocessing_link(moved: Mapping[str, Measured], runner: str, unit: str) -> tuple[Link, ...]:
    """The last link: what the median perturbation does to the outputs of a runtime; none without perturbations."""
    if not moved:
        return ()
    name = sorted(moved, key=lambda name: lost_first(moved[name].metrics[unit]))[len(moved) // 2]
    found = moved[name]
    interval = found.intervals.get(unit, Interval(math.nan, math.nan))
    value, bias = found.metrics[unit], found.metrics.get(bias_of(unit), math.nan)
    return (Link("preprocessing", runner, f"{runner} on {name}", value, bias, interval, found.samples),)


def with_times_fp16(moved: Mapping[str, Measured], fp16: Mapping[str, float], unit: str) -> dict[str, dict[str, float]]:
    """The metrics of perturbations, with how many times what fp16 moves on average each moves beyond the motion."""
    usual = mean_of(unit)
    known = 0 < fp16.get(usual, 0.0) < math.inf
    return {
        name: found.metrics
        | ({"times_fp16": found.metrics.get(BEYOND, found.metrics[usual]) / fp16[usual]} if known else {})
        for name, found in moved.items()
    }
