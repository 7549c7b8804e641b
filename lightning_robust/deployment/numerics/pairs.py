"""QuantizeLinear and DequantizeLinear in front of the products of a graph, by ONNX Runtime's quantiser."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection, Iterator, Mapping

import numpy as np
import onnx
import onnx_ir as ir

from lightning_robust.deployment.numerics.calibration import Ranges
from lightning_robust.deployment.numerics.layers import LayeredGraph
from lightning_robust.deployment.numerics.operators import TENSOR_CORE


def two_operands(node: ir.Node) -> list[ir.Value]:
    """The two operands of a product."""
    return [value for value in node.inputs[:2] if value is not None]


def insert_pairs(graph: LayeredGraph, chosen: list[ir.Node], ranges: Ranges) -> onnx.ModelProto:
    """Quantise what some products read, in a graph that is changed.

    The quantiser would quantise a tensor for all who read it, and a weight along one axis for all. So it works on
    copies that nothing but the products reads, and that are taken out again.
    """
    copies = _read_copies(graph, chosen)
    limits = {str(copy.name): ranges[value.name or ""] for (value, _), copy in copies.items() if copy.producer()}
    whole = [str(copy.name) for (_, axis), copy in copies.items() if axis is None and copy.is_initializer()]
    graph.drop_unread_weights()
    names = [str(node.name) for node in chosen]
    quantised = ir.from_proto(_quantise_copies(ir.to_proto(graph.model), names, limits, whole))
    _restore_betas(quantised.graph, {node.name: node.attributes.get("beta") for node in chosen})
    _drop_identities(quantised.graph, limits)
    quantised.graph.sort()
    return ir.to_proto(quantised)


def _read_copies(graph: LayeredGraph, chosen: list[ir.Node]) -> dict[tuple[ir.Value, int | None], ir.Value]:
    """Let the chosen nodes read copies: one of each tensor, and of a weight one for each axis of channels."""
    copies: dict[tuple[ir.Value, int | None], ir.Value] = {}
    for node in chosen:
        for index, value in enumerate(two_operands(node)):
            key = value, _axis(graph, node, index)
            if key not in copies:
                copies[key] = _private_copy(graph, node, value)
            node.replace_input_with(index, copies[key])
    return copies


def _drop_identities(graph: ir.Graph, names: Collection[str]) -> None:
    for node in tuple(graph):
        source = node.inputs[0] if node.name in names else None
        if source is not None:
            node.outputs[0].replace_all_uses_with(source)
            graph.remove(node, safe=True)


def _restore_betas(graph: ir.Graph, betas: Mapping[str | None, ir.Attr | None]) -> None:
    """The factors of biases, which the quantiser sets to 1 as if it had scaled the biases."""
    for node in graph:
        beta = betas.get(node.name)
        if beta is not None:
            node.attributes["beta"] = beta


def _axis(graph: LayeredGraph, node: ir.Node, index: int) -> int | None:
    """The axis of a weight's output channels; None for what has one scale: all else, and a first operand."""
    weight = graph.constant(node.inputs[index])
    if weight is None or index == 0 or weight.ndim < 2:
        return None
    gemm = 0 if node.attributes.get_int("transB", 0) else 1
    return {"Conv": 0, "ConvTranspose": 1, "Gemm": gemm, "MatMul": weight.ndim - 1}[node.op_type]


def _private_copy(graph: LayeredGraph, node: ir.Node, value: ir.Value) -> ir.Value:
    """A weight of its own, or the output of an Identity of the same name."""
    name, weight = f"{value.name}__int8", graph.constant(value)
    if weight is not None:
        return graph.add_weight(name, weight)
    name = graph.free_name(name)
    copy = ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=value.shape)
    graph.graph.insert_before(node, ir.node("Identity", [value], outputs=[copy], name=name))
    return copy


def _quantise_copies(model: onnx.ModelProto, nodes: list[str], limits: Ranges, whole: list[str]) -> onnx.ModelProto:
    """Run ONNX Runtime's quantiser on some nodes.

    Args:
        model: The graph, in which the types of what the nodes read are written down.
        nodes: The nodes.
        limits: Computed tensor -> range.
        whole: The weights with one scale.
    """
    from onnxruntime.quantization import CalibrationMethod, QDQQuantizer, QuantType
    from onnxruntime.quantization.calibrate import TensorData, TensorsData  # ONNX Runtime 1.23 names them here alone

    known = model.metadata_props.add(key="onnx.infer", value="onnxruntime.quant")  # else it is saved and read again
    data = {name: TensorData(lowest=np.float32(-top), highest=np.float32(top)) for name, top in limits.items()}
    with _silence():
        quantised = QDQQuantizer(
            model,
            per_channel=True,
            reduce_range=False,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QInt8,
            tensors_range=TensorsData(CalibrationMethod.MinMax, data),
            nodes_to_quantize=nodes,
            nodes_to_exclude=[],
            op_types_to_quantize=sorted(TENSOR_CORE),
            extra_options={
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                "QuantizeBias": False,
                "OpTypesToExcludeOutputQuantization": sorted(TENSOR_CORE),
                "QDQOpTypePerChannelSupportToAxis": {"MatMul": -1},
                "TensorQuantOverrides": {name: [{"symmetric": True}] for name in whole},
            },
        ).quantize_model()
    quantised.metadata_props.remove(known)
    return quantised


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Drop the records that the quantiser writes to the root logger, which would get a handler by them."""
    root, handler = logging.getLogger(), logging.NullHandler()
    root.addHandler(handler)
    root.addFilter(_is_foreign)
    try:
        yield
    finally:
        root.removeFilter(_is_foreign)
        root.removeHandler(handler)


def _is_foreign(record: logging.LogRecord) -> bool:
    return "onnxruntime" not in record.pathname
