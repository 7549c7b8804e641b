"""The file that is really deployed, converted by other tools, as a target beside those that are built here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor

from lightning_robust.deployment.engines.abilities import Ability
from lightning_robust.deployment.engines.base import Built, Runtime, feed, host_clock
from lightning_robust.deployment.engines.settings import DEFAULTS, BuildSettings, Deployed
from lightning_robust.deployment.engines.subject import Subject
from lightning_robust.deployment.graph.batches import fixed_batches
from lightning_robust.deployment.graph.export import Exported, ExportError
from lightning_robust.deployment.graph.frozen import named_inputs
from lightning_robust.deployment.graph.matching import cast_arrays, check_outputs, match_graphs
from lightning_robust.deployment.graph.session import Session
from lightning_robust.deployment.numerics.emulate import emulate
from lightning_robust.deployment.numerics.integers import count_products, in_integers
from lightning_robust.deployment.numerics.quantise import is_quantised, take_quantised
from lightning_robust.deployment.numerics.typed import emulate_typed, stated_halves, stated_precision
from lightning_robust.structures import flatten, map_tensors

_PRECISIONS = ("int8", "bf16", "fp16", "fp32")
_ENGINES = (".engine", ".plan", ".trt")
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)


class DeployedRuntime(Runtime):
    """The user's own ONNX file on this machine, in the precision that its types state.

    A file in fp32 or int8 is executed by ONNX Runtime, products of quantised tensors in integers. Its CPU kernels do
    not compute in half precision, so that of a file in fp16 or bf16 each tensor that it states so is rounded.

    Args:
        runtime: ``"deployed"``.
        precision: As the file states it.
        file: The file; empty for the name alone.
    """

    def __init__(self, runtime: str, precision: str, file: str = "") -> None:
        super().__init__(runtime, precision)
        self.file = file

    def can_build(self, settings: BuildSettings = DEFAULTS) -> Ability:
        """Whether there is a file."""
        if not self.file:
            return Ability(False, f"no file was given for it: `deployed: {{{self.name}: model.onnx}}`")
        reason = f"there is no file at {self.file}"
        return Ability(True) if Path(self.file).is_file() else Ability(False, reason)

    def build(self, subject: Subject) -> Built:
        """Read the file and match its inputs and outputs with those of the exported graph.

        Raises:
            ValueError: If it is no ONNX file, or its inputs and outputs are others.
        """
        graph = read_stated(self.file, self.precision)
        place = InPlace(graph, outline(subject), tf32=subject.settings.tf32)
        halves = stated_halves(graph)
        done = f"emulated, every tensor that is {' or '.join(halves)} rounded" if halves else "executed by ONNX Runtime"
        note = ", ".join([f"{Path(self.file).name} {done}", *place.notes, *_broken_weights(graph)])
        clock = None if halves else host_clock(place.run)
        batch = max(fixed_batches(graph.graph).values(), default=None)
        return Built(place.run, graph.ByteSize(), note, layers=place.layers, clock=clock, batch=batch)


class InPlace:
    """A graph that stands for the exported one: another conversion of the same model, as an engine computes it.

    Its half tensors are rounded, see :func:`~.numerics.typed.emulate_typed`, and its products of quantised tensors are
    executed in integers, see :func:`~.numerics.integers.in_integers`.

    Args:
        graph: The graph.
        exported: The graph whose inputs are given and whose outputs are compared.
        tf32: Let what is fp32 in a graph with half tensors multiply in TF32.

    Attributes:
        notes: What a reader should know of it.
        layers: Precision -> number of products that were executed in it, of a quantised graph.

    Raises:
        ValueError: If its inputs or outputs are others, or scales in it mean nothing.
    """

    def __init__(self, graph: onnx.ModelProto, exported: Exported, *, tf32: bool = False) -> None:
        self._exported, self._own = exported, as_exported(graph, exported)
        self.notes = self._own.notes
        quantised = is_quantised(graph)
        held = _held(take_quantised(graph).model if quantised else graph, tf32=tf32)
        self._session = Session(in_integers(held) if quantised else held, record=quantised)
        self._graph, self._names = held.graph, [value.name for value in held.graph.output]
        self.layers = count_products(self._session.executed)

    def run(self, args: tuple[Any, ...]) -> list[Tensor]:
        """The outputs in the exported graph's order."""
        results = self._session.run(cast_arrays(self._graph, feed(args, self._own)))
        found = [results[self._names.index(name)] for name in self._own.outputs]
        if self._exported.model.graph.output:
            check_outputs(found, self._exported.model.graph)
        return found


