"""Which tensors of a graph are half: one plan, read by the emulation and by the conversion."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable

import onnx
import onnx_ir as ir

from lightning_robust.deployment.graph.types import ONNX_DOMAIN
from lightning_robust.deployment.numerics.layers import LayeredGraph, has_body
from lightning_robust.deployment.numerics.operators import ALWAYS_FP32, FP32_INPUTS, FP32_OUTPUTS, MOVES
from lightning_robust.deployment.numerics.precisions import Half, OutOfRange
from lightning_robust.deployment.numerics.rounding import is_beyond

_SCHEMA_TYPES = {"fp16": "tensor(float16)", "bf16": "tensor(bfloat16)"}
_CONTAINERS = ("Sequence", "Optional")  # in the names of operators on what is no tensor
_SUCCESSORS = {"Upsample": "Resize"}  # of operators that are no more in the operator set that types are judged by
_INTEGER_SUMS = {"ConvInteger", "MatMulInteger"}
_Flags = tuple[bool, ...]


class Plan:
    """Decides for each node which inputs it reads, and which outputs it writes, in half.

    What stays fp32: the nodes of kept layers; operators of other domains; those with bodies (If, Loop, Scan) and all
    that the bodies read; quantisation, and what makes floats of integer sums; the scales and the region of a resize;
    what ONNX allows no half for. An integer on its way to a node in fp32 does not pass through half.

    Args:
        graph: From :func:`~.prepare.prepare`.
        dtype: The half type.
        out_of_range: With ``"keep"``, nodes that read a weight beyond the range of `dtype` stay fp32.

    Attributes:
        reads: Node -> for each of its inputs, whether it is read in half. Nodes within bodies are not in it.
        writes: Node -> for each of its outputs, whether it is computed in half.
        beyond: The nodes that stay fp32 for the sake of a weight.

    Raises:
        ValueError: For an operator that ONNX does not know.
    """

    def __init__(self, graph: LayeredGraph, dtype: Half, out_of_range: OutOfRange) -> None:
        self._graph, self._dtype, self._out_of_range = graph, dtype, out_of_range
        self._islands = island_notes(graph)
        self._sums = _dequantised_sums(graph)
        self.reads: dict[ir.Node, _Flags] = {}
        self.writes: dict[ir.Node, _Flags] = {}
        self.beyond = _readers_beyond(graph, dtype) if out_of_range == "keep" else {}
        for node in reversed(tuple(graph.graph)):  # backwards, for a Cast asks who reads it
            low = not self._stays_fp32(node)
            inputs, outputs = _allowed(node, graph.opset, dtype) if low else ((), ())
            self.reads[node] = _flags(inputs, len(node.inputs))
            self.writes[node] = _flags(outputs, len(node.outputs))

    def readers(self, value: ir.Value, *, half: bool) -> list[tuple[ir.Node, int]]:
        """The nodes, and the places among their inputs, that read the value in half, or in fp32."""
        # a node within a body is not in the plan: it reads fp32
        return [
            (node, index) for node, index in value.uses() if (node in self.reads and self.reads[node][index]) == half
        ]

    def is_read_fp32(self, value: ir.Value) -> bool:
        """Whether anything reads the value in fp32: a node, a body, or an output of the graph."""
        return value.is_graph_output() or bool(self.readers(value, half=False))

    def is_written_half(self, value: ir.Value) -> bool:
        """Whether the value is computed in half."""
        producer = value.producer()
        return producer is not None and self.writes[producer][value.index() or 0]

    def notes(self, beyond: Collection[str]) -> tuple[str, ...]:
        """Lines for a report: what became of weights beyond the range, and which nodes were not looked into.

        Args:
            beyond: The weights that were read in half and are beyond its range.
        """
        notes = list(self._islands)
        weights = f"{len(beyond)} weight{'s' * (len(beyond) != 1)}"
        if beyond and self._out_of_range == "clamp":
            notes.append(f"{weights} clamped to {self._dtype}'s range")
        elif beyond:
            notes.append(f"{weights} beyond {self._dtype}'s range became infinite")
        if self.beyond:
            names = ", ".join(str(node.name) for node in self.beyond)
            notes.append(f"kept in fp32 for weights beyond {self._dtype}'s range: {names}")
        return tuple(notes)

    def _stays_fp32(self, node: ir.Node) -> bool:
        if self._graph.is_kept(node) or node in self.beyond or node in self._sums:
            return True
        if node.op_type == "Cast" and self._graph.is_float(node.outputs[0]):
            return self.is_read_fp32(node.outputs[0])
        return node.domain not in ONNX_DOMAIN or node.op_type in ALWAYS_FP32 or is_of_containers(node) or has_body(node)


def _dequantised_sums(graph: LayeredGraph) -> set[ir.Node]:
    """The casts of integer sums, which exceed half's range, their products with scales, and the products of scales."""
    casts = _readers_of((node for node in graph.graph if node.op_type in _INTEGER_SUMS), "Cast")
    products = _readers_of(casts, "Mul")
    return casts | products | {node for each in products for node in each.predecessors() if node.op_type == "Mul"}


