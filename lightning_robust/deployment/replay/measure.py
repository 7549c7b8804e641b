"""Recorded frames through PyTorch, every runtime and every perturbation: how far their lines move, swing and bend."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_robust.deployment.engines import BuildSettings, Runtime, Subject
from lightning_robust.deployment.engines.settings import DEFAULTS
from lightning_robust.deployment.pixels.catalogue import Perturbation
from lightning_robust.deployment.pixels.perturb import PerturbedImages, perturb
from lightning_robust.deployment.replay.module import Geometry, LineFinder, Lines
from lightning_robust.deployment.replay.recording import Chunk, Recording
from lightning_robust.deployment.replay.results import ReplayReport, ReplayResult
from lightning_robust.deployment.replay.tracks import Pair, Track
from lightning_robust.functional.pixels import PixelSpace
from lightning_robust.progress import Progress
from lightning_robust.rows import take_rows
from lightning_robust.structures import flatten, rebuild

_EXAMPLES = 3  # broken frames that a note names


def replay(
    module: nn.Module,
    recording: Recording,
    runtimes: Sequence[Runtime],
    *,
    perturbations: Sequence[Perturbation] = (),
    pixels: PixelSpace | None = None,
    value: str | None = None,
    decode: str = "decode",
    settings: BuildSettings = DEFAULTS,
    calibration: tuple[Any, ...] | None = None,
) -> ReplayReport:
    """Find the lines in recorded frames with PyTorch, with every runtime and under every perturbation, and compare.

    Each chunk of frames is preprocessed once, by the module, and goes through every runtime. A runtime or perturbation
    that fails becomes a line in the report; the others go on. Memory: one chunk of frames, and all lines; up to
    256 MiB of frames for engines in a process of their own, which run on them at once.

    Args:
        module: A :class:`~.module.Replayable`, for instance a LightningModule; a copy of it is used.
        recording: From :func:`~.frames.open_recording`.
        runtimes: From :func:`~.engines.targets.available`.
        perturbations: From :func:`~.catalogue.perturbations`; applied to the network's input, in PyTorch.
        pixels: How ``preprocess`` normalises; needed for perturbations.
        value: Which decoded value holds the lines; the first floating one of three dimensions if None.
        decode: Method of the module that turns outputs into named values.
        settings: How engines are built and run.
        calibration: Training inputs, as arguments of ``forward``, that int8 finds its ranges on; the first frames if
            None.

    Raises:
        TypeError: If the module cannot be replayed; the message says what to write.
        ValueError: If no frame can be decoded, or ``decode`` gives no lines.
    """
    run = _Replay(LineFinder(module, value, decode), runtimes, perturbations, pixels)
    count = recording.total
    with Progress(f"Replaying {count} frames {run.ways} ways", count * run.ways) as progress:
        for chunk in recording:
            if not run.frames:
                run.build(chunk, settings, calibration)
                progress.total = count * run.ways  # some perturbations do not apply
            run.take(chunk, progress)
        return run.report(recording)


class _Replay:
    """One replay: a track for PyTorch, each runtime and each perturbation, and the notes of the replay."""

    def __init__(
        self,
        finder: LineFinder,
        runtimes: Sequence[Runtime],
        perturbations: Sequence[Perturbation],
        pixels: PixelSpace | None,
    ) -> None:
        self._start = time.monotonic()
        self._finder, self._pixels = finder, pixels
        self._torch = Track()
        self._runtimes = [(runtime, Track()) for runtime in runtimes]
        self._perturbations = [(entry, Track(note=entry.description)) for entry in perturbations]
        self._notes: list[str] = []
        self.frames: list[int] = []

    @property
    def ways(self) -> int:
        """How often each frame goes through the network."""
        return 1 + len(self._runtimes) + len(self._perturbations)

    def build(self, chunk: Chunk, settings: BuildSettings, calibration: tuple[Any, ...] | None) -> None:
        """Build the engines, and see which perturbations apply, on the first frames."""
        args = self._finder.inputs(chunk.pictures)
        count = len(chunk.frames)
        first = self._finder.lines(self._finder.run(take_rows(args, torch.arange(1), count)))
        self._finder.check_geometry(first)  # both are refused before anything is built
        rows = take_rows(args, torch.arange(max(count, 2)) % count, count)  # of a single frame no batch can be told
        example = Subject(self._finder.module, rows, settings, calibration)
        for runtime, track in self._runtimes:
            track.attempt(partial(track.build, runtime, example))
        if self._perturbations:
            self._select_perturbations(next(iter(flatten(args).values())))

    def take(self, chunk: Chunk, progress: Progress) -> None:
        """Send a chunk of frames through everything."""
        count = len(chunk.frames)
        args = self._finder.inputs(chunk.pictures)
        start = time.monotonic()
        lines = self._finder.lines(self._finder.run(args)).bare()
        self._torch.seconds += time.monotonic() - start
        self._torch.attempt(lambda: [Pair(lines, lines.columns)])
        self.frames += chunk.frames
        progress.advance(count)
        for _, track in self._runtimes:
            track.attempt(partial(track.run, self._finder, args, lines))
            progress.advance(count)
        if self._perturbations:
            self._perturb(args, lambda: progress.advance(count))

    def report(self, recording: Recording) -> ReplayReport:
        for _, track in self._runtimes:
            track.attempt(partial(track.run_waiting, self._finder))
        frames = (torch.tensor(self.frames) - self.frames[0]) // recording.stride
        reference = self._torch.result(frames)
        geometry = self._finder.geometry()
        return ReplayReport(
            str(self._finder.value),
            tuple(self.frames),
            dict(recording.skipped),
            reference,
            {runtime.name: track.result(frames) for runtime, track in self._runtimes},
            {entry.name: track.result(frames) for entry, track in self._perturbations},
            geometry,
            time.monotonic() - self._start,
            (*self._notes, *self._finder.notes, *_replay_notes(recording, reference, geometry, len(self.frames))),
        )

    def _select_perturbations(self, images: Tensor) -> None:
        """Drop the perturbations that do not apply; all of them, with a note, where pixels are not as expected."""
        try:
            names = {applicable.entry.name for applicable in self._perturbed(images)}
        except ValueError as error:
            self._notes.append(f"Preprocessing was not perturbed: {error}")
            names = set()
        self._perturbations = [pair for pair in self._perturbations if pair[0].name in names]

    def _perturb(self, args: tuple[Any, ...], done: Callable[[], None]) -> None:
        images, *others = flatten(args).values()

        size = tuple(images.shape[-2:])

        def lines(inputs: Tensor) -> Lines:
            return self._finder.lines(self._finder.run(rebuild(args, iter([inputs, *others]))))

        def pair(perturbed: PerturbedImages) -> list[Pair]:
            trained, deployed = perturbed.through(lines)
            matrix = None if perturbed.entry.motion is None else perturbed.entry.matrix(*size)
            expected = None if matrix is None else self._finder.expected(trained, matrix)
            return [Pair(trained.bare(), deployed.columns, expected)]

        try:
            batch = self._perturbed(images)
        except ValueError as error:
            for _, track in self._perturbations:
                track.fail(error)
            return
        for perturbed, (_, track) in zip(batch, self._perturbations, strict=True):
            track.attempt(partial(pair, perturbed))
            done()

    def _perturbed(self, images: Tensor) -> list[PerturbedImages]:
        return perturb(images, self._pixels, [entry for entry, _ in self._perturbations])


def _replay_notes(
    recording: Recording, reference: ReplayResult, geometry: Geometry | None, frames: int
) -> Iterator[str]:
    skipped = [f"{frame}: {reason}" for frame, reason in recording.skipped.items()]
    if skipped:
        examples = "; ".join([*skipped[:_EXAMPLES], *(["..."] if len(skipped) > _EXAMPLES else [])])
        yield f"Frames left out because they could not be decoded: {len(skipped)} ({examples})."
    if not any("swing" in line for line in reference.lines):
        yield f"Swing is undefined: it needs a line in three consecutive frames. Frames in all: {frames}."
    if geometry is None:
        yield "No pictures: they need `rows`, `frame_height` and `frame_width` (of the decoded pixels) on the module."