def as_exported(graph: onnx.ModelProto, exported: Exported) -> Exported:
    """A graph in the place of the exported one: its own names in that one's order, and how they were matched.

    Raises:
        ValueError: If its inputs or outputs are others.
    """
    inputs, outputs = ([value.name for value in values] for values in (graph.graph.input, graph.graph.output))
    match = match_graphs(inputs, outputs, _names_of_inputs(exported, len(inputs)), exported.outputs)
    own = {theirs: ours for ours, theirs in match.inputs.items()}
    batch = next(iter(fixed_batches(graph.graph).values()), None)
    return Exported(
        graph, {}, tuple(own.get(name, name) for name in exported.inputs), match.outputs, batch, match.notes
    )


def read_stated(file: str, precision: str) -> onnx.ModelProto:
    """The graph of a file, if its types state this precision.

    Raises:
        FileNotFoundError: If the file, or one with its weights, is not there.
        ValueError: If it is no valid ONNX, or in another precision.
    """
    from lightning_robust.deployment.graph.files import load_graph  # which knows the engines

    graph = load_graph(file)
    found = stated_precision(graph)
    if found != precision:
        raise ValueError(f"Expected a file in {precision}, but {file} is in {found}. Name the target after that.")
    return graph


def _held(graph: onnx.ModelProto, *, tf32: bool) -> onnx.ModelProto:
    """The graph in fp32, with what is half rounded."""
    if not stated_halves(graph):
        return graph
    held = emulate_typed(graph)
    return emulate(held, "tf32") if tf32 else held  # which leaves operands that are half as they are


def outline(subject: Subject) -> Exported:
    """The exported graph, or the names alone of a module that cannot be exported: its file may come from elsewhere."""
    try:
        return subject.exported
    except ExportError:
        rows = map_tensors(Tensor.clone, subject.rows(slice(2)))  # which the module may change in place
        with torch.no_grad():
            inputs, outputs = named_inputs(subject.example), flatten(subject.module(*rows))
        return Exported(onnx.ModelProto(), {}, tuple(inputs), tuple(outputs))


def deployed_files(deployed: Deployed) -> dict[str, str]:
    """Target -> file, of what the user deploys.

    A file without a target is ``deployed-<precision>``, the precision being that of its types, or that in its name
    where it cannot be read.

    Args:
        deployed: One file, several, or target -> file.

    Raises:
        ValueError: If two files have the same target, or a target takes no file.

    Example:
        >>> deployed_files("model_int8.onnx"), deployed_files({"deployed-fp16": "model.onnx"})
        ({'deployed-int8': 'model_int8.onnx'}, {'deployed-fp16': 'model.onnx'})
    """
    if isinstance(deployed, Mapping):
        return dict(deployed)
    found: dict[str, str] = {}
    for file in [deployed] if isinstance(deployed, str) else deployed or ():
        target = f"{'tensorrt' if _is_engine(file) else 'deployed'}-{_precision(file)}"
        if target in found:
            raise ValueError(
                f"Expected one file for a target, but got {found[target]} and {file} for {target}. Measure one after "
                "the other."
            )
        found[target] = file
    return found


def _is_engine(file: str) -> bool:
    return Path(file).suffix in _ENGINES


def _precision(file: str) -> str:
    try:
        return stated_precision(onnx.load(file, load_external_data=False))
    except Exception:
        return next((precision for precision in _PRECISIONS if precision in Path(file).name.lower()), "fp16")


def _names_of_inputs(exported: Exported, count: int) -> tuple[str, ...]:
    """The names of what is fed, or of what the exported graph reads of it where the file has as many inputs."""
    read = tuple(value.name for value in exported.model.graph.input)
    return read if len(read) == count else exported.inputs


def _broken_weights(graph: onnx.ModelProto) -> Iterable[str]:
    """A remark on weights that are infinite or NaN."""
    names = [tensor.name for tensor in graph.graph.initializer if tensor.data_type in _FLOATS and _is_odd(tensor)]
    if len(names) > 1:
        yield f"its weight {names[0]} and {len(names) - 1} more are infinite or NaN"
    elif names:
        yield f"its weight {names[0]} is infinite or NaN"


def _is_odd(tensor: TensorProto) -> bool:
    return not np.isfinite(numpy_helper.to_array(tensor).astype(np.float64)).all()
