"""A graph that states half types itself, such as a converted file: which precision it is of, and what it computes.

``emulate.py`` rounds an fp32 graph as a plan says; here the graph's own types say what is rounded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx
import onnx_ir as ir
from onnx import TensorProto

from lightning_robust.deployment.graph.types import ONNX_DOMAIN, declared_types, element_types, infer_graph
from lightning_robust.deployment.numerics.composites import write_out
from lightning_robust.deployment.numerics.emulate import to_model
from lightning_robust.deployment.numerics.layers import LayeredGraph, has_body
from lightning_robust.deployment.numerics.operators import MOVES
from lightning_robust.deployment.numerics.precisions import Half
from lightning_robust.deployment.numerics.quantise import is_quantised
from lightning_robust.deployment.numerics.rounding import HALF_TYPES, round_value

_HALVES: dict[int, Half] = {TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}
_TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype")
_CONSTANTS = frozenset({"Constant", "ConstantOfShape"})


def stated_precision(model: onnx.ModelProto) -> str:
    """What a graph's own types and operators say of its precision.

    Returns:
        ``"int8"`` for a quantised graph, else ``"fp16"`` or ``"bf16"`` if any tensor is, else ``"fp32"``.

    Example:
        >>> from onnx import parser
        >>> text = "g (float[2] x) => (float[2] y) { h = Cast<to = 10>(x) r = Relu(h) y = Cast<to = 1>(r) }"
        >>> stated_precision(parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> {text}'))
        'fp16'
    """
    if is_quantised(model):
        return "int8"
    return next(iter(stated_halves(model)), "fp32")


def stated_halves(model: onnx.ModelProto) -> list[Half]:
    """The half precisions that any tensor of a graph has, as the graph itself says."""
    kinds = {*declared_types(model.graph).values(), *_cast_types(model.graph)}
    return [precision for kind, precision in _HALVES.items() if kind in kinds]


def emulate_typed(model: onnx.ModelProto) -> onnx.ModelProto:
    """Build the fp32 graph that computes what an engine computes of a graph with half types, with sums in fp32.

    ONNX Runtime's CPU kernels compute such a graph in fp32 and drop the casts between them, so that no value in it is
    rounded. Here every tensor that the graph states as half is held in fp32 and rounded where it is computed; so are
    its half inputs. Weights are as they are stored. Norms are written out as for :func:`~.emulate.emulate`.

    Args:
        model: A graph with fp16 or bf16 in it. It is not changed.

    Returns:
        A new graph with inputs and outputs of the same names, fp32 where they were half.

    Example:
        >>> import numpy as np
        >>> from lightning_robust.deployment.graph.session import Session
        >>> text = "g (float16[1] x) => (float16[1] y) { s = Mul(x, x) y = Sqrt(s) }"
        >>> from onnx import parser
        >>> model = parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> {text}')
        >>> Session(emulate_typed(model)).run({"x": np.array([300], np.float32)})  # 90000 is beyond fp16
        [tensor([inf])]
    """
    return _Widening(model).build()


class _Widening:
    """One pass that holds the half tensors of a graph in fp32, and rounds them where they are computed."""

    def __init__(self, model: onnx.ModelProto) -> None:
        types = element_types(model) | _types_in_bodies(model)
        opset = max((entry.version for entry in model.opset_import if entry.domain in ONNX_DOMAIN), default=1)
        self._half = {name: _HALVES[kind] for name, kind in types.items() if kind in _HALVES}
        self._wide = {name for name, kind in types.items() if kind == TensorProto.FLOAT}
        self._usual: Half = next(iter(self._half.values()), "fp16")
        held = types | dict.fromkeys(self._half, int(TensorProto.FLOAT))
        self._layered = LayeredGraph(ir.from_proto(model), held, opset)
        self._graph = self._layered.graph

    def build(self) -> onnx.ModelProto:
        """Widen every tensor, write out norms of half precision, and round."""
        for graph in (self._graph, *self._graph.subgraphs()):
            self._widen(graph)
        nodes = [node for node in self._graph if node.outputs and node.outputs[0].name in self._wide]
        self._layered.keep_layers(node.name or "" for node in nodes)
        write_out(self._layered)
        for value in self._graph.inputs:
            self._round_input(value)
        for node in tuple(self._graph.all_nodes()):
            self._round_outputs(node)
        return to_model(self._layered.model)

    def _widen(self, graph: ir.Graph) -> None:
        """Make everything fp32 that is half."""
        for value in tuple(graph.initializers.values()):
            if self._is_half(value) and value.const_value is not None:
                value.const_value = _wide_tensor(value.const_value)
        values = [*graph.inputs, *graph.initializers.values(), *(value for node in graph for value in node.outputs)]
        for value in values:
            if self._is_half(value):
                value.type = ir.TensorType(ir.DataType.FLOAT)
        for node in graph:
            _widen_attributes(node)

    def _round_input(self, value: ir.Value) -> None:
        """Round an input that is given in fp32 and was half; who reads it reads what is rounded."""
        if not self._is_half(value) or not value.uses():
            return
        rounded = ir.Value(name=self._layered.free_name(f"{value.name}__rounded"), type=value.type, shape=value.shape)
        value.replace_all_uses_with(rounded)
        self._graph.insert_before(self._graph[0], round_value(value, rounded, self._half[str(value.name)]))

    def _round_outputs(self, node: ir.Node) -> None:
        """Round what a node computes, unless it only moves what has been rounded."""
        graph = node.graph
        if graph is None or node.op_type in MOVES | _CONSTANTS or has_body(node):
            return
        for value in tuple(node.outputs):
            if value.name in self._wide or not self._layered.is_float(value):
                continue
            rounded = ir.Value(name=value.name, type=value.type, shape=value.shape)
            value.replace_all_uses_with(rounded, replace_graph_outputs=True)
            value.name = self._layered.free_name(f"{rounded.name}__exact")
            graph.insert_after(node, round_value(value, rounded, self._half.get(str(rounded.name), self._usual)))

    def _is_half(self, value: ir.Value) -> bool:
        return value.name in self._half


def _widen_attributes(node: ir.Node) -> None:
    """State fp32 where an attribute states half: the type of a Cast, the numbers of a Constant."""
    for name, attribute in tuple(node.attributes.items()):
        if attribute.type == ir.AttributeType.INT and name in _TYPE_ATTRIBUTES and attribute.as_int() in _HALVES:
            node.attributes[name] = ir.AttrInt64(name, ir.DataType.FLOAT.value)
        if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype in HALF_TYPES.values():
            node.attributes[name] = ir.AttrTensor(name, _wide_tensor(attribute.as_tensor()))


def _wide_tensor(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return ir.tensor(tensor.numpy().astype("float32"), name=tensor.name)


def _cast_types(graph: onnx.GraphProto) -> Iterator[int]:
    for node in graph.node:
        yield from (attribute.i for attribute in node.attribute if attribute.name in _TYPE_ATTRIBUTES)


def _types_in_bodies(model: onnx.ModelProto) -> dict[str, int]:
    """Tensor -> element type, of the graphs within If, Loop and Scan."""
    nodes = model.graph.node
    if not any(_bodies(nodes)):
        return {}
    bodies = _bodies(infer_graph(model).node)
    return {name: kind for body in bodies for name, kind in declared_types(body).items()}


def _bodies(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.GraphProto]:
    """The graphs within nodes, at any depth."""
    for node in nodes:
        for attribute in node.attribute:
            for body in [attribute.g] * attribute.HasField("g") + list(attribute.graphs):
                yield body
                yield from _bodies(body.node)
