"""The numbers of one replay: the lines of each runtime and perturbation, and the report that holds them all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from lightning_robust.deployment.engines.execution import Status
from lightning_robust.deployment.replay.module import Geometry


@dataclass(frozen=True)
class ReplayResult:
    """The lines of one runtime or perturbation.

    Args:
        status: ``"measured"``; ``"built"`` (an engine that cannot be executed here: it has no numbers);
            ``"unavailable"`` (a package or device is missing); ``"failed"``.
        note: The reason, in one line; of a perturbation, what the deployed side does differently.
        lines: Metrics of each line: :func:`~.line_metrics.line_metrics` and :func:`~.line_metrics.deviation_metrics`.
        seconds: Time to build and run it.
        columns: Its lines, ``(N, lines, rows)``, float64.
        reference: The lines they are measured against, of the same shape.
    """

    status: Status
    note: str = ""
    lines: tuple[dict[str, float], ...] = ()
    seconds: float = 0.0
    columns: Tensor | None = None
    reference: Tensor | None = None

    @property
    def p99(self) -> float:
        """The largest ``p99`` of the lines, in pixels; -1 where nothing was measured."""
        return max((line["p99"] for line in self.lines), default=-1.0)


@dataclass(frozen=True)
class ReplayReport:
    """The numbers of one replay.

    Args:
        value: Name of the decoded value that holds the lines.
        frames: Indices of the frames in the recording.
        skipped: Frame -> why it could not be decoded.
        reference: PyTorch in fp32 on the CPU.
        runtimes: Target -> its lines, measured against ``reference``.
        perturbations: Name -> PyTorch on the deployed pixels, measured against PyTorch on training's pixels.
        geometry: For the pictures; None where the module does not have it.
        seconds: Time of the replay.
        notes: Lines that a reader should see.
    """

    value: str
    frames: tuple[int, ...]
    skipped: dict[str, str]
    reference: ReplayResult
    runtimes: dict[str, ReplayResult]
    perturbations: dict[str, ReplayResult]
    geometry: Geometry | None
    seconds: float
    notes: tuple[str, ...] = ()


def worst(results: Mapping[str, ReplayResult]) -> str | None:
    """The name of the result whose lines are farthest off, by the largest ``p99``; None where nothing was measured."""
    measured = [name for name, result in results.items() if result.status == "measured"]
    return max(measured, key=lambda name: results[name].p99, default=None)
