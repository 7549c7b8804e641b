"""What OpenVINO is given of an int8 graph: the same integers, written so that it computes them rightly."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx
from onnx import numpy_helper

from lightning_robust.deployment.numerics.operators import QDQ

_HALF_RANGE = 128


def with_unsigned_activations(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """The graph with unsigned activations before convolutions, and how many of them it joins from several tensors.

    ``[-128, 127]`` around a zero point and ``[0, 255]`` around one that is 128 larger are the same grid, bit for bit.
    OpenVINO (2026.4) writes the first as the second itself, and loses the zero point where a Concat comes before the
    quantisation: up to half of the outputs of such a convolution is then wrong.

    Args:
        model: With QuantizeLinear and DequantizeLinear.

    Example:
        >>> from onnx import parser
        >>> text = '''g (float[1, 2, 4, 4] x) => (float[1, 2, 4, 4] y)
        ...     <float s = {0.1}, int8 z = {0}, float[2, 2, 1, 1] w = {1, 2, 3, 4}>
        ...     { q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) y = Conv(d, w) }'''
        >>> given, joined = with_unsigned_activations(
        ...     parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> {text}')
        ... )
        >>> (
        ...     [int(numpy_helper.to_array(tensor)) for tensor in given.graph.initializer if "unsigned" in tensor.name],
        ...     joined,
        ... )
        ([128], 0)
    """
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    graph = changed.graph
    zeros = {
        tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer if tensor.data_type == tensor.INT8
    }
    readers = _readers(graph.node)
    concatenated = {name for node in graph.node if node.op_type == "Concat" for name in node.output}
    joined = 0
    for pair in _signed_pairs(graph.node, readers, zeros):
        name = f"{pair[0].output[0]}_unsigned_zero_point"
        zero = zeros[pair[0].input[2]].astype(np.int16) + _HALF_RANGE
        graph.initializer.append(numpy_helper.from_array(zero.astype(np.uint8), name))
        for node in pair:
            node.input[2] = name
        joined += pair[0].input[0] in concatenated
    del graph.value_info[:]  # which states the types of before
    return changed, joined


def _readers(nodes: Sequence[onnx.NodeProto]) -> dict[str, list[onnx.NodeProto]]:
    """Tensor -> the nodes that read it."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in nodes:
        for name in set(node.input):
            readers.setdefault(name, []).append(node)
    return readers


def _signed_pairs(
    nodes: Sequence[onnx.NodeProto], readers: Mapping[str, list[onnx.NodeProto]], zeros: Mapping[str, object]
) -> Iterator[list[onnx.NodeProto]]:
    """Each quantisation with an int8 zero point and its dequantisations, if a convolution reads one of these."""
    for node in nodes:
        pair = [node, *readers.get(node.output[0], [])]
        ends = itertools.chain.from_iterable(readers.get(name, []) for each in pair[1:] for name in each.output)
        convolves = any(end.op_type == "Conv" for end in ends)
        if convolves and node.op_type == QDQ[0] and _share_zero_point(pair, zeros):
            yield pair


def _share_zero_point(pair: Sequence[onnx.NodeProto], zeros: Mapping[str, object]) -> bool:
    """Whether a quantisation is followed by dequantisations alone, all around the same zero point in int8."""
    points = {node.input[2] if len(node.input) > len(QDQ) else "" for node in pair}
    return all(node.op_type == QDQ[1] for node in pair[1:]) and len(points) == 1 and points <= zeros.keys()
