"""The nodes of a graph that only move values between others."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import onnx

from lightning_robust.deployment.numerics.operators import MOVES


class MoveGraph:
    """The nodes of a graph that can be switched, and what moves values between them.

    Args:
        model: The graph.
        names: Names of the nodes that can be switched.
    """

    def __init__(self, model: onnx.ModelProto, names: Collection[str]) -> None:
        self._nodes = [node for node in model.graph.node if node.name in names]
        self._outputs = {value.name for value in model.graph.output}

    def with_moves(self, keep: Collection[str]) -> list[str]:
        """These nodes with the moves on the way from one of them to another or to an output, in the graph's order."""
        keep = set(keep)
        after = _reached([(node, node.input, node.output) for node in self._nodes], keep, set())
        before = _reached([(node, node.output, node.input) for node in reversed(self._nodes)], keep, self._outputs)
        return [node.name for node in self._nodes if node.name in keep | (after & before)]


def _reached(
    steps: Sequence[tuple[onnx.NodeProto, Sequence[str], Sequence[str]]], keep: set[str], values: set[str]
) -> set[str]:
    """The moves that lead from a kept node, or from the given values, through moves alone."""
    reached, moves = set(values), set()
    for node, here, there in steps:
        is_move = node.op_type in MOVES and not reached.isdisjoint(here)
        if is_move and node.name not in keep:
            moves.add(node.name)
        if is_move or node.name in keep:
            reached.update(there)
    return moves
