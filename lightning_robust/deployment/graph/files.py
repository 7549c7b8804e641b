"""An ONNX file as a subject, without the PyTorch side: read, looked over, and given inputs.

ONNX Runtime in fp32 is the reference of such a subject, since nothing else is known of the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from onnx import AttributeProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

from lightning_robust.complaints import naming, one_line
from lightning_robust.deployment.engines import BuildSettings, Subject
from lightning_robust.deployment.engines.settings import DEFAULTS
from lightning_robust.deployment.graph.batches import Arrays, fixed_batches
from lightning_robust.deployment.graph.export import Exported
from lightning_robust.deployment.graph.inputs import check_inputs, input_shape, read_inputs
from lightning_robust.deployment.graph.names import name_nodes
from lightning_robust.deployment.graph.origin import read_origins
from lightning_robust.deployment.graph.session import Session
from lightning_robust.deployment.graph.types import declared_types
from lightning_robust.suggest import first_of

_WEIGHTS_ARE_NO_INPUTS = 4  # the IR version from which an initialiser need not be listed among the inputs
_CONSTANTS = {
    "value_float": np.float32,
    "value_floats": np.float32,
    "value_int": np.int64,
    "value_ints": np.int64,
    "value_string": object,
    "value_strings": object,
}
_LARGEST = 2**31 - 1  # bytes of a protobuf message
_HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
_BODIES = (AttributeProto.GRAPH, AttributeProto.GRAPHS)
_QUANTISED = frozenset({"QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger"})


class GraphModule(nn.Module):
    """An ONNX model that is called like a module; ONNX Runtime computes on the CPU.

    Args:
        model: The graph.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__()
        self._session = Session(model)
        self._names = [value.name for value in model.graph.input]

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The outputs of inputs in the order of the graph's."""
        return tuple(self._session.run({name: x.numpy() for name, x in zip(self._names, tensors, strict=True)}))


class GraphSubject(Subject):
    """A :class:`~lightning_robust.deployment.engines.Subject` that is an ONNX graph already; nothing is exported.

    A graph whose batch has a fixed size takes any number of samples, one batch after the other, with a note.

    Args:
        model: The graph, from :func:`load_graph`.
        inputs: Name -> samples, from :func:`make_inputs` or of the user's own.
        settings: How engines are built and run.

    Raises:
        ValueError: If an input of the graph is missing, or has another shape or type.
    """

    reference = "onnxruntime-fp32"

    def __init__(self, model: onnx.ModelProto, inputs: Arrays, settings: BuildSettings = DEFAULTS) -> None:
        check_inputs(model, inputs)
        names = [value.name for value in model.graph.input]
        fixed = fixed_batches(model.graph)
        example = tuple(torch.from_numpy(np.require(inputs[name], requirements="C")) for name in names)
        super().__init__(GraphModule(model), example, settings)
        outputs = tuple(value.name for value in model.graph.output)
        size = fixed.get(names[0])
        taken = "one sample" if size == 1 else f"{size} samples"
        note = f"The graph takes {taken} at a time, and ran on one batch after the other."
        notes = () if size in (None, self.samples) else (note,)
        self._exported = Exported(model, read_origins(model), tuple(names), outputs, size, notes)


def load_graph(path: str | Path) -> onnx.ModelProto:
    """Read an ONNX file with its external data, in the form that sweeps and keep lists need.

    Every node has a name of its own, functions are inlined, Constant nodes have become initialisers, and initialisers
    listed among the inputs are no inputs.

    Raises:
        FileNotFoundError: If the file, or one with its weights, is not there.
        ValueError: If it is no valid ONNX.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"Expected an ONNX file at {path}, but there is no such file.")
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:
        raise ValueError(f"Expected an ONNX model at {path}, but it cannot be read ({error}).") from error
    _check_size(path, model)
    try:
        onnx.external_data_helper.load_external_data_for_model(model, str(path.parent))
    except (OSError, onnx.checker.ValidationError) as error:
        raise FileNotFoundError(
            f"Expected the weights of {path} beside it, but got: {error}. Copy its .data file into the same folder."
        ) from error
    constants = [attribute.t for node in model.graph.node for attribute in node.attribute if attribute.HasField("t")]
    for tensor in (*model.graph.initializer, *constants):
        del tensor.external_data[:]
        tensor.ClearField("data_location")
    model = _in_order(model)
    try:
        onnx.checker.check_model(_with_shapes(model))
    except onnx.checker.ValidationError as error:
        raise ValueError(f"Expected a valid ONNX model at {path}, but {one_line(error).rstrip('.')}.") from error
    return _tidy(onnx.inliner.inline_local_functions(model) if model.functions else model)


def _with_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model as the checker asks for it, every output with a shape, which runtimes do without; any shape will do."""
    if all(value.type.tensor_type.HasField("shape") for value in model.graph.output):
        return model
    checked = onnx.ModelProto()
    checked.CopyFrom(model)
    for value in checked.graph.output:
        value.type.tensor_type.shape.SetInParent()
    return checked


