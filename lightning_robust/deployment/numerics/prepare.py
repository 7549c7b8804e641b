"""The graph as an engine's parser and builder rewrite it before they choose precisions.

The emulation and the conversion both start from it, so that they round the same numbers.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
import onnx.inliner
import onnx.version_converter
import onnx_ir as ir

from lightning_robust.deployment.graph.constants import read_constant
from lightning_robust.deployment.graph.types import ONNX_DOMAIN, element_types, without_large_weights
from lightning_robust.deployment.numerics.batchnorm import find_folds, fold_batchnorms
from lightning_robust.deployment.numerics.composites import write_out
from lightning_robust.deployment.numerics.layers import LayeredGraph
from lightning_robust.deployment.numerics.precisions import Precision
from lightning_robust.deployment.numerics.preconditions import check_graph, check_names

_BF16_OPSET = 22  # the first in which Conv, pooling, Resize's neighbours and GridSample take bfloat16
_WHERE_OPSET = 9  # the first with Where, without which values cannot be rounded but by casts
_RESIZE_IS_ASYMMETRIC = 10  # the last operator set in which Resize has no attribute for it


def prepare(
    model: onnx.ModelProto, precision: Precision, keep_fp32: Collection[str] = (), *, convert: bool = False
) -> LayeredGraph:
    """Bring a graph into the form in which precisions are chosen.

    For fp16 and bf16 BatchNormalizations are folded, constants become weights, and norms are written out unless the
    graph itself is for a parser, which does it in its own way. A layer of the result is named after a node of `model`;
    what is named there in a keep list or by an origin is found again. A BatchNormalization that is folded into the
    convolution before it belongs to the convolution's layer: naming either names both.

    Args:
        model: The fp32 model. It is not changed.
        precision: ``"fp16"``, ``"bf16"`` or ``"tf32"``; for TF32 nothing is rewritten.
        keep_fp32: Names of nodes of `model`, whose layers compute in fp32 and are not rewritten.
        convert: Whether the graph itself will hold tensors of `precision`, so that its operators have to know them.

    Raises:
        ValueError: If the graph cannot be followed, a name is unknown, or for bf16 the operator set cannot be raised.
    """
    check_graph(model.graph)
    check_names(model.graph, keep_fp32)
    graph = _read_graph(model, precision, convert=convert)
    _name_nodes(graph, {node.name for node in model.graph.node})
    if precision == "tf32":
        graph.keep_layers(keep_fp32)
        return graph
    _state_types(graph)
    _lift_constants(graph)
    folds = find_folds(graph)
    graph.keep_layers(keep_fp32)
    fold_batchnorms(graph, folds)
    if not convert:
        write_out(graph)
    graph.drop_unread_weights()
    return graph


def _read_graph(model: onnx.ModelProto, precision: Precision, *, convert: bool) -> LayeredGraph:
    """The model with its functions inlined, in an operator set that knows the precision if it is to hold it."""
    model = onnx.inliner.inline_local_functions(model) if model.functions else model
    opset = max((entry.version for entry in model.opset_import if entry.domain in ONNX_DOMAIN), default=1)
    holding = opset if precision == "fp16" else _BF16_OPSET
    if opset < (holding if convert else _WHERE_OPSET):
        given, opset = opset, max(holding, _WHERE_OPSET)
        model = raise_opset(model, given, opset)
    return LayeredGraph(ir.from_proto(model), element_types(model), max(opset, holding))


def _name_nodes(graph: LayeredGraph, named: Collection[str]) -> None:
    """Name what has no name; what the version converter put in belongs to the layer that it leads to."""
    layer = ""
    for index, node in reversed(list(enumerate(graph.graph))):
        if node.name:
            layer = node.name
        else:
            node.name = graph.free_name(f"{node.op_type}_{index}")
            if "" not in named and layer:
                graph.layers[node.name] = layer


def _state_types(graph: LayeredGraph) -> None:
    """Write down the types of tensors that only ONNX Runtime could tell, for who infers them again."""
    for node in graph.graph:
        for value in node.outputs:
            kind = graph.types.get(value.name or "")
            if node.domain not in ONNX_DOMAIN and value.type is None and kind:
                value.type = ir.TensorType(ir.DataType(kind))


def _lift_constants(graph: LayeredGraph) -> None:
    """Make weights of float Constant nodes and of what fills a tensor, so that they are rounded as weights are."""
    # onnx_ir's LiftConstantsToInitializersPass also lifts integers, and writes names into the caller's tensors
    for node in tuple(graph.graph):
        if not node.outputs or not graph.is_float(node.outputs[0]):
            continue
        if node.op_type == "ConstantOfShape":
            fill = node.attributes.get_tensor("value")
            value = np.zeros((), np.float32) if fill is None else fill.numpy().reshape(())
            graph.replace_node(node, "Expand", [graph.add_weight(f"{node.name}/value", value), node.inputs[0]])
        values = read_constant(node)
        if values is not None:
            graph.take_output(graph.add_weight(f"{node.name}/value", values), node)


def raise_opset(model: onnx.ModelProto, opset: int, wanted: int) -> onnx.ModelProto:
    """The model in a later opset, with its names and metadata; its large weights are left out on the way.

    Args:
        model: The model. It is not changed.
        opset: Its operator set.
        wanted: The later one.

    Raises:
        ValueError: If an operator of the model cannot be raised.
    """
    try:
        raised = onnx.version_converter.convert_version(without_large_weights(model), wanted)
    except Exception as error:
        raise ValueError(
            f"This precision needs opset {wanted}, but got a model of opset {opset} that cannot be raised "
            f"({error}). Export it with opset_version={wanted}"
        ) from error
    _restore(raised.graph, model.graph)
    for node in raised.graph.node:
        if node.op_type == "Resize" and opset <= _RESIZE_IS_ASYMMETRIC:  # the converter takes today's default for it
            fixed = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
            node.attribute.extend(onnx.helper.make_attribute(name, value) for name, value in fixed.items())
    return raised


def _restore(graph: onnx.GraphProto, original: onnx.GraphProto) -> None:
    """Put back the weights that were left out as inputs, and where each node comes from, which the converter drops."""
    del graph.input[:]
    graph.input.extend(original.input)
    there = {tensor.name for tensor in graph.initializer}
    graph.initializer.extend(tensor for tensor in original.initializer if tensor.name not in there)
    metadata = {node.name: node.metadata_props for node in original.node}
    for node in graph.node:
        if not node.metadata_props:
            node.metadata_props.extend(metadata.get(node.name, ()))
