"""The element type of every tensor in an ONNX graph."""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx
from onnx import TensorProto

ONNX_DOMAIN = ("", "ai.onnx")
"""The names of ONNX's own domain of operators."""
_KINDS = {
    "tensor(float)": TensorProto.FLOAT,
    "tensor(float16)": TensorProto.FLOAT16,
    "tensor(double)": TensorProto.DOUBLE,
    "tensor(bool)": TensorProto.BOOL,
    "tensor(string)": TensorProto.STRING,
    **{f"tensor({kind.lower()})": getattr(TensorProto, kind) for kind in ("INT8", "INT16", "INT32", "INT64")},
    **{f"tensor({kind.lower()})": getattr(TensorProto, kind) for kind in ("UINT8", "UINT16", "UINT32", "UINT64")},
}  # ONNX Runtime's names
_LARGE = 1024  # elements; smaller weights may be shapes or axes, which the inference reads


def element_types(model: onnx.ModelProto) -> dict[str, int]:
    """Infer the type of every tensor: tensor name -> one of ``onnx.TensorProto.DataType``.

    What the graph itself states counts where nothing can be inferred, for some converters leave types that were true
    before. Tensors that ONNX's inference cannot type, such as the outputs of an unknown operator, are missing or 0.

    Raises:
        onnx.shape_inference.InferenceError: If ONNX's inference fails.

    Example:
        >>> from onnx import parser
        >>> text = '<ir_version: 10, opset_import: ["" : 20]> g (float[2] x) => (bool[2] y) { s = Exp(x) y = IsNaN(s) }'
        >>> types = element_types(parser.parse_model(text))
        >>> {name: onnx.TensorProto.DataType.Name(kind) for name, kind in sorted(types.items())}
        {'s': 'FLOAT', 'x': 'FLOAT', 'y': 'BOOL'}
    """
    inferred = declared_types(infer_graph(model))
    types = declared_types(model.graph) | {name: kind for name, kind in inferred.items() if kind}
    unknown = [name for node in model.graph.node for name in node.output if name and not types.get(name)]
    if not unknown or not any(node.domain not in ONNX_DOMAIN for node in model.graph.node):
        return types
    return types | _types_by_onnxruntime(without_large_weights(model), unknown)


def infer_graph(model: onnx.ModelProto) -> onnx.GraphProto:
    """The graph with what ONNX infers of its tensors, without its large weights.

    Of what it states itself of tensors within, that of other domains' operators is believed.

    Raises:
        onnx.shape_inference.InferenceError: If ONNX's inference fails.
    """
    light = without_large_weights(model)
    foreign = {name for node in model.graph.node if node.domain not in ONNX_DOMAIN for name in node.output}
    del light.graph.value_info[:]
    light.graph.value_info.extend(value for value in model.graph.value_info if value.name in foreign)
    return onnx.shape_inference.infer_shapes(light).graph


def _types_by_onnxruntime(model: onnx.ModelProto, names: Sequence[str]) -> dict[str, int]:
    """What ONNX Runtime knows of tensors behind its own operators; nothing where it does not know these either."""
    import onnxruntime

    wider = onnx.ModelProto()
    wider.CopyFrom(model)
    there = {value.name for value in model.graph.output}
    wider.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in there)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(wider.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception:
        return {}
    kinds = {output.name: output.type for output in session.get_outputs()}
    return {name: _KINDS[kinds[name]] for name in names if kinds.get(name) in _KINDS}


def static_size(dim: onnx.TensorShapeProto.Dimension) -> int | None:
    """The size of a dimension; None for a dynamic one, whether it has a name, none, or -1 for a size."""
    return dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None


def declared_types(graph: onnx.GraphProto) -> dict[str, int]:
    """The types that a graph states itself, of inputs, outputs, annotated values and weights."""
    values = (*graph.input, *graph.value_info, *graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return types | {tensor.name: tensor.data_type for tensor in graph.initializer}


def without_large_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its large weights as inputs, which makes the inference quick and independent of their size."""
    graph = model.graph
    light = onnx.GraphProto(name=graph.name, node=graph.node, input=graph.input, output=graph.output)
    light.value_info.extend(graph.value_info)
    inputs = {value.name for value in graph.input}
    for tensor in graph.initializer:
        if math.prod(tensor.dims) <= _LARGE:
            light.initializer.append(tensor)
        elif tensor.name not in inputs:
            light.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return onnx.ModelProto(
        ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions, graph=light
    )
