"""TensorRT and TensorRT-RTX as engines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, cast

import onnx
import torch
from torch import Tensor

from lightning_robust.deployment.engines import abilities, builder, runs
from lightning_robust.deployment.engines.abilities import Ability, Backend
from lightning_robust.deployment.engines.base import HALF, Built, BulkRunner, Clock, Runtime, feed
from lightning_robust.deployment.engines.child.process import EngineError
from lightning_robust.deployment.engines.inspector import executed_precisions
from lightning_robust.deployment.engines.int8 import describe_int8
from lightning_robust.deployment.engines.profile import make_profile
from lightning_robust.deployment.engines.settings import DEFAULTS, BuildSettings
from lightning_robust.deployment.engines.subject import Subject
from lightning_robust.deployment.graph.batches import Batches, fixed_batches
from lightning_robust.deployment.graph.export import Exported
from lightning_robust.deployment.graph.matching import Match, check_outputs, match_graphs
from lightning_robust.deployment.graph.types import static_size
from lightning_robust.deployment.numerics.convert import Conversion
from lightning_robust.deployment.numerics.half_scales import with_half_scales
from lightning_robust.deployment.numerics.precisions import Half

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
        return abilities.can_build(self._backend, settings.command, device_index(settings))

    def can_run(self, settings: BuildSettings = DEFAULTS) -> Ability:
        """Whether there is a CUDA device to execute the engine on."""
        return abilities.can_run(self._backend, settings.command, device_index(settings))

    def build(self, subject: Subject) -> Built:
        """Build the engine, or take it from the cache."""
        exported, able = subject.exported, self.can_run(subject.settings)
        model, notes = self._typed(subject)
        settings = self._asked_for(subject.settings) | {"profile": make_profile(exported, subject)}
        refit = subject.settings.refit and bool(able)
        engine, warning = _build_or_refit(model.SerializeToString(), settings, refit=refit)
        layers = executed_precisions(engine.inspector)
        if not able:
            return Built(None, engine.size, ", ".join([f"not run: {able.reason}", *notes]), layers=layers)
        notes += ["refittable"] * ("REFIT" in engine.flags.split())
        graph = exported.model.graph
        match = Match({value.name: value.name for value in graph.input}, exported.outputs)
        fixed = {value.name: subject.settings.batch for value in graph.input if _is_dynamic(value)}
        run, clock = engine_runner(engine, exported, match, fixed or fixed_batches(graph), subject.settings)
        return Built(run, engine.size, ", ".join(notes), warning, layers, clock)

    def _typed(self, subject: Subject) -> tuple[onnx.ModelProto, list[str]]:
        """The graph in the types that the engine computes in, and what a reader should know of it.

        Raises:
            ValueError: If nothing in it can be int8 where that is asked for.
        """
        model = subject.exported.model
        if self._is_weakly_typed(subject.settings):
            return model, ["weakly typed"]
        if self.precision == "int8":
            return int8_beside_fp16(subject)
        if self.precision not in HALF:
            return model, []
        half = cast(Half, self.precision)
        conversion = Conversion(model, half, subject.fp32_nodes(), subject.settings.out_of_range)
        return conversion.build(), list(conversion.notes)

    def _is_weakly_typed(self, settings: BuildSettings) -> bool:
        return settings.weakly_typed and self.name == "tensorrt-fp16"

    def _asked_for(self, settings: BuildSettings) -> dict[str, Any]:
        """What the builder is asked for beside a graph and its profile."""
        return {
            "backend": self._backend,
            "directory": Path(settings.cache) if settings.cache else None,
            "time_limit": settings.time_limit,
            "command": settings.command,
            "weakly_typed": "fp16" if self._is_weakly_typed(settings) else None,
            "tf32": self.precision == "tf32" or (settings.tf32 and self.precision in LOW),
            "workspace": settings.workspace,
            "device": device_index(settings),
        }


class EngineFileRuntime(TensorRTRuntime):
    """An engine that the user deploys, from its file.

    Args:
        runtime: Which library built it.
        precision: In which it computes, as the user says.
        file: The serialised engine.
    """

    def __init__(self, runtime: str, precision: str, file: str) -> None:
        super().__init__(runtime, precision)
        self.file = file

    def can_build(self, settings: BuildSettings = DEFAULTS) -> Ability:
        """Whether there is a file, and something that runs it."""
        there = Path(self.file).is_file()
        return self.can_run(settings) if there else Ability(False, f"there is no file at {self.file}")

    def build(self, subject: Subject) -> Built:
        """Load the engine, and match its inputs and outputs with those of the exported graph.

        Raises:
            ValueError: If its inputs and outputs are others.
        """
        exported, settings = subject.exported, subject.settings
        engine = runs.load_engine_file(
            Path(self.file),
            self._backend,
            time_limit=settings.time_limit,
            command=settings.command,
            device=device_index(settings),
        )
        inputs = [name for name, tensor in engine.tensors.items() if tensor["mode"] == "INPUT"]
        outputs = [name for name in engine.tensors if name not in inputs]
        read = tuple(value.name for value in exported.model.graph.input)
        match = match_graphs(inputs, outputs, read if len(read) == len(inputs) else exported.inputs, exported.outputs)
        fixed = _batches_of(engine, inputs, settings.batch)
        run, clock = engine_runner(engine, exported, match, fixed, settings)
        note = ", ".join([f"{Path(self.file).name} in batches of {max(fixed.values(), default=1)}", *match.notes])
        return Built(run, engine.size, note, layers=executed_precisions(engine.inspector), clock=clock)


def engine_runner(
    engine: builder.Engine, exported: Exported, match: Match, fixed: Mapping[str, int], settings: BuildSettings
) -> tuple[BulkRunner, Clock]:
    """What runs an engine on the samples of a graph, and what times it.

    Args:
        engine: The engine.
        exported: The graph.
        match: Which inputs and outputs of the engine are those of the graph.
        fixed: Inputs of the engine with a batch, and its size.
        settings: Their time limit is that of one child process.
    """

    def batches_of(args: tuple[Any, ...]) -> Batches:
        arrays = feed(args, exported)
        return Batches({name: arrays[theirs] for name, theirs in match.inputs.items()}, fixed)

    def run_sets(sets: Sequence[tuple[Any, ...]]) -> list[list[Tensor]]:
        parts = list(map(batches_of, sets))
        ran = runs.run_batches(engine, chain.from_iterable(parts), time_limit=settings.time_limit)
        tensors = ([torch.from_numpy(outputs[name]) for name in match.outputs] for outputs in ran.outputs)
        found = [part.join(list(islice(tensors, len(part)))) for part in parts]
        for outputs in found:
            check_outputs(outputs, exported.model.graph)
        return found

    def clock(args: tuple[Any, ...]) -> list[float]:
        batch = next(iter(batches_of(args)))
        return list(runs.run_batches(engine, [batch], timed_runs=_TIMED, time_limit=settings.time_limit).latencies)

    return BulkRunner(run_sets), clock


def int8_beside_fp16(subject: Subject) -> tuple[onnx.ModelProto, list[str]]:
    """The int8 graph with the rest in fp16 but for what is kept in fp32, and what a reader should know of it."""
    note, model = describe_int8(subject.quantised, subject.calibrated), subject.quantised.model
    there = {node.name for node in model.graph.node}
    kept = [name for name in subject.fp32_nodes() if name in there]  # one that was folded is not
    conversion = Conversion(model, "fp16", kept, subject.settings.out_of_range)
    return with_half_scales(conversion.build()), [note, "the rest in fp16", *conversion.notes]


def device_index(settings: BuildSettings) -> int:
    """Which of the CUDA devices the settings name; the first one behind a command, where the training's are not.

    Example:
        >>> device_index(BuildSettings(device="cuda:1")), device_index(BuildSettings(device="cpu"))
        (1, 0)
    """
    device = torch.device(settings.device or "cpu")
    return (device.index or 0) if device.type == "cuda" and not settings.command else 0


def _is_dynamic(value: onnx.ValueInfoProto) -> bool:
    """Whether an input takes any number of samples."""
    dims = value.type.tensor_type.shape.dim
    return bool(dims) and static_size(dims[0]) is None


def _batches_of(engine: builder.Engine, inputs: Sequence[str], batch: int) -> dict[str, int]:
    """As :func:`fixed_batches`: the size asked for where the engine takes it, else the one that it is optimised for."""
    profiles = {name: engine.tensors[name].get("profile", [[]]) for name in inputs}
    first: list[list[int]] = next(iter(profiles.values()), [[]])
    if len(first[0]) < 2:
        return {}
    sizes = [shape[0] for shape in first]
    size = batch if sizes[0] <= batch <= sizes[-1] else sizes[1]
    return {name: size for name, shapes in profiles.items() if [shape[0] for shape in shapes if shape] == sizes}


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
