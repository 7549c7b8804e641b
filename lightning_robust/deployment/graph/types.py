"""The element type of every tensor in an ONNX graph."""

from __future__ import annotations

import onnx


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
    return declared_types(onnx.shape_inference.infer_shapes(model).graph)


def declared_types(graph: onnx.GraphProto) -> dict[str, int]:
    """The types that a graph states itself, of inputs, outputs, annotated values and weights."""
    values = (*graph.input, *graph.value_info, *graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return types | {tensor.name: tensor.data_type for tensor in graph.initializer}
