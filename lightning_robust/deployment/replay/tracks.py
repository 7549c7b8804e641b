"""One runtime or perturbation on its way through a recording: its lines beside the reference's, and their metrics."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_robust.complaints import one_line
from lightning_robust.deployment.engines import Runtime, Subject
from lightning_robust.deployment.engines.base import BulkRunner, Runner
from lightning_robust.deployment.engines.execution import Status, status_of
from lightning_robust.deployment.replay.line_metrics import deviation_metrics, line_metrics, part_metrics
from lightning_robust.deployment.replay.module import LineFinder, Lines
from lightning_robust.deployment.replay.results import ReplayResult
from lightning_robust.structures import flatten

_HELD = 1 << 28  # bytes of inputs that wait for a runner whose start costs more than they do


class Pair(NamedTuple):
    """The lines of a few frames on both sides.

    Args:
        reference: PyTorch's.
        columns: The deployed side's.
        expected: Where the right lines are in a picture that was moved; None where it was not, or nobody knows.
    """

    reference: Lines
    columns: Tensor
    expected: Tensor | None = None


@dataclass
class Track:
    """One runtime or perturbation on its way through the recording."""

    status: Status = "measured"
    note: str = ""
    seconds: float = 0.0
    runner: Runner | None = None
    pairs: list[Pair] = field(default_factory=list)
    waiting: list[tuple[tuple[Any, ...], Lines]] = field(default_factory=list)

    def attempt(self, work: Callable[[], Sequence[Pair]]) -> None:
        """Do a part of the work and add the lines that it gives; an error ends this track alone."""
        if self.status != "measured":
            return
        start = time.monotonic()
        try:
            self.pairs += work()
        except Exception as error:
            self.fail(error)
        self.seconds += time.monotonic() - start

    def fail(self, error: Exception) -> None:
        """End this track, and say why."""
        self.status, self.note = status_of(error), one_line(error)

    def build(self, runtime: Runtime, subject: Subject) -> Sequence[Pair]:
        """Build the engine; it gives no lines yet."""
        able = runtime.can_build(subject.settings)
        if not able:
            self.status, self.note = "unavailable", able.reason
            return ()
        built = runtime.build(subject)
        self.runner, self.note = built.run, built.note
        if built.run is None:
            self.status = "built"
        return ()

    def run(self, finder: LineFinder, args: tuple[Any, ...], reference: Lines) -> Sequence[Pair]:
        """Run the engine on a few frames, or let them wait for others."""
        if isinstance(self.runner, BulkRunner):
            self.waiting.append((args, reference))
            return self.run_waiting(finder, _HELD)
        return () if self.runner is None else (Pair(reference, finder.lines(self.runner(args)).columns),)

    def run_waiting(self, finder: LineFinder, room: int = 0) -> Sequence[Pair]:
        """Run on the chunks that wait, at once, if they take more than so many bytes."""
        held = sum(tensor.nbytes for args, _ in self.waiting for tensor in flatten(args).values())
        if held <= room or not isinstance(self.runner, BulkRunner):
            return ()
        waiting, self.waiting = self.waiting, []
        outputs = self.runner.run_sets([args for args, _ in waiting])
        return [Pair(lines, finder.lines(each).columns) for (_, lines), each in zip(waiting, outputs, strict=True)]

    def result(self, frames: Tensor) -> ReplayResult:
        """The metrics of each line."""
        if self.status != "measured":
            return ReplayResult(self.status, self.note, seconds=self.seconds)
        columns = torch.cat([pair.columns for pair in self.pairs])
        reference = torch.cat([pair.reference.columns for pair in self.pairs])
        known = _all_frames([pair.reference.known for pair in self.pairs])
        expected = _all_frames([pair.expected for pair in self.pairs])
        metrics = []
        for number, (exact, line) in enumerate(zip(reference.unbind(1), columns.unbind(1), strict=True)):
            sure, right = (None if part is None else part[:, number] for part in (known, expected))
            metrics.append(line_metrics(line, frames) | deviation_metrics(exact, line, frames))
            metrics[-1] |= part_metrics(exact, line, sure, right)
        return ReplayResult("measured", self.note, tuple(metrics), self.seconds, columns, reference)


def _all_frames(parts: Sequence[Tensor | None]) -> Tensor | None:
    """All frames; None where some have no such tensor."""
    tensors = [part for part in parts if part is not None]
    return torch.cat(tensors) if tensors and len(tensors) == len(parts) else None
