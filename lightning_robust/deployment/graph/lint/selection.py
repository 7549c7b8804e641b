"""Rules on hard selection, where a rounding decides which value is read."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from lightning_robust.deployment.graph.lint.finding import Finding, LintGraph

_INDEXED = {"Gather", "GatherElements", "GatherND", "ScatterElements", "ScatterND"}
_PASSING_INDICES = {"Cast", "Unsqueeze", "Squeeze", "Reshape", "Expand", "Concat", "Add", "Mul"}
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
