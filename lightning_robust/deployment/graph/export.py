"""From a module to one ONNX file, with the map from each node back to the module that made it.

Knows no engine: what runs the graph is in ``runtimes.py``.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from lightning_robust.deployment.graph.origin import Origin as Origin
from lightning_robust.deployment.graph.origin import read_origins, user_line
from lightning_robust.structures import flatten, map_tensors, rebuild, tensors_in
from lightning_robust.torch_names import original_of_compiled

_UNKNOWN = re.compile(r"No ONNX function found for <OpOverload\(op='([^']+)'")
_Shapes = tuple[dict[int, Any], ...]
_NOISY = ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")


class ExportError(RuntimeError):
    """The module could not be turned into ONNX. The message names the operator and the line where there is one."""


@dataclass(frozen=True)
class Exported:
    """An ONNX model that may be shipped, and what may not be shipped with it.

    Args:
        model: The graph, without source paths.
        origins: Node name -> :class:`Origin`, for every node that came from a module call.
        inputs: Names of the graph's inputs, in the order of the flattened arguments.
        outputs: Names of the graph's outputs, in the order of the flattened result.
    """

    model: onnx.ModelProto
    origins: dict[str, Origin]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class Flat(nn.Module):
    """A module behind a flat signature: tensors in, a tuple of tensors out, whatever structures it speaks itself.

    Args:
        module: The module.
        args: Its positional arguments, any structure of tensors; only the structure is used.
    """

    def __init__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        super().__init__()
        self.module = module
        self._args = args

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Call the module with ``tensors`` put back into its arguments; shapes are the module's own."""
        return tuple(flatten(self.module(*rebuild(self._args, iter(tensors)))).values())


def frozen_copy(module: nn.Module, state: Mapping[str, Tensor] | None = None) -> nn.Module:
    """A copy in fp32 on the CPU, in evaluation mode, without ``torch.compile``; the module itself is not touched.

    Args:
        module: Any module, also one in the middle of a fit.
        state: Weights to put into the copy, as from ``module.state_dict()``; its own if None.

    Example:
        >>> live = nn.Dropout()
        >>> frozen_copy(live).training, live.training
        (False, True)
    """
    duplicate = copy.deepcopy(module, _without_graphs(module))
    if state is not None:
        duplicate.load_state_dict(state)
    duplicate.__dict__.pop("forward", None)  # Lightning puts a compiled forward on the instance
    return _uncompiled(duplicate).cpu().float().eval().requires_grad_(False)


def _without_graphs(module: nn.Module) -> dict[int, Any]:
    """A memo for ``deepcopy`` in which tensors with a graph, as gathered losses or metrics, stand for their values."""
    kept = [tensor for part in module.modules() for tensor in tensors_in(vars(part))]
    return {id(tensor): tensor.detach().clone() for tensor in kept if tensor.grad_fn is not None}


def export(module: nn.Module, args: tuple[Any, ...], *, opset: int = 20, max_batch: int = 4096) -> Exported:
    """Turn a module into one ONNX graph with a batch dimension that is really dynamic.

    The graph is what PyTorch's dynamo exporter makes of the module in evaluation mode: BatchNorm folded into the
    convolutions, one file, no external data. Source paths are kept in :attr:`Exported.origins` and stripped from
    the graph.

    Args:
        module: The module, on the CPU; :func:`frozen_copy` makes one from a live module.
        args: Positional arguments of its ``forward`` with a batch of at least 2: tensors ``(batch, ...)`` or any
            structure of them. Tensors whose first size is not the batch's stay fixed.
        opset: ONNX operator set.
        max_batch: The largest batch that the graph has to take.

    Raises:
        ExportError: If an operator is unknown to ONNX, or the graph fixes the batch size.
        ValueError: If the batch is smaller than 2, from which a dynamic batch cannot be told.

    Example:
        >>> exported = export(nn.Linear(3, 1).eval(), (torch.zeros(2, 3),))
        >>> exported.inputs, exported.outputs
        (('input',), ('output',))
    """
    tensors = flatten(args[0] if len(args) == 1 else args, "input")
    batch = next(iter(tensors.values())).shape[0]
    if batch < 2:
        raise ValueError(f"Expected a batch of at least 2 samples to export with a dynamic batch, but got {batch}.")
    dimension = torch.export.Dim("batch", min=1, max=max(batch, max_batch))
    shapes = tuple({0: dimension} if t.ndim and t.shape[0] == batch else {} for t in tensors.values())
    flat = Flat(module, args)
    with torch.no_grad():
        outputs = tuple(flatten(module(*args)))
    with quiet():
        program = _capture(flat, tuple(tensors.values()), shapes)
        model = _translate(program, tuple(tensors.values()), shapes, list(tensors), _distinct(outputs, tensors), opset)
    _check_dynamic(model)
    origins = read_origins(model)
    _strip(model)
    return Exported(model, origins, tuple(tensors), tuple(o.name for o in model.graph.output))


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


