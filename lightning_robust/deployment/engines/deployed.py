"""The file that is really deployed, converted by other tools, as a target beside those that are built here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from torch import Tensor

from lightning_robust.deployment.engines.abilities import Ability
from lightning_robust.deployment.engines.base import Built, Runner, Runtime, feed, host_clock
from lightning_robust.deployment.engines.settings import DEFAULTS, BuildSettings, Deployed
from lightning_robust.deployment.engines.subject import Subject
from lightning_robust.deployment.graph.export import Exported, ExportError
from lightning_robust.deployment.graph.frozen import named_inputs
from lightning_robust.deployment.graph.matching import cast_arrays, check_outputs, match_graphs
from lightning_robust.deployment.graph.session import Session
from lightning_robust.deployment.numerics.emulate import emulate
from lightning_robust.deployment.numerics.typed import emulate_typed, stated_halves, stated_precision
from lightning_robust.structures import flatten

_PRECISIONS = ("int8", "bf16", "fp16", "fp32")
_ENGINES = (".engine", ".plan", ".trt")
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)


class DeployedRuntime(Runtime):
    """The user's own ONNX file on this machine, in the precision that its types state.

    A file in fp32 or int8 is executed by ONNX Runtime. ONNX Runtime's CPU kernels do not compute in half precision, so
    that of a file in fp16 or bf16 each tensor that it states so is rounded, see :func:`~.numerics.typed.emulate_typed`.

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
        from lightning_robust.deployment.graph.files import load_graph  # which knows the engines

        graph = load_graph(self.file)
        found = stated_precision(graph)
        if found != self.precision:
            raise ValueError(f"Expected a file in {self.precision}, but {self.file} is in {found}: deployed-{found}.")
        halves = stated_halves(graph)
        run, notes = run_in_place(graph, outline(subject), tf32=subject.settings.tf32)
        done = f"emulated, every tensor that is {' or '.join(halves)} rounded" if halves else "executed by ONNX Runtime"
        note = ", ".join([f"{Path(self.file).name} {done}", *notes, *_broken_weights(graph)])
        return Built(run, graph.ByteSize(), note, clock=None if halves else host_clock(run))


def run_in_place(graph: onnx.ModelProto, exported: Exported, *, tf32: bool = False) -> tuple[Runner, tuple[str, ...]]:
    """A runner on a graph that stands for the exported one, and what a reader should know of it.

    Args:
        graph: Another conversion of the same model; its half tensors are rounded.
        exported: The graph whose inputs are given and whose outputs are compared.
        tf32: Let what is fp32 in a graph with half tensors multiply in TF32.

    Raises:
        ValueError: If its inputs or outputs are others.
    """
    inputs, outputs = ([value.name for value in values] for values in (graph.graph.input, graph.graph.output))
    match = match_graphs(inputs, outputs, _names_of_inputs(exported, len(inputs)), exported.outputs)
    held = emulate_typed(graph) if stated_halves(graph) else graph
    if tf32 and held is not graph:
        held = emulate(held, "tf32")  # which leaves operands that are half as they are
    session, order = Session(held), [outputs.index(name) for name in match.outputs]

    def run(args: tuple[Any, ...]) -> list[Tensor]:
        arrays = feed(args, exported)
        results = session.run(cast_arrays(held.graph, {name: arrays[theirs] for name, theirs in match.inputs.items()}))
        found = [results[index] for index in order]
        if exported.model.graph.output:
            check_outputs(found, exported.model.graph)
        return found

    return run, match.notes


def outline(subject: Subject) -> Exported:
    """The exported graph, or the names alone of a module that cannot be exported: its file may come from elsewhere."""
    try:
        return subject.exported
    except ExportError:
        inputs, outputs = named_inputs(subject.example), flatten(subject.module(*subject.rows(slice(2))))
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
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        yield f"its weight {names[0]}{more} is infinite or NaN"


def _is_odd(tensor: TensorProto) -> bool:
    return not np.isfinite(numpy_helper.to_array(tensor).astype(np.float64)).all()
