"""The element type of every tensor in an ONNX graph."""

from __future__ import annotations

import math

import onnx

_LARGE = 1024  # elements; smaller weights may be shapes or axes, which the inference reads


def element_types(model: onnx.ModelProto) -> dict[str, int]:
    """Infer the type of every tensor: tensor name -> one of ``onnx.TensorProto.DataType``.

    Tensors that ONNX's inference cannot type, such as the outputs of an unknown operator, are missing or 0.

    Raises:
        onnx.shape_inference.InferenceError: If ONNX's inference fails.

    Example:
        >>> from onnx import parser
        >>> text = '<ir_version: 10, opset_import: ["" : 20]> g (float[2] x) => (bool[2] y) { s = Exp(x) y = IsNaN(s) }'
        >>> types = element_types(parser.parse_model(text))
        >>> {name: onnx.TensorProto.DataType.Name(kind) for name, kind in sorted(types.items())}
        {'s': 'FLOAT', 'x': 'FLOAT', 'y': 'BOOL'}
    """
    return declared_types(onnx.shape_inference.infer_shapes(_without_large_weights(model)).graph)


def declared_types(graph: onnx.GraphProto) -> dict[str, int]:
    """The types that a graph states itself, of inputs, outputs, annotated values and weights."""
    values = (*graph.input, *graph.value_info, *graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return types | {tensor.name: tensor.data_type for tensor in graph.initializer}


def _without_large_weights(model: onnx.ModelProto) -> onnx.ModelProto:
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
