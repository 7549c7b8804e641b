"""The nodes of a graph that only move values between others."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import onnx
from onnx import TensorProto

from lightning_robust.deployment.graph.types import declared_types
from lightning_robust.deployment.numerics.operators import MOVES


class MoveGraph:
    """The nodes of a graph that can be switched, and what moves values between them.

    Args:
        model: The graph.
        names: Names of the nodes that can be switched.
    """

    def __init__(self, model: onnx.ModelProto, names: Collection[str]) -> None:
        self._nodes = [node for node in model.graph.node if node.name in names]
        kinds = declared_types(model.graph)
        starts = (*model.graph.input, *model.graph.initializer)
        self._sources = {value.name for value in starts if kinds[value.name] == TensorProto.FLOAT}
        self._outputs = {value.name for value in model.graph.output}

    def with_moves(self, keep: Collection[str]) -> list[str]:
        """These nodes with the moves on the way from one of them to another or to an output, in the graph's order.

        So are those on the way from an input or a weight to one of them: those values are in fp32 to begin with.
        """
        keep = set(keep)
        after = _reached([(node, node.input, node.output) for node in self._nodes], keep, set())
        first = _reached([(node, node.input[:1], node.output) for node in self._nodes], set(), self._sources)
        up = [(node, node.output, node.input) for node in reversed(self._nodes)]
        between = (after & _reached(up, keep, self._outputs)) | (first & _reached(up, keep, set()))
        return [node.name for node in self._nodes if node.name in keep | between]


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
