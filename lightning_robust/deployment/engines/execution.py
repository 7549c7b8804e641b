"""One runtime built and run on the samples, and what became of it; ``parity/measure.py`` compares the outputs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_robust.deployment.engines.base import Runner, Runtime
from lightning_robust.deployment.engines.subject import Subject
from lightning_robust.structures import flatten, map_tensors

Status = Literal["measured", "built", "skipped", "unavailable", "failed"]
STATUS_CODES: dict[str, int] = {"measured": 0, "built": 1, "skipped": 2, "unavailable": 3, "failed": 4}


@dataclass(frozen=True)
class Execution:
    """A runtime's outputs, or why there are none.

    Args:
        status: ``"measured"`` where there are outputs; otherwise as of :class:`~.parity.TargetResult`.
        outputs: Of the subject's example, flattened, on the CPU.
        run: Runs the same engine on other inputs; only if measured.
        note: Why, in one line.
        warning: What the user should know although it went well.
        size: Bytes of the engine.
        seconds: What it took to build and run.
    """

    status: Status
    outputs: list[Tensor] = field(default_factory=list)
    run: Runner | None = None
    note: str = ""
    warning: str = ""
    size: int | None = None
    seconds: float = 0.0


def execute(made: Runtime, subject: Subject) -> Execution:
    """Build a runtime and run it on the subject's example; whatever goes wrong becomes the status.

    Example:
        >>> from lightning_robust.deployment.engines import runtime
        >>> subject = Subject(torch.nn.Linear(3, 1).eval(), (torch.ones(4, 3),))
        >>> execute(runtime("torch-bf16"), subject).outputs[0].dtype
        torch.bfloat16
    """
    able = made.can_build()
    if not able:
        return Execution("unavailable", note=able.reason)
    start = time.monotonic()
    try:
        built = made.build(subject)
        run = built.run
        outputs = [] if run is None else run_in_batches(run, subject.example, subject.max_batch)
        seconds = time.monotonic() - start
        status: Status = "built" if run is None else "measured"
        return Execution(status, outputs, run, built.note, built.warning, built.size, seconds)
    except Exception as error:
        return Execution("failed", note=one_line(error), seconds=time.monotonic() - start)


class PerturbedInputs:
    """The perturbed samples of one pass, kept so that runtimes can be run on them too, also later in a thread.

    Args:
        max_batch: The largest batch that engines take.
    """

    def __init__(self, max_batch: int) -> None:
        self._max_batch = max_batch
        self._args: dict[Any, tuple[Any, ...]] = {}
        self._trained: dict[str, Any] = {}

    def add(self, name: str, deployed: tuple[Any, ...], key: Any, trained: tuple[Any, ...]) -> None:
        """Keep what a perturbation feeds in the car, and what training feeds, known by a key that several share."""
        self._args |= {key: trained, name: deployed}
        self._trained[name] = key

    def run(self, runner: Runner, late: Callable[[], bool]) -> dict[Any, list[Tensor]]:
        """Outputs on all the inputs until it is late. Compares nothing and draws no random number."""
        outputs = {}
        for key, args in self._args.items():
            if late():
                break
            outputs[key] = run_in_batches(runner, args, self._max_batch)
        return outputs

    def pairs(self, outputs: Mapping[Any, list[Tensor]]) -> Iterator[tuple[str, list[Tensor], list[Tensor]]]:
        """Of each perturbation that was run: its name, the outputs on what training feeds and on what the car does."""
        for name, key in self._trained.items():
            if name in outputs and key in outputs:
                yield name, outputs[key], outputs[name]


def run_in_batches(runner: Runner, args: tuple[Any, ...], max_batch: int) -> list[Tensor]:
    """Run on ``max_batch`` samples at a time and join the outputs; tensors without the batch's size go in whole."""
    samples = next(iter(flatten(args).values())).shape[0]
    chunks = []
    for start in range(0, samples, max_batch):
        window = slice(start, start + max_batch)
        chunks.append(runner(map_tensors(partial(_take, samples, window), args)))
    return [_join(parts) for parts in zip(*chunks, strict=True)]


def one_line(error: BaseException) -> str:
    """An error in a line of a report: its class and the first line of its message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:400] if lines else 'no message'}"


def _take(samples: int, window: slice, tensor: Tensor) -> Tensor:
    return tensor[window] if tensor.ndim and tensor.shape[0] == samples else tensor


def _join(parts: tuple[Tensor, ...]) -> Tensor:
    return torch.cat(parts) if len(parts) > 1 and parts[0].ndim else parts[0]
