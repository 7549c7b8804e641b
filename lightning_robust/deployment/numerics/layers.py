"""A graph whose nodes belong to layers: what keep lists name and sweeps switch, whatever the graph is rewritten to.

A layer is a node of the original graph together with what it is written out as, or is folded with.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray
from onnx import TensorProto

from lightning_robust.deployment.graph.types import ONNX_DOMAIN


class LayeredGraph:
    """A model that is being rewritten: its types, its names, and which node belongs to which layer.

    Args:
        model: The model.
        types: Tensor -> element type.
        opset: The operator set by which types are judged.

    Attributes:
        layers: Node -> the node of the original graph that its layer is named after, where that is another one.
        keep: Layers that compute in fp32.
    """

    def __init__(self, model: ir.Model, types: Mapping[str, int], opset: int) -> None:
        self.model, self.graph = model, model.graph
        self.types, self.opset = dict(types), opset
        self.layers: dict[str, str] = {}
        self.keep: frozenset[str] = frozenset()
        self._taken = _names_in(self.graph)

    @property
    def version(self) -> int:
        """The operator set that the graph itself states."""
        return next((v for domain, v in self.graph.opset_imports.items() if domain in ONNX_DOMAIN), 1)

    def keep_layers(self, names: Iterable[str]) -> None:
        """Keep the layers of these nodes in fp32."""
        self.keep = frozenset(self.layers.get(name, name) for name in names)

    def layer(self, node: ir.Node) -> str:
        """The name of a node's layer."""
        return self.layers.get(node.name or "", node.name or "")

    def is_kept(self, node: ir.Node) -> bool:
        """Whether a node belongs to a layer that computes in fp32."""
        return self.layer(node) in self.keep

    def is_float(self, value: ir.Value | None) -> bool:
        """Whether this is a tensor of fp32."""
        return value is not None and self.types.get(value.name or "") == TensorProto.FLOAT

    def constant(self, value: ir.Value | None) -> NDArray[Any] | None:
        """The numbers of a weight, also of one that passes through Identity; None for what is computed or fed."""
        while value is not None and not value.is_initializer():
            producer = value.producer()
            value = producer.inputs[0] if producer is not None and producer.op_type == "Identity" else None
        if value is None or value.is_graph_input() or value.const_value is None:
            return None
        return value.const_value.numpy()

    def free_name(self, name: str) -> str:
        """This name, or one like it that nothing in the graph has."""
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name

    def add_weight(self, name: str, values: NDArray[Any]) -> ir.Value:
        """A new initialiser under this name, or one like it that is free."""
        name = self.free_name(name)
        tensor = ir.tensor(values, name=name)
        value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(values.shape), const_value=tensor)
        self.graph.register_initializer(value)
        self.types[name] = tensor.dtype.value
        return value

    def shared_weight(self, name: str, values: NDArray[Any]) -> ir.Value:
        """The initialiser of this name, made where there is none."""
        return self.graph.initializers.get(name) or self.add_weight(name, values)

    def add_node(
        self,
        before: ir.Node,
        op: str,
        inputs: list[ir.Value | None],
        part: str,
        attributes: dict[str, Any] | None = None,
        kind: ir.DataType = ir.DataType.FLOAT,
    ) -> ir.Value:
        """A new node of the layer of `before`, in front of it; its one output, of type `kind`."""
        name = self.free_name(f"{before.name}/{part}")
        output = ir.Value(name=self.free_name(f"{name}_output"), type=ir.TensorType(kind))
        self.graph.insert_before(before, ir.node(op, inputs, attributes, outputs=[output], name=name))
        self.layers[name] = self.layer(before)
        self.types[output.name or ""] = kind.value
        return output

    def replace_node(
        self, node: ir.Node, op: str, inputs: list[ir.Value | None], attributes: dict[str, Any] | None = None
    ) -> None:
        """Put a node of another operator in the place of one, with its name and its one output."""
        new = ir.node(op, inputs, attributes, outputs=[ir.Value()], name=node.name)
        new.metadata_props.update(node.metadata_props)
        self.graph.insert_before(node, new)
        self.take_output(new.outputs[0], node)

    def take_output(self, value: ir.Value, node: ir.Node) -> None:
        """Remove a node, and let another value stand for its first output under its name."""
        old = node.outputs[0]
        old.replace_all_uses_with(value, replace_graph_outputs=True)
        self.graph.remove(node, safe=True)
        value.name, value.type, value.shape = old.name, old.type, old.shape

    def drop_unread_nodes(self, nodes: Iterable[ir.Node]) -> None:
        """Drop those of some nodes that nothing reads, the last first, and the initialisers that no node reads then."""
        some = set(nodes)
        for node in reversed(tuple(self.graph)):
            if node in some and not any(value.uses() or value.is_graph_output() for value in node.outputs):
                self.graph.remove(node, safe=True)
        self.drop_unread_weights()

    def drop_unread_weights(self) -> None:
        """Drop the initialisers that no node reads."""
        # not onnx_ir's RemoveUnusedNodesPass, which drops nodes and outputs that a trace has to report
        for name, value in tuple(self.graph.initializers.items()):
            if not (value.uses() or value.is_graph_output() or value.is_graph_input()):
                del self.graph.initializers[name]


def has_body(node: ir.Node) -> bool:
    """Whether a node holds graphs of its own, as If, Loop and Scan do."""
    return any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values())


def nodes_within(node: ir.Node) -> Iterator[ir.Node]:
    """The nodes of the graphs that a node holds, at any depth."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield from attribute.as_graph().all_nodes()


def _names_in(graph: ir.Graph) -> set[str]:
    """The names of all nodes and tensors, those in bodies included."""
    values = [*graph.inputs, *graph.initializers.values()]
    nodes = list(graph.all_nodes())
    for body in graph.subgraphs():
        values += [*body.inputs, *body.initializers.values()]
    values += [value for node in nodes for value in node.outputs]
    return {value.name for value in values if value.name} | {node.name for node in nodes if node.name}