def _readers_of(nodes: Iterable[ir.Node], operator: str) -> set[ir.Node]:
    return {reader for node in nodes for reader in node.successors() if reader.op_type == operator}


def island_notes(graph: LayeredGraph) -> list[str]:
    """Lines for a report on the nodes with bodies, which nothing looks into."""
    islands = [node for node in graph.graph if has_body(node)]
    return [f"{node.op_type} {node.name!r} computes in fp32, with all that is in it" for node in islands]


def is_of_containers(node: ir.Node) -> bool:
    """Whether the operator makes or reads a sequence or an optional value."""
    return any(kind in node.op_type for kind in _CONTAINERS)


def _flags(allowed: _Flags, count: int) -> _Flags:
    """As many flags; the last formal input or output may be variadic."""
    return tuple(bool(allowed) and allowed[min(index, len(allowed) - 1)] for index in range(count))


def _allowed(node: ir.Node, opset: int, dtype: Half) -> tuple[_Flags, _Flags]:
    """Which formal inputs and outputs may be half by ONNX's definition of the operator."""
    try:
        return _half_formals(node.op_type, opset, dtype)
    except onnx.defs.SchemaError as error:
        raise ValueError(f"Node {node.name!r} is of type {node.op_type}, unknown to opset {opset}") from error


@functools.cache
def _half_formals(op: str, opset: int, dtype: Half) -> tuple[_Flags, _Flags]:
    schema = onnx.defs.get_schema(op, opset, "")
    if schema.deprecated and op in _SUCCESSORS:
        schema = onnx.defs.get_schema(_SUCCESSORS[op], opset, "")
    half = _SCHEMA_TYPES[dtype]
    kinds = {rule.type_param_str for rule in schema.type_constraints if half in rule.allowed_type_strs}
    inputs = (f.type_str in kinds and i not in FP32_INPUTS.get(op, ()) for i, f in enumerate(schema.inputs))
    outputs = (f.type_str in kinds and i not in FP32_OUTPUTS.get(op, ()) for i, f in enumerate(schema.outputs))
    return tuple(inputs), tuple(outputs)


def _readers_beyond(graph: LayeredGraph, dtype: Half) -> dict[ir.Node, None]:
    """The nodes that read a weight beyond the range of a half type, directly or through nodes that only move values."""
    nodes = set(graph.graph)
    found: dict[ir.Node, None] = {}
    values = [value for value in graph.graph.initializers.values() if _is_beyond(graph, value, dtype)]
    while values:
        for node in {use.node for use in values.pop().uses()} & nodes - found.keys():
            found[node] = None
            if node.op_type in MOVES:
                values += node.outputs
    return found


def _is_beyond(graph: LayeredGraph, value: ir.Value, dtype: Half) -> bool:
    if not graph.is_float(value) or value.is_graph_input() or value.const_value is None:
        return False
    return is_beyond(value.const_value.numpy(), dtype)
