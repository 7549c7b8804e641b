"""TensorRT and TensorRT-RTX as engines."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from lightning_robust.deployment.engines import abilities, builder, runs
from lightning_robust.deployment.engines.abilities import Ability, Backend
from lightning_robust.deployment.engines.base import HALF, Built, BulkRunner, Clock, Runtime, feed
from lightning_robust.deployment.engines.child.process import EngineError
from lightning_robust.deployment.engines.inspector import executed_precisions
from lightning_robust.deployment.engines.profile import Profile, make_profile
from lightning_robust.deployment.engines.settings import DEFAULTS, BuildSettings
from lightning_robust.deployment.engines.subject import Subject
from lightning_robust.deployment.graph.batches import Batches, fixed_batches
from lightning_robust.deployment.graph.export import Exported
from lightning_robust.deployment.graph.types import static_size
from lightning_robust.deployment.numerics.convert import Conversion
from lightning_robust.deployment.numerics.rounding import Half

LOW = (*HALF, "int8")
"""Precisions beside which something stays fp32, or is TF32 where the settings allow it."""

_TIMED = 100
"""Executions that a latency comes from."""


class TensorRTRuntime(Runtime):
    """TensorRT or TensorRT-RTX through Polygraphy, strongly typed, built and run in a child process."""

    slow = True

    @property
    def _backend(self) -> Backend:
        return cast(Backend, self.runtime)

    def can_build(self, settings: BuildSettings = DEFAULTS) -> Ability:
        """Whether the package (and, for full TensorRT, a GPU) is there."""
        return abilities.can_build(self._backend, settings.command)

    def can_run(self, settings: BuildSettings = DEFAULTS) -> Ability:
        """Whether there is a CUDA device to execute the engine on."""
        return abilities.can_run(self._backend, settings.command)

    def build(self, subject: Subject) -> Built:
        """Build the engine, or take it from the cache."""
        exported = subject.exported
        weakly = subject.settings.weakly_typed and self.name == "tensorrt-fp16"
        model, notes = exported.model, ["weakly typed"] * weakly
        if self.precision in HALF and not weakly:
            half = cast(Half, self.precision)
            conversion = Conversion(model, half, subject.fp32_nodes(), subject.settings.out_of_range)
            model = conversion.build()
            notes += conversion.notes
        able = self.can_run(subject.settings)
        profile = make_profile(exported, subject)
        settings: dict[str, Any] = {
            "backend": self._backend,
            "profile": profile,
            "directory": Path(subject.settings.cache) if subject.settings.cache else None,
            "time_limit": subject.settings.time_limit,
            "command": subject.settings.command,
            "weakly_typed": "fp16" if weakly else None,
            "tf32": self.precision == "tf32" or (subject.settings.tf32 and self.precision in LOW),
            "workspace": subject.settings.workspace,
            "device": device_index(subject.settings),
        }
        refit = subject.settings.refit and bool(able)
        engine, warning = _build_or_refit(model.SerializeToString(), settings, refit=refit)
        layers = executed_precisions(engine.inspector)
        if not able:
            return Built(None, engine.size, ", ".join([f"not run: {able.reason}", *notes]), layers=layers)
        notes += ["refittable"] * ("REFIT" in engine.flags.split())
        run, clock = engine_runner(engine, exported, profile, subject.settings.time_limit)
        return Built(run, engine.size, ", ".join(notes), warning, layers, clock)


def engine_runner(
    engine: builder.Engine, exported: Exported, profile: Profile, time_limit: float
) -> tuple[BulkRunner, Clock]:
    """What runs an engine on the samples of a graph, and what times it.

    Args:
        engine: An engine with the inputs and outputs of the graph.
        exported: The graph.
        profile: Input -> the shapes that the engine takes; its batches are of the largest one.
        time_limit: Seconds for one child process.
    """
    fixed = _batch_sizes(exported, profile)

    def run_sets(sets: Sequence[tuple[Any, ...]]) -> list[list[Tensor]]:
        batches = [Batches(feed(args, exported), fixed) for args in sets]
        ran = iter(runs.run_batches(engine, chain.from_iterable(batches), time_limit=time_limit).outputs)
        tensors = ([torch.from_numpy(outputs[name]) for name in exported.outputs] for outputs in ran)
        return [part.join(list(islice(tensors, len(part)))) for part in batches]

    def clock(args: tuple[Any, ...]) -> list[float]:
        batch = next(iter(Batches(feed(args, exported), fixed)))
        return list(runs.run_batches(engine, [batch], timed_runs=_TIMED, time_limit=time_limit).latencies)

    return BulkRunner(run_sets), clock


def device_index(settings: BuildSettings) -> int:
    """Which of the CUDA devices the settings name; the first one behind a command, where the training's are not.

    Example:
        >>> device_index(BuildSettings(device="cuda:1")), device_index(BuildSettings(device="cpu"))
        (1, 0)
    """
    device = torch.device(settings.device or "cpu")
    return (device.index or 0) if device.type == "cuda" and not settings.command else 0


def _batch_sizes(exported: Exported, profile: Profile) -> dict[str, int]:
    """The inputs with a dimension for the batch, and the size of it that the engine takes."""
    dynamic = [
        value.name
        for value in exported.model.graph.input
        if (dims := value.type.tensor_type.shape.dim) and static_size(dims[0]) is None
    ]
    return {name: profile[name][-1][0] for name in dynamic} or fixed_batches(exported.model.graph)


def _build_or_refit(model: bytes, settings: dict[str, Any], *, refit: bool) -> tuple[builder.Engine, str]:
    """An engine, with new weights in an existing one if possible; and a warning where a refit failed."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()  # the builder takes what is free; the cache of a training is most of the device
    if not refit:
        return builder.build_engine(model, **settings), ""
    try:
        return builder.build_engine(model, refit=True, **settings), ""
    except EngineError as error:
        if error.kind == "cancelled":
            raise
        reason = str(error).splitlines()[0]
    return builder.build_engine(model, **settings), f"the engine was built anew, for it could not be refitted. {reason}"
