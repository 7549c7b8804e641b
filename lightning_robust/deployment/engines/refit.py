"""The structure and the weights of an ONNX model, so that an engine is built once and refitted afterwards."""

from __future__ import annotations

import hashlib

import onnx
from onnx import TensorProto

_FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE})
_VALUES = ("raw_data", "float_data", "double_data", "int32_data")  # half precision may be in int32_data


def structure(model: bytes) -> bytes:
    """The model without the values of its floating initialisers: equal for two states of one network in training.

    Names, types and shapes of weights stay, and so do the values of integers, which engines compute shapes from.

    Args:
        model: A serialised ONNX model with its weights inside.

    Example:
        >>> import onnx.parser
        >>> def affine(weight, power):
        ...     head = '<ir_version: 10, opset_import: ["" : 20]> g (float[1] x) => (float[1] y)'
        ...     body = f"<float[1] w = {{{weight}}}> {{ a = Mul(x, w) y = Selu<alpha = {power}>(a) }}"
        ...     return onnx.parser.parse_model(head + body).SerializeToString()
        >>> structure(affine(1.0, 2.0)) == structure(affine(3.0, 2.0)), affine(1.0, 2.0) == affine(3.0, 2.0)
        (True, False)
        >>> structure(affine(1.0, 2.0)) == structure(affine(1.0, 4.0))
        False
    """
    bare = onnx.ModelProto.FromString(model)
    for tensor in _weights(bare.graph):
        for values in _VALUES:
            tensor.ClearField(values)
    return bare.SerializeToString(deterministic=True)


def weight_digests(model: bytes) -> dict[str, str]:
    """For each floating initialiser a hash of its values."""
    weights = _weights(onnx.ModelProto.FromString(model).graph)
    return {tensor.name: hashlib.sha256(tensor.SerializeToString(deterministic=True)).hexdigest() for tensor in weights}


def folded_weights(model: bytes) -> set[str]:
    """The weights of BatchNormalization nodes, which ONNX parsers fold and refit under other names."""
    nodes = onnx.ModelProto.FromString(model).graph.node
    return {name for node in nodes if node.op_type == "BatchNormalization" for name in node.input[1:]}


def _weights(graph: onnx.GraphProto) -> list[TensorProto]:
    return [tensor for tensor in graph.initializer if tensor.data_type in _FLOATS]
