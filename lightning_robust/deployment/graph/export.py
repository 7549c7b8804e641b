"""From a module to one ONNX file, with the map from each node back to the module that made it.

Knows no engine. ``frozen.py`` has the copy that is exported, ``keeper.py`` the graph that is kept for later weights.
"""

from __future__ import annotations

import contextlib
import io
import logging
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import onnx
import onnx_ir as ir
import torch
from torch import Tensor, nn

from lightning_robust.deployment.graph.explain import ExportError, explained
from lightning_robust.deployment.graph.frozen import Flat, frozen_copy, named_inputs, to_args
from lightning_robust.deployment.graph.origin import Origin, read_origins
from lightning_robust.rows import count_rows, take_rows
from lightning_robust.structures import flatten, map_tensors

__all__ = ["ExportError", "Exported", "Flat", "Template", "export", "frozen_copy", "quiet", "to_args"]
_Shapes = tuple[dict[int, Any], ...]
_NOISY = ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")


@dataclass(frozen=True)
class Exported:
    """An ONNX model that may be shipped, and what may not be shipped with it.

    Args:
        model: The graph, without source paths.
        origins: Node name -> :class:`Origin`, for every node that came from a module call.
        inputs: Names of the graph's inputs, in the order of the flattened arguments.
        outputs: Names of the graph's outputs, in the order of the flattened result.
        batch: The one batch that the graph takes; None if it takes any.
        notes: What a reader of its numbers should know.
        seconds: The time that the export took.
    """

    model: onnx.ModelProto
    origins: dict[str, Origin]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    batch: int | None = None
    notes: tuple[str, ...] = ()
    seconds: float = 0.0


def export(module: nn.Module, args: tuple[Any, ...], *, opset: int = 20, max_batch: int = 4096) -> Exported:
    """Turn a module into one ONNX graph with a batch dimension that is really dynamic.

    The graph is what PyTorch's dynamo exporter makes of the module in evaluation mode: BatchNorm folded into the
    convolutions, one file, no external data. Source paths are kept in :attr:`Exported.origins` and stripped from
    the graph. A module that fixes its batch is exported for one sample, as it runs in a car, and so is one of which a
    single sample is given; a note says so.

    Args:
        module: The module, on the CPU; :func:`frozen_copy` makes one from a live module.
        args: Positional arguments of its ``forward``, with a batch of at least 2 for a graph that takes any number of
            samples: tensors ``(batch, ...)`` or any structure of them. Tensors whose first size is not the batch's stay
            fixed.
        opset: ONNX operator set.
        max_batch: The largest batch that the graph has to take.

    Raises:
        ExportError: If an operator is unknown to ONNX, or the graph fixes a batch size other than one.
        ValueError: If there is no sample.

    Example:
        >>> exported = export(nn.Linear(3, 1).eval(), (torch.zeros(2, 3),))
        >>> exported.inputs, exported.outputs
        (('input',), ('output',))
    """
    return Template(module, args, opset=opset, max_batch=max_batch).filled(module)


