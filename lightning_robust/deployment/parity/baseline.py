"""What a pass compares with: PyTorch's outputs in fp64, in the task's units, on as many samples as are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_robust.complaints import one_line
from lightning_robust.decoding.alignment import Decoded
from lightning_robust.deployment.engines import Subject, run_module
from lightning_robust.deployment.engines.base import HALF, Runner
from lightning_robust.deployment.engines.execution import run_in_batches
from lightning_robust.deployment.engines.torch import TorchRuntime
from lightning_robust.deployment.parity.distance import is_constant
from lightning_robust.deployment.parity.intervals import intervals, is_settled
from lightning_robust.deployment.parity.labels import label_metrics
from lightning_robust.deployment.parity.links import Basis
from lightning_robust.deployment.parity.readout import Readout
from lightning_robust.deployment.parity.samples import Outputs, windows
from lightning_robust.deployment.parity.scale import Scale, Task
from lightning_robust.statistics import Interval


class Measured(NamedTuple):
    """A distance as it was found on the samples that it took."""

    metrics: dict[str, float]
    intervals: dict[str, Interval]
    samples: int

    def basis(self, tag: str) -> dict[str, Basis]:
        """What each metric under this tag rests on."""
        return {f"{tag}/{metric}": Basis(self.samples, *found) for metric, found in self.intervals.items()}

    def is_settled(self, metric: str, tolerance: float | None) -> bool:
        """Whether more samples would not change this metric by much, see :func:`~.intervals.is_settled`."""
        return is_settled(self.metrics[metric], self.intervals.get(metric), tolerance)


def measure_distance(reference: Readout, deployed: Readout, samples: int, precision: str = "fp32") -> Measured:
    """A distance and its intervals."""
    metrics = reference.distance(deployed, precision)
    metrics |= label_metrics(reference.values, deployed.values, reference.truth)
    found = intervals(reference, deployed, precision)
    # draws of few samples seldom hold the largest one, on which a p99 may rest
    holding = {name: Interval(min(low, metrics[name]), max(high, metrics[name])) for name, (low, high) in found.items()}
    return Measured(metrics, holding, samples)


class Baseline:
    """The reference of one pass.

    Args:
        subject: The model and the samples.
        task: What the task says of the outputs.

    Attributes:
        name: ``"torch-fp64"``, ``"torch-fp32"`` where the module does not run in fp64, or the subject's own.
        unit: The metric that stands for a distance.
        windows: The samples, as :func:`~.samples.windows` takes them.
        scale: What reads outputs.
        notes: Lines on what failed.
        remarks: Lines on how to read the numbers.

    Raises:
        ValueError: If there are no samples.
    """

    def __init__(self, subject: Subject, task: Task) -> None:
        if subject.samples == 0:
            raise ValueError("Expected samples to measure on, but got none. Give at least two.")
        self.notes: list[str] = []
        self.remarks: list[str] = []
        self._subject, self._task = subject, task
        self._fp32 = partial(run_module, subject.module)
        first = next(windows(subject.samples))
        self.name, self._outputs = self._start(first)
        outputs = self._outputs.up_to(first)
        size = sum(tensor.numel() * tensor.element_size() for tensor in outputs)
        self.windows = list(windows(subject.samples, size // first.stop))
        self._truth = task.truth
        self.scale, readout = self._read(outputs, first)
        readout = self._with_truth(readout, first)
        self._readouts = {first.stop: readout}
        self.unit = readout.unit
        self._note_what_is_odd(readout)

    @property
    def first_window(self) -> slice:
        """The samples that every number rests on."""
        return self.windows[0]

    def readout(self, window: slice) -> Readout:
        """The reference up to the end of a window, with the points that it knows and the labels."""
        if window.stop not in self._readouts:
            rows = slice(0, window.stop)
            readout = self.scale.read(self._outputs.up_to(window), rows)
            self._readouts[window.stop] = self._with_truth(readout, rows)
        return self._readouts[window.stop]

    def readable(self) -> Iterator[slice]:
        """The windows one after the other, as long as the reference can be read up to their end."""
        for window in tuple(self.windows):
            if not self._can_read(window):
                return
            yield window

    def _can_read(self, window: slice) -> bool:
        """Whether the reference can be read up to the end of a window; where it cannot, there is no such window."""
        try:
            self.readout(window)
        except Exception as error:
            self.windows = [each for each in self.windows if each.stop in self._readouts]
            self.notes.append(
                f"Numbers rest on the first {self.windows[-1].stop} samples at most: `known` or `decode` failed on the "
                f"next ones ({one_line(error)})."
            )
            return False
        return True

    def widest(self) -> slice:
        """The last window that the reference has been asked for."""
        return next(window for window in reversed(self.windows) if window.stop in self._readouts)

    def run_fp32(self, args: tuple[Any, ...]) -> list[Tensor]:
        """PyTorch in fp32 on other inputs."""
        return run_in_batches(self._fp32, args)

    def until_settled(
        self,
        outputs: Outputs,
        precision: str,
        tolerance: float | None,
        is_late: Callable[[], bool],
        *,
        slow: bool = False,
    ) -> Measured:
        """A runtime's distance to the reference, on as many samples as it takes.

        Args:
            outputs: The runtime's.
            precision: That it computes in.
            tolerance: For the unit, if there is one.
            is_late: Whether the time is up.
            slow: Whether the first window has to do.
        """
        for window in self.readable():
            deployed = self.scale.read(outputs.up_to(window))
            found = measure_distance(self.readout(window), deployed, window.stop, precision)
            if slow or is_late() or found.is_settled(self.unit, tolerance):
                break
        return found

    def _start(self, first: slice) -> tuple[str, Outputs]:
        """The reference's name, and its outputs, of which the first window is there.

        Raises:
            ValueError: If the module does not run in fp32 either.
        """
        if self._subject.reference is not None:
            return self._subject.reference, self._outputs_of(self._fp32)
        try:
            runner = TorchRuntime("torch", "fp64").build(self._subject).run or self._fp32
            outputs = self._outputs_of(runner)
            outputs.up_to(first)
        except Exception as error:
            self.notes.append(f"The module does not run in fp64 ({one_line(error)}); the reference is PyTorch in fp32.")
            outputs = self._outputs_of(self._fp32)
            _require_fp32(outputs, first)
            return "torch-fp32", outputs
        self._note_if_it_changes(runner)
        return "torch-fp64", outputs

    def _note_if_it_changes(self, runner: Runner) -> None:
        """Two runs on the same samples, of which a module without memory and chance gives the same."""
        try:
            one, other = (runner(self._subject.rows(slice(2))) for _ in range(2))
        except Exception:  # a `forward` that asks for more samples, on which it has run already
            return
        if not all(map(_are_alike, one, other)):
            self.notes.append(
                "Two runs on the same samples differ: `forward` draws random numbers, or keeps something from one run "
                "to the next, and all distances are of that too."
            )

    def _outputs_of(self, runner: Runner) -> Outputs:
        subject = self._subject  # and not this baseline, which holds the outputs
        return Outputs(lambda window: run_in_batches(runner, subject.rows(window)))

    def _read(self, outputs: list[Tensor], first: slice) -> tuple[Scale, Readout]:
        decode, known = self._task.decode, self._task.known
        example = self._subject.rows(slice(0, 2))  # for the structure alone
        for attempt in dict.fromkeys((known, None)):
            try:
                scale = Scale(self._subject.module, example, decode, attempt)
                return scale, scale.read(outputs, first)
            except Exception as error:
                what = "`decode`" if attempt is known is None else "`known` or `decode`"
                self.notes.append(f"{what} failed and is left out: {one_line(error)}")
        return Scale(), Scale().read(outputs)

    def _with_truth(self, readout: Readout, rows: slice) -> Readout:
        """A readout of the reference with the labels of its samples, if they fit."""
        if self._truth is None or not readout.values:
            return readout
        try:
            truth = self._truth(rows)
            label_metrics(readout.values, readout.values, truth)
            return readout._replace(truth=truth)
        except Exception as error:
            self._truth = None
            self.notes.append(f"`truth` failed and is left out: {one_line(error)}")
            return readout

    def _note_what_is_odd(self, readout: Readout) -> None:
        for index, output in enumerate(readout.outputs):
            if output.is_floating_point() and is_constant(output.double(), HALF[0]):
                self.remarks.append(
                    f"Output {index} is constant on these samples to what fp16 can tell apart: its relative distance "
                    "is relative to its size, not to its spread, in every precision below fp32."
                )
        for name, value in readout.values.items():
            self.remarks.extend(value.remarks(name) if isinstance(value, Decoded) else [])
        for name, known in readout.known.items():
            if not bool(known.any()):
                self.remarks.append(f"No point of {name} is known yet: its distances are of guesses.")


def _require_fp32(outputs: Outputs, first: slice) -> None:
    """Refuse a module that does not run in fp32 either, and say what for."""
    try:
        outputs.up_to(first)
    except Exception as error:
        raise ValueError(
            f"Expected a module that runs in fp32 on {first.stop} samples at once, but got {one_line(error)}. "
            "Where `forward` casts to a type of its own, let it take that of its weights, as x.to(self.weight.dtype); "
            "where it is written for one sample, give one."
        ) from error


def _are_alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, equal_nan=True)
