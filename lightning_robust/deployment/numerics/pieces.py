"""A graph cut in pieces that run one after the other, so that some of its nodes can run apart from the rest."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import NamedTuple

import onnx

from lightning_robust.deployment.graph.types import without_large_weights
from lightning_robust.deployment.numerics.operators import MOVES


class Piece(NamedTuple):
    """A part of a graph.

    Args:
        model: The part, with inputs and outputs of its own under the names that they have in the graph.
        apart: Whether it holds the nodes that were to run apart; nodes that only move values may be in either.
    """

    model: onnx.ModelProto
    apart: bool


def cut(model: onnx.ModelProto, apart: Collection[str]) -> list[Piece]:
    """Cut a graph so that no piece holds both nodes of these names and others that compute.

    Args:
        model: The graph, its nodes in an order in which they can run.
        apart: Names of nodes. Without any the graph stays whole.

    Raises:
        ValueError: If the type of a tensor between two pieces is not known.

    Example:
        >>> from onnx import parser
        >>> text = "g (float[2] x) => (float[2] y) { [a] s = Exp(x) [b] t = Sin(x) [c] y = Mul(s, t) }"
        >>> model = parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> {text}')
        >>> [([node.name for node in piece.model.graph.node], piece.apart) for piece in cut(model, ["b"])]
        [(['a'], False), (['b'], True), (['c'], False)]
    """
    if not apart:
        return [Piece(model, apart=False)]
    runs = list(_runs(model.graph, apart))
    typed = onnx.shape_inference.infer_shapes(without_large_weights(model)).graph
    known = {value.name: value for value in (*typed.value_info, *typed.input, *typed.output)}
    needed = [value.name for value in model.graph.output]
    pieces = []
    for nodes, side in reversed(runs):
        part = _piece_of(model.graph, nodes, set(needed), known)
        needed += [value.name for value in part.input]
        whole = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
        whole.graph.CopyFrom(part)
        pieces.append(Piece(whole, side))
    return pieces[::-1]


def _runs(graph: onnx.GraphProto, apart: Collection[str]) -> Iterator[tuple[list[onnx.NodeProto], bool]]:
    """The nodes of each piece: as many of one side as can run, then of the other."""
    missing = set(_made(graph.node))
    waiting, side = list(graph.node), False
    while waiting:
        taken = _take(waiting, missing, apart, side)
        waiting = [node for node in waiting if not missing.isdisjoint(node.output)]
        if taken:
            yield taken, side
        side = not side


def _take(
    waiting: Iterable[onnx.NodeProto], missing: set[str], apart: Collection[str], side: bool
) -> list[onnx.NodeProto]:
    """The nodes of one side that can run without the other; what they make is missing no longer."""
    taken = []
    for node in waiting:
        on_side = node.op_type in MOVES or (node.name in apart) == side
        if on_side and missing.isdisjoint(_mentioned(node)):
            taken.append(node)
            missing.difference_update(node.output)
    return taken


def _piece_of(
    graph: onnx.GraphProto,
    nodes: list[onnx.NodeProto],
    needed: Collection[str],
    known: Mapping[str, onnx.ValueInfoProto],
) -> onnx.GraphProto:
    """The piece of these nodes; what the graph makes elsewhere or takes is an input of it."""
    read = dict.fromkeys(itertools.chain.from_iterable(map(_mentioned, nodes)))
    made = _made(nodes)
    there = {value.name for value in graph.input}.union(_made(graph.node)).difference(made)
    part = onnx.GraphProto(name=graph.name, node=nodes)
    part.initializer.extend(tensor for tensor in graph.initializer if tensor.name in read)
    part.input.extend(_typed(name, known) for name in read if name in there)
    part.output.extend(_typed(name, known) for name in made if name in needed)
    return part


def _made(nodes: Iterable[onnx.NodeProto]) -> list[str]:
    return [name for node in nodes for name in node.output if name]


def _typed(name: str, known: Mapping[str, onnx.ValueInfoProto]) -> onnx.ValueInfoProto:
    if name not in known:
        raise ValueError(
            f"Expected a graph in which the type of {name!r} is known, but it is that of no operator known."
        )
    return known[name]


def _mentioned(node: onnx.NodeProto) -> Iterator[str]:
    """What a node reads, also from within its bodies; their own tensors are among it."""
    yield from node.input
    for attribute in node.attribute:
        for body in (attribute.g, *attribute.graphs):
            yield from (value.name for value in body.output)
            for inner in body.node:
                yield from _mentioned(inner)