class Template:
    """The graph of a module before the optimiser, when each weight still stands in it under its own name.

    What the optimiser folds and drops depends on the weights' values, so that it runs for each set of weights. It
    takes a twentieth of the time that the graph takes.

    Args:
        module: As for :func:`export`.
        args: As there.
        opset: As there.
        max_batch: As there.

    Raises:
        ExportError: As there.
        ValueError: As there.
    """

    def __init__(self, module: nn.Module, args: tuple[Any, ...], *, opset: int = 20, max_batch: int = 4096) -> None:
        self._start: float | None = time.monotonic()
        self._batch: int | None = None
        self._notes: tuple[str, ...] = ()
        self._inputs, batch = tuple(named_inputs(args)), count_rows(args)
        if batch < 1:
            raise ValueError("Expected a sample to export with, but got none.")
        if batch == 1:  # which torch takes for a constant
            note = "Exported for one sample, since only one was given. Give two or more."
            self._program = self._translate_one(module, args, opset, note)
        else:
            self._program = self._translate_any(module, args, opset, max(batch, max_batch))
        self._graph = self._without_weights(module)

    def _translate_any(
        self, module: nn.Module, args: tuple[Any, ...], opset: int, max_batch: int
    ) -> torch.onnx.ONNXProgram:
        """For any number of samples, or for one where the module's operators ask for that."""
        dimension, batch = torch.export.Dim("batch", min=1, max=max_batch), count_rows(args)
        tensors = named_inputs(args).values()
        shapes = tuple({0: dimension} if t.ndim and t.shape[0] == batch else {} for t in tensors)
        try:
            return _translate(module, args, shapes, opset)
        except ExportError as error:
            if error.operator is not None:
                raise
            try:
                note = f"Exported for one sample, and run sample by sample. {error}"
                return self._translate_one(module, take_rows(args, slice(1), batch), opset, note)
            except Exception:
                raise error from error.__cause__

    def _translate_one(self, module: nn.Module, args: tuple[Any, ...], opset: int, note: str) -> torch.onnx.ONNXProgram:
        self._batch, self._notes = 1, (note,)
        return _translate(module, args, tuple({} for _ in self._inputs), opset)

    def filled(self, module: nn.Module) -> Exported:
        """The optimised graph with the weights of a module of the same program."""
        started = time.monotonic() if self._start is None else self._start
        self._start = None
        model = self._program.model = ir.from_proto(self._graph)
        weights = {name: tensor for name, tensor in _tensors(module).items() if name in model.graph.initializers}
        with quiet():
            self._program.apply_weights(weights)
            self._program.optimize()
        proto = self._program.model_proto
        origins = read_origins(proto)
        _strip(proto)
        outputs = tuple(value.name for value in proto.graph.output)
        seconds = time.monotonic() - started
        return Exported(proto, origins, self._inputs, outputs, self._batch, self._notes, seconds)

    def _without_weights(self, module: nn.Module) -> onnx.ModelProto:
        """The graph as a message that holds no weight a second time."""
        proto = self._program.model_proto
        self._program.exported_program = None
        names = _tensors(module).keys()
        for tensor in proto.graph.initializer:
            if tensor.name in names:
                tensor.raw_data = b""
        return proto


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """All tensors of a module under the names that an exported graph has for them; tied ones under each."""
    flat = Flat(module, ())
    return {**dict(flat.named_parameters(remove_duplicate=False)), **dict(flat.named_buffers(remove_duplicate=False))}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporter's progress lines, warnings and log records off the user's screen."""
    loggers = [logging.getLogger(name) for name in _NOISY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _translate(module: nn.Module, args: tuple[Any, ...], shapes: _Shapes, opset: int) -> torch.onnx.ONNXProgram:
    """The module as ONNX, not yet optimised."""
    inputs = named_inputs(args)
    tensors = tuple(inputs.values())
    with torch.no_grad():
        names = tuple(flatten(module(*map_tensors(Tensor.clone, args))))
    program = None
    with quiet():
        try:
            program = torch.export.export(Flat(module, args), tensors, dynamic_shapes=(shapes,), strict=False)
            translated = torch.onnx.export(
                program,
                tensors,
                dynamo=True,
                opset_version=opset,
                input_names=list(inputs),
                output_names=_distinct(names, inputs),
                dynamic_shapes=(shapes,),
                external_data=False,
                verbose=False,
                optimize=False,
            )
        except Exception as error:
            raise explained(error, program) from error
    if translated is None:
        raise ExportError("torch.onnx.export returned nothing. Use a torch whose exporter knows `dynamo=True`.")
    if shapes[0]:
        _check_dynamic(translated.model_proto)
    return translated


def _distinct(outputs: tuple[str, ...], inputs: Mapping[str, Tensor]) -> list[str]:
    return [f"{name}_out" if name in inputs else name for name in outputs]


def _check_dynamic(model: onnx.ModelProto) -> None:
    first = model.graph.input[0].type.tensor_type.shape.dim[0]
    if not first.dim_param:
        raise ExportError(
            f"The graph fixes the batch size to {first.dim_value}. Use `x.shape[0]`, `flatten(1)` or -1 "
            "instead of a literal batch in `forward`."
        )


def _strip(model: onnx.ModelProto) -> None:
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.initializer, *graph.value_info, *graph.input, *graph.output):
        del part.metadata_props[:]
        part.doc_string = ""