def to_args(args: tuple[Any, ...], dtype: torch.dtype, device: torch.device | str = "cpu") -> tuple[Any, ...]:
    """The arguments with their floating tensors in another type, all tensors on another device."""

    def move(tensor: Tensor) -> Tensor:
        return tensor.to(device, dtype) if tensor.is_floating_point() else tensor.to(device)

    moved: tuple[Any, ...] = map_tensors(move, args)
    return moved


def _capture(flat: Flat, tensors: tuple[Tensor, ...], shapes: _Shapes) -> torch.export.ExportedProgram:
    try:
        return torch.export.export(flat, tensors, dynamic_shapes=(shapes,), strict=False)
    except Exception as error:
        raise ExportError(_explain(error)) from error


def _translate(
    program: torch.export.ExportedProgram,
    tensors: tuple[Tensor, ...],
    shapes: _Shapes,
    inputs: list[str],
    outputs: list[str],
    opset: int,
) -> onnx.ModelProto:
    try:
        translated = torch.onnx.export(
            program,
            tensors,
            dynamo=True,
            opset_version=opset,
            input_names=inputs,
            output_names=outputs,
            dynamic_shapes=(shapes,),
            external_data=False,
            verbose=False,
        )
    except Exception as error:
        raise ExportError(_explain(error, program)) from error
    if translated is None:
        raise ExportError("torch.onnx.export returned nothing. Use a torch whose exporter knows `dynamo=True`.")
    model: onnx.ModelProto = translated.model_proto
    return model


def _distinct(outputs: tuple[str, ...], inputs: Mapping[str, Tensor]) -> list[str]:
    return [f"{name}_out" if name in inputs else name for name in outputs]


def _uncompiled(module: nn.Module) -> nn.Module:
    original = original_of_compiled(module)
    if original is not None:
        return _uncompiled(original)
    for name, child in module.named_children():
        setattr(module, name, _uncompiled(child))
    return module


def _explain(error: Exception, program: torch.export.ExportedProgram | None = None) -> str:
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None:
        chain.append(cause)
        cause = cause.__cause__
    text = "\n".join(str(link) for link in chain)
    unknown = _UNKNOWN.search(text)
    if unknown:
        return (
            f"ONNX has no operator for {unknown[1]}{_where(unknown[1], program)}. Write it with operators that ONNX "
            "has, or leave it out of `forward` and apply it after the engine."
        )
    if "specializ" in text or "Constraints violated" in text:
        return (
            "The graph fixes the batch size: `forward` turns it into a Python number somewhere "
            f"({_first_line(text)}). Use `x.shape[0]`, `flatten(1)` or -1 instead of a literal batch."
        )
    return f"torch could not export the module: {_first_line(str(chain[-1]))}{_at(user_line(text)[0])}"


def _where(operator: str, program: torch.export.ExportedProgram | None) -> str:
    """Where an operator, or one that decomposes into it, stands in the user's code."""
    for node in program.graph.nodes if program is not None else ():
        name = str(node.target).removesuffix(".default")
        if node.op == "call_function" and operator.startswith(name):
            return _at(user_line(node.meta.get("stack_trace") or "")[0])
    return ""


def _first_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0][:300] if lines else "no message"


def _at(frame: str) -> str:
    return f" at {frame}" if frame else ""


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
