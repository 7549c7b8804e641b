"""Recorded frames through PyTorch, every runtime and every preprocessing perturbation: how the lines swing and bend.

Frames are read in ``frames.py``, lines measured in ``lines.py``; tables are in ``replay_report.py``, pictures in
``replay_pictures.py``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_robust.deployment.engines import Runtime, Subject
from lightning_robust.deployment.engines.base import Runner
from lightning_robust.deployment.engines.execution import Status, one_line
from lightning_robust.deployment.pixels.catalogue import Perturbation, Pixels
from lightning_robust.deployment.pixels.geometry import keep_camera_frames
from lightning_robust.deployment.replay.frames import Chunk, Recording
from lightning_robust.deployment.replay.lines import deviation_metrics, line_metrics
from lightning_robust.deployment.replay.module import Geometry, LineFinder
from lightning_robust.functional.pixels import PixelSpace
from lightning_robust.structures import flatten, rebuild, take_rows


@dataclass(frozen=True)
class Replayed:
    """What became of one runtime or perturbation.

    Args:
        status: ``"measured"``; ``"built"`` (an engine that cannot be executed here: it has no numbers);
            ``"unavailable"`` (a package or device is missing); ``"failed"``.
        note: Why, in one line; of a perturbation, what the car does differently.
        lines: Metrics of each line: :func:`~.lines.line_metrics` and :func:`~.lines.deviation_metrics`.
        seconds: What it took.
        columns: Its lines, ``(N, lines, rows)``, float64.
        reference: What they are measured against, likewise.
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
        numbers: Places of the frames in the recording.
        skipped: Frame -> why it could not be decoded.
        reference: PyTorch in fp32 on the CPU.
        runtimes: Target -> what became of it, measured against ``reference``.
        perturbations: Name -> PyTorch on perturbed pixels, measured against PyTorch on what training makes of them.
        geometry: For the pictures; None where the module does not tell.
        seconds: What the replay took.
        notes: Lines that a reader should see.
    """

    value: str
    numbers: tuple[int, ...]
    skipped: dict[str, str]
    reference: Replayed
    runtimes: dict[str, Replayed]
    perturbations: dict[str, Replayed]
    geometry: Geometry | None
    seconds: float
    notes: tuple[str, ...] = ()


def worst(results: Mapping[str, Replayed]) -> str | None:
    """The name of what moves the lines farthest, by the largest ``p99``; None where nothing was measured."""
    measured = [name for name, result in results.items() if result.status == "measured"]
    return max(measured, key=lambda name: results[name].p99, default=None)


def replay(
    module: nn.Module,
    recording: Recording,
    runtimes: Sequence[Runtime],
    *,
    perturbations: Sequence[Perturbation] = (),
    pixels: PixelSpace | None = None,
    value: str | None = None,
    device: str = "cpu",
    time_limit: float = 300.0,
) -> ReplayReport:
    """Find the lines in recorded frames with PyTorch and with everything that may stand in the car, and compare.

    Each chunk of frames is preprocessed once, by the module, and goes through every runtime. A runtime or perturbation
    that fails becomes a line in the report; the others go on. Memory: one chunk of frames, and all lines.

    Args:
        module: A :class:`~.replayable.Replayable`, for instance a LightningModule; it is copied, not touched.
        recording: From :func:`~.frames.open_recording`.
        runtimes: From :func:`~.runtimes.available`.
        perturbations: From :func:`~.preprocessing.perturbations`; applied to the network's input, in PyTorch.
        pixels: How ``preprocess`` normalises; needed for perturbations.
        value: Which decoded value holds the lines; the first floating one of three dimensions if None.
        device: Where ``torch-fp16`` and ``torch-bf16`` run.
        time_limit: Seconds that one engine build may take.

    Raises:
        TypeError: If the module cannot be replayed; the message says what to write.
        ValueError: If no frame can be decoded, or ``decode`` gives no lines.
    """
    run = _Pass(LineFinder(module, value), runtimes, perturbations, pixels)
    for chunk in recording:
        if not run.numbers:
            run.build(chunk, partial(Subject, max_batch=recording.batch_size, device=device, time_limit=time_limit))
        run.take(chunk)
    return run.report(recording)


@dataclass
class _Track:
    """One runtime or perturbation on its way through the recording."""

    status: Status = "measured"
    note: str = ""
    seconds: float = 0.0
    runner: Runner | None = None
    columns: list[Tensor] = field(default_factory=list)
    references: list[Tensor] = field(default_factory=list)

    def attempt(self, work: Callable[[], None]) -> None:
        """Do a part of it, as long as nothing has failed; an error ends this track alone."""
        if self.status != "measured":
            return
        start = time.monotonic()
        try:
            work()
        except Exception as error:
            self.status, self.note = "failed", one_line(error)
        self.seconds += time.monotonic() - start

    def add(self, columns: Tensor, reference: Tensor) -> None:
        self.columns.append(columns)
        self.references.append(reference)

    def result(self, places: Tensor) -> Replayed:
        """The metrics of each line."""
        if self.status != "measured":
            return Replayed(self.status, self.note, seconds=self.seconds)
        columns, reference = torch.cat(self.columns), torch.cat(self.references)
        lines = tuple(
            line_metrics(own, places) | deviation_metrics(other, own, places)
            for own, other in zip(columns.unbind(1), reference.unbind(1), strict=True)
        )
        return Replayed("measured", self.note, lines, self.seconds, columns, reference)


class _Pass:
    """One replay: a track for PyTorch, each runtime and each perturbation, and the notes that gather on the way."""

    def __init__(
        self,
        model: LineFinder,
        runtimes: Sequence[Runtime],
        perturbations: Sequence[Perturbation],
        pixels: PixelSpace | None,
    ) -> None:
        self._start = time.monotonic()
        self._model, self._pixels = model, pixels
        self._torch = _Track()
        self._runtimes = [(made, _Track()) for made in runtimes]
        self._perturbations = [(made, _Track(note=made.description)) for made in perturbations]
        self._notes: list[str] = []
        self.numbers: list[int] = []

    def build(self, chunk: Chunk, subject: Callable[..., Subject]) -> None:
        """Build the engines and look at how the pixels were normalised, on the first frames."""
        args = self._model.inputs(chunk.pictures)
        two = take_rows(args, torch.tensor([0, -1]), len(chunk.numbers))  # a batch of 2, also of a single frame
        example = subject(self._model.module, two)
        for made, track in self._runtimes:
            track.attempt(partial(_build, made, track, example))
        self._perturbations = self._applicable(args)

    def take(self, chunk: Chunk) -> None:
        """Send a chunk of frames through everything."""
        args = self._model.inputs(chunk.pictures)
        start = time.monotonic()
        lines = self._model.lines(self._model.run(args))
        self._torch.seconds += time.monotonic() - start
        self._torch.add(lines, lines)
        self.numbers += chunk.numbers
        for _, track in self._runtimes:
            track.attempt(partial(self._through, track, args, lines))
        if self._perturbations and self._pixels is not None:
            self._perturb(args, self._pixels)

    def report(self, recording: Recording) -> ReplayReport:
        places = (torch.tensor(self.numbers) - self.numbers[0]) // recording.stride
        reference = self._torch.result(places)
        geometry = self._model.geometry()
        self._remark(recording, reference, geometry)
        return ReplayReport(
            str(self._model.value),
            tuple(self.numbers),
            dict(recording.skipped),
            reference,
            {made.name: track.result(places) for made, track in self._runtimes},
            {made.name: track.result(places) for made, track in self._perturbations},
            geometry,
            time.monotonic() - self._start,
            tuple(self._notes),
        )

    def _through(self, track: _Track, args: tuple[Any, ...], lines: Tensor) -> None:
        if track.runner is not None:
            track.add(self._model.lines(track.runner(args)), lines)

    def _applicable(self, args: tuple[Any, ...]) -> list[tuple[Perturbation, _Track]]:
        """Those that fit the input; none, and a note, where pixels are not what they should be."""
        if not self._perturbations:
            return []
        images = next(iter(flatten(args).values()))
        complaint = ""
        if images.ndim != 4 or images.shape[1] not in (1, 3) or not images.is_floating_point():
            complaint = "the network's first input is no image batch (N, 1 or 3, H, W)."
        elif self._pixels is None:
            complaint = "it is not known how pixels are normalised."
        else:
            try:
                self._pixels.check(images)
            except ValueError as error:
                complaint = str(error)
        if complaint:
            self._notes.append(f"Preprocessing was not perturbed: {complaint}")
            return []
        return [entry for entry in self._perturbations if entry[0].applies_to(images.shape[1])]

    @keep_camera_frames()
    def _perturb(self, args: tuple[Any, ...], pixels: PixelSpace) -> None:
        images, *others = flatten(args).values()
        rounded = (pixels.to_pixels(images) * 255).round().clamp(0, 255) / 255
        known: dict[Pixels, Tensor] = {}

        def lines(change: Pixels) -> Tensor:
            changed = rebuild(args, iter([pixels.from_pixels(change(rounded)), *others]))
            return self._model.lines(self._model.run(changed))

        def once(made: Perturbation, track: _Track) -> None:
            if made.trained not in known:
                known[made.trained] = lines(made.trained)
            track.add(lines(made.deployed), known[made.trained])

        for made, track in self._perturbations:
            track.attempt(partial(once, made, track))

    def _remark(self, recording: Recording, reference: Replayed, geometry: Geometry | None) -> None:
        if recording.skipped:
            few = "; ".join(f"{frame}: {reason}" for frame, reason in list(recording.skipped.items())[:3])
            more = "; ..." if len(recording.skipped) > 3 else ""
            self._notes.append(
                f"Frames left out because they could not be decoded: {len(recording.skipped)} ({few}{more})."
            )
        if not any("swing" in line for line in reference.lines):
            self._notes.append(
                f"Swing is undefined: it needs a line in three consecutive frames. Frames in all: {len(self.numbers)}."
            )
        if geometry is None:
            self._notes.append(
                "No pictures: they need `rows`, `frame_height` and `frame_width` (of the decoded pixels) on the module."
            )


def _build(made: Runtime, track: _Track, subject: Subject) -> None:
    able = made.can_build()
    if not able:
        track.status, track.note = "unavailable", able.reason
        return
    built = made.build(subject)
    track.runner, track.note = built.run, built.note
    if built.run is None:
        track.status = "built"
