"""The execution of one runtime on a subject's samples: its outputs, or why there are none."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_robust.complaints import one_line
from lightning_robust.deployment.engines.base import BulkRunner, Clock, Runner, Runtime
from lightning_robust.deployment.engines.child.errors import EngineError
from lightning_robust.deployment.engines.latency import Latency
from lightning_robust.deployment.engines.subject import CHUNK, Subject
from lightning_robust.rows import count_rows, join_rows, take_rows

Status = Literal["measured", "built", "skipped", "unavailable", "failed"]
STATUS_CODES: dict[str, int] = {"measured": 0, "built": 1, "skipped": 2, "unavailable": 3, "failed": 4}


@dataclass(frozen=True)
class Execution:
    """A runtime's outputs, or why there are none.

    Args:
        status: ``"measured"`` where there are outputs; otherwise as in :class:`~.parity.TargetResult`.
        outputs: Of the subject's example, flattened, on the CPU.
        run: Runs the same engine on other inputs; only if measured.
        note: Why, in one line.
        warning: What the user should know although the build succeeded.
        size: Bytes of the engine.
        seconds: The time for building and running.
        layers: Precision -> how many of the executed layers compute in it, as the engine itself says; empty where it
            does not say.
        latency: Of one inference on a batch as it is deployed; None where it was not measured.
    """

    status: Status
    outputs: list[Tensor] = field(default_factory=list)
    run: Runner | None = None
    note: str = ""
    warning: str = ""
    size: int | None = None
    seconds: float = 0.0
    layers: Mapping[str, int] = field(default_factory=dict)
    latency: Latency | None = None


def execute(made: Runtime, subject: Subject, window: slice = slice(None), *, timed: bool = False) -> Execution:
    """Build a runtime and run it on some of the subject's samples; a failure becomes the status.

    Args:
        made: The runtime.
        subject: The model and the samples.
        window: Which samples; all by default.
        timed: Measure the latency too, on the subject's first samples; takes half a second where an inference takes
            less, and longer where it takes longer.

    Example:
        >>> import torch
        >>> from lightning_robust.deployment.engines import runtime
        >>> subject = Subject(torch.nn.Linear(3, 1).eval(), (torch.ones(4, 3),))
        >>> execute(runtime("torch-bf16"), subject).status
        'measured'
    """
    start = time.monotonic()
    try:
        able = made.can_build(subject.settings)
        if not able:
            return Execution("unavailable", note=able.reason)
        built = made.build(subject)
        run = built.run
        outputs = [] if run is None else run_in_batches(run, subject.rows(window))
        seconds = time.monotonic() - start
        status: Status = "built" if run is None else "measured"
        clock = built.clock if timed else None
        latency, untimed = (None, "") if clock is None else _latency(clock, subject, built.batch)
        warning = "; ".join(filter(None, (built.warning, untimed)))
        return Execution(status, outputs, run, built.note, warning, built.size, seconds, built.layers, latency)
    except Exception as error:
        return Execution(status_of(error), note=one_line(error), seconds=time.monotonic() - start)


def status_of(error: Exception) -> Status:
    """What an error makes of a target: unavailable where something is missing here, failed for all else."""
    return "unavailable" if isinstance(error, EngineError) and error.kind == "unavailable" else "failed"


def _latency(clock: Clock, subject: Subject, batch: int | None) -> tuple[Latency | None, str]:
    """On one batch as it is deployed, whose samples are repeated where there are fewer; else why there is none."""
    size, samples = batch or subject.deployed_batch, subject.samples
    rows = torch.arange(size) % samples
    try:
        return Latency.of(clock(take_rows(subject.example, rows, samples)), size), ""
    except Exception as error:  # what a module makes of this batch takes nothing from its outputs
        return None, f"it could not be timed on a batch of {size}: {one_line(error)}"


def run_in_batches(runner: Runner, args: tuple[Any, ...], size: int = CHUNK) -> list[Tensor]:
    """Run on so many samples at a time and join the outputs; tensors without the batch's size go in whole.

    A :class:`~.base.BulkRunner` is given all of them and divides them itself.
    """
    if isinstance(runner, BulkRunner):
        return runner(args)
    samples = count_rows(args)
    windows = [slice(start, min(start + size, samples)) for start in range(0, samples, size)]
    parts = [runner(take_rows(args, window, samples)) for window in windows]
    return join_rows(parts, [window.stop - window.start for window in windows])
