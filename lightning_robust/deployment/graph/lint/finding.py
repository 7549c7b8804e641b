"""What a rule reads, a graph with the places its nodes come from, and what it reports."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from lightning_robust.deployment.graph.constants import read_constant
from lightning_robust.deployment.graph.origin import Origin

_FOLDED = {
    "Add",
    "Cast",
    "Concat",
    "Div",
    "Expand",
    "Mul",
    "Reshape",
    "Squeeze",
    "Sub",
    "Tile",
    "Transpose",
    "Unsqueeze",
}
_LONGEST_RANGE = 1e5


@dataclass(frozen=True)
class Finding:
    """One construct of the graph that needs a change.

    Args:
        rule: ``"A1"`` to ``"A15"``.
        node: Name of the ONNX node, or of the graph.
        module: Path of the PyTorch module; empty if unknown.
        source: File and line of the user's code; empty if unknown.
        what: What the graph contains.
        consequence: What happens on TensorRT.
        remedy: What to write instead.
    """

    rule: str
    node: str
    module: str
    source: str
    what: str
    consequence: str
    remedy: str

    def __str__(self) -> str:
        """One line."""
        place = " ".join(part for part in (self.module or self.node, f"({self.source})" if self.source else "") if part)
        return f"{self.rule} {place}: {self.what}. {self.consequence} {self.remedy}"


class LintGraph:
    """A graph in which every node knows its producers and consumers.

    Args:
        model: The graph; it is not changed.
        origins: Node name -> the module and source line that it comes from.

    Attributes:
        model: The graph as given.
        graph: The same graph as onnx_ir objects.
    """

    def __init__(self, model: onnx.ModelProto, origins: Mapping[str, Origin]) -> None:
        self.model, self.graph, self._origins = model, ir.from_proto(model).graph, origins
        _fold_ranges(self.graph)

    def nodes(self, *operators: str) -> Iterator[ir.Node]:
        """Nodes of these operators."""
        return (node for node in self.graph if node.op_type in operators)

    def finding(self, rule: str, node: ir.Node | None, what: str, consequence: str, remedy: str) -> Finding:
        """A finding at a node, or of the whole graph, with the place that it comes from."""
        name = self.graph.name or "" if node is None else node.name or node.outputs[0].name or ""
        origin = self._origins.get(name, Origin("", ""))
        return Finding(rule, name, origin.module, origin.source, what, consequence, remedy)


def _fold_ranges(graph: ir.Graph) -> None:
    """Give grids that are computed from constants alone their values: some exporters fold nothing."""
    folded: set[ir.Value] = set()
    for node in graph:
        if node.op_type == "Range" or (node.op_type in _FOLDED and not folded.isdisjoint(filter(None, node.inputs))):
            value = _computed(node)
            if value is not None:
                node.outputs[0].const_value = ir.tensor(value)
                folded.add(node.outputs[0])


def _computed(node: ir.Node) -> NDArray[np.generic] | None:
    """What a node gives for constant inputs; None if they are not constant, too long a range, or no input of it."""
    arrays: dict[str, Any] = {value.name or "": constant(value) for value in node.inputs if value is not None}
    if any(array is None for array in arrays.values()):
        return None
    if node.op_type == "Range":
        start, limit, step = map(float, arrays.values())
        if not step or (limit - start) / step > _LONGEST_RANGE:
            return None
    try:
        results: Any = ReferenceEvaluator(ir.to_proto(node)).run(None, arrays)
    except Exception:  # a graph that is not valid has findings of its own
        return None
    value: NDArray[np.generic] = results[0]
    return value


def producers(node: ir.Node) -> list[ir.Node]:
    """The nodes that compute the inputs of a node."""
    sources = (value.producer() for value in node.inputs if value is not None)
    return [source for source in sources if source is not None]


def reached(node: ir.Node, through: Collection[str]) -> Iterator[tuple[ir.Node, int]]:
    """All nodes that read what a node computes, and at which input, passed on by operators of one kind.

    The readers of a value are kept with it: the time is linear in the size of the graph.
    """
    front, seen = [node], {node}
    while front:
        for user, place in (use for value in front.pop().outputs for use in value.uses()):
            yield user, place
            if user not in seen and user.op_type in through:
                seen.add(user)
                front.append(user)


def upstream(node: ir.Node, through: Collection[str]) -> Iterator[ir.Node]:
    """All nodes before a node that are reached through operators of one kind, the first beyond them included."""
    front, seen = producers(node), set()
    while front:
        source = front.pop()
        yield source
        if source not in seen and source.op_type in through:
            seen.add(source)
            front += producers(source)


def constant(value: ir.Value | None) -> NDArray[np.generic] | None:
    """The array of a weight or Constant node; None for computed values and for weights outside of the file."""
    tensor = None if value is None else value.const_value
    source = None if value is None else value.producer()
    if source is not None and source.op_type == "Constant":
        return read_constant(source)
    return None if tensor is None or isinstance(tensor, ir.ExternalTensor) else tensor.numpy()


def is_floating(value: NDArray[np.generic]) -> bool:
    """Whether an array has elements, and of a floating type."""
    return bool(value.size) and (np.issubdtype(value.dtype, np.floating) or value.dtype.name == "bfloat16")