def _in_order(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with each node after those that it reads, which engines do not ask for and some converters forget."""
    made = {name for node in model.graph.node for name in node.output}
    seen: set[str] = set()
    for node in model.graph.node:
        if not made.intersection(node.input) <= seen:
            break
        seen.update(node.output)
    else:
        return model
    ordered = ir.from_proto(model)
    try:
        ordered.graph.sort()
    except ValueError:
        return model  # a circle, of which the checker says so
    return ir.to_proto(ordered)


def _check_size(path: Path, model: onnx.ModelProto) -> None:
    """Refuse weights beyond what one ONNX message can hold, before they are read."""
    infos = [onnx.external_data_helper.ExternalDataInfo(t) for t in model.graph.initializer if t.external_data]
    files = {path, *(path.parent / info.location for info in infos)}
    size = sum(file.stat().st_size for file in files if file.is_file())
    if size > _LARGEST:
        raise ValueError(
            f"Expected an ONNX model of at most 2 GB with its weights, but {path} has {size / 1e9:.1f} GB: larger ones "
            "cannot be rewritten in memory. Measure a part of the model, such as its head, as a file of its own."
        )


def _tidy(model: onnx.ModelProto) -> onnx.ModelProto:
    graph = model.graph
    model.ir_version = max(model.ir_version, _WEIGHTS_ARE_NO_INPUTS)
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    constants = {node.output[0]: tensor for node in graph.node if (tensor := _constant(node)) is not None}
    nodes = [node for node in graph.node if not (node.op_type == "Constant" and node.output[0] in constants)]
    for name, tensor in constants.items():
        tensor.name = name
    graph.initializer.extend(constants.values())
    name_nodes(nodes)
    del graph.input[:], graph.node[:]
    graph.input.extend(inputs)
    graph.node.extend(nodes)
    return model


def _constant(node: onnx.NodeProto) -> TensorProto | None:
    """The tensor of a Constant node, whichever attribute holds it; None for a sparse one, and for other nodes."""
    if node.op_type != "Constant" or not node.attribute:
        return None
    attribute = node.attribute[0]
    if attribute.name == "value":
        tensor = TensorProto()
        tensor.CopyFrom(attribute.t)
        return tensor
    kind = _CONSTANTS.get(attribute.name)
    return None if kind is None else numpy_helper.from_array(np.array(helper.get_attribute_value(attribute), kind))


def remarks(model: onnx.ModelProto) -> list[str]:
    """What a reader has to know before believing the numbers of this graph."""
    lines = []
    if set(_HALVES) & set(declared_types(model.graph).values()):
        lines.append(
            "The graph is in half precision already. ONNX Runtime's CPU kernels compute it in fp32, so that its "
            "distance to an engine is not seen here; measure the fp32 graph that it was made from, and this file "
            "beside it with --deployed."
        )
    quantised = sorted({node.op_type for node in model.graph.node} & _QUANTISED)
    if quantised:
        lines.append(
            f"The graph is quantised ({', '.join(quantised)}): what is measured is the precision of the rest, and not "
            "what quantisation itself costs."
        )
    bodies = [node for node in model.graph.node if any(a.type in _BODIES for a in node.attribute)]
    if bodies:
        named = ", ".join(f"{node.name} ({node.op_type})" for node in bodies)
        lines.append(
            f"The graph branches or loops: {named}. What is in there computes in fp32 in every precision that is "
            "measured; all else is measured."
        )
    return lines


def make_inputs(
    model: onnx.ModelProto, samples: int, shapes: Mapping[str, Sequence[int]] | None = None, seed: int = 0
) -> dict[str, NDArray[np.generic]]:
    """Uniform noise in [0, 1) for every floating input, any bytes for bytes, zeros for wider integers and bools.

    Shapes fit, values mean nothing.

    Args:
        model: The graph.
        samples: How many, where the first dimension is dynamic or the size of one batch.
        shapes: Input name -> whole shape, for inputs whose other dimensions are dynamic too.
        seed: Of the noise.

    Raises:
        ValueError: If a dimension other than the first is dynamic and `shapes` does not say it.
    """
    generator = np.random.default_rng(seed)
    made: dict[str, NDArray[np.generic]] = {}
    fixed = fixed_batches(model.graph)
    for value in model.graph.input:
        usual = [samples, *input_shape(value, None)[1:]] if value.name in fixed else input_shape(value, samples)
        wanted = list((shapes or {}).get(value.name) or usual)
        shape = [size for size in wanted if isinstance(size, int)]
        if len(shape) < len(wanted):
            raise ValueError(
                f"Expected the size of every dimension but the first, but input {value.name!r} has shape "
                f"({', '.join(map(str, wanted))}). "
                f"Give real inputs, or the shape: --shapes='{{\"{value.name}\": [1, 3, 224, 224]}}'."
            )
        dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        made[value.name] = _noise(generator, shape, dtype)
    return made


def read_or_make_inputs(
    model: onnx.ModelProto, path: str | None, samples: int, shapes: Mapping[str, Sequence[int]] | None = None
) -> tuple[dict[str, NDArray[np.generic]], list[str]]:
    """Inputs from a file, or made ones without one, and what a reader has to know of them.

    Args:
        model: The graph.
        path: Of the file; None makes them.
        samples: How many are made.
        shapes: Of :func:`make_inputs`.

    Raises:
        ValueError: If they do not fit the graph; names the file.
    """
    with naming(path):
        arrays = make_inputs(model, samples, shapes) if path is None else read_inputs(path)
        check_inputs(model, arrays)
    return arrays, [_say_made(arrays)] if path is None else []


def _say_made(arrays: Mapping[str, NDArray[np.generic]]) -> str:
    zeros = [name for name, array in arrays.items() if not array.any()]
    told = f" ({first_of(zeros)} zeros)" if zeros else ""
    return f"The inputs are noise{told}: distances on real inputs may be quite different. Give --inputs."


def _noise(generator: np.random.Generator, shape: Sequence[int], dtype: np.dtype[Any]) -> NDArray[np.generic]:
    if np.issubdtype(dtype, np.floating):
        return generator.random(shape).astype(dtype)
    if dtype in (np.uint8, np.int8):
        return generator.integers(0, 256, shape).astype(np.uint8).view(dtype)
    return np.zeros(shape, dtype)
