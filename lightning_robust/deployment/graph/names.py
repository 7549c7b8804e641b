"""Names of a graph's nodes: what switches, keep lists and reports go by."""

from __future__ import annotations

from collections.abc import Sequence

import onnx


def with_names(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model itself, or, if nodes lack a name or share one, a copy in which each has its own.

    Example:
        >>> from onnx import parser
        >>> text = '<ir_version: 10, opset_import: ["" : 20]> g (float[2] x) => (float[2] y) { a = Exp(x) y = Abs(a) }'
        >>> [node.name for node in with_names(parser.parse_model(text)).graph.node]
        ['Exp_0', 'Abs_1']
    """
    names = {node.name for node in model.graph.node}
    if "" not in names and len(names) == len(model.graph.node):
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    name_nodes(copy.graph.node)
    return copy


def name_nodes(nodes: Sequence[onnx.NodeProto]) -> None:
    """Give names to nodes that have none, or that of an earlier one."""
    names = {node.name for node in nodes}
    seen: set[str] = set()
    for index, node in enumerate(nodes):
        if not node.name or node.name in seen:
            name = f"{node.name or node.op_type}_{index}"
            while name in names:
                name += "_"
            node.name = name
        names.add(node.name)
        seen.add(node.name)
