"""Rules on hard selection, where a rounding decides which value is read."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from lightning_robust.deployment.graph.lint.finding import Finding, LintGraph, constant

_INDEXED = {"Gather", "GatherElements", "GatherND", "ScatterElements", "ScatterND"}
_PASSING_INDICES = {"Cast", "Unsqueeze", "Squeeze", "Reshape", "Expand", "Concat", "Add", "Mul"}
_TOPK_MAX = 3840
_JUMPS = (
    "Two scores that are nearly equal change places by rounding: the selected value jumps.",
    "Weigh neighbours (a soft-argmax around the best), or select on the deployed side, in fp32.",
)


def check_selection(graph: LintGraph) -> Iterator[Finding]:
    """A9: non-maximum suppression, and values gathered at the indices of ArgMax, ArgMin or TopK."""
    for node in graph.nodes("NonMaxSuppression"):
        yield graph.finding("A9", node, "non-maximum suppression in the graph", *_JUMPS)
    for node in graph.nodes("ArgMax", "ArgMin", "TopK"):
        reader = _indexed_reader(node.outputs[-1])
        if reader is not None:
            yield graph.finding("A9", node, f"{node.op_type} selects what {reader.op_type} reads", *_JUMPS)


def check_topk(graph: LintGraph) -> Iterator[Finding]:
    """A15: a selection of more than TensorRT's layer can hold."""
    for node in graph.nodes("TopK"):
        count = constant(node.inputs[1]) if len(node.inputs) > 1 else None
        most = node.attributes.get_int("k", 0) if count is None else int(count.max(initial=0))
        if most > _TOPK_MAX:
            yield graph.finding(
                "A15",
                node,
                f"TopK of {most}",
                f"TensorRT parses the node and then refuses to build it: k is at most {_TOPK_MAX}.",
                f"Take at most {_TOPK_MAX}, or sort on the deployed side.",
            )


def _indexed_reader(indices: ir.Value) -> ir.Node | None:
    """The node that reads or writes elsewhere at these indices, passed on or changed as they may be."""
    reached, front = {indices}, [indices]
    while front:
        value = front.pop()
        for node, place in value.uses():
            if node.op_type in _INDEXED and place:
                return node
            if node.op_type in _PASSING_INDICES:
                front += [output for output in node.outputs if output not in reached]
                reached.update(node.outputs)
    return None
