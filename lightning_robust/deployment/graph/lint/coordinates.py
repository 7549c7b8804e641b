"""Rules on coordinates, which need more digits than fp16 has."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lightning_robust.deployment.graph.lint.finding import Finding, LintGraph, constant, is_floating, upstream
from lightning_robust.deployment.graph.lint.fp16_range import FP16_MAX

FP16_EXACT = 512.0
"""From here on fp16 numbers are half a unit apart, or more."""
_GRID_STEPS = 1e4
"""A grid has at most so many steps; what needs more is a table of learned numbers."""
_LAYERS = {"MatMul", "Gemm", "Conv", "Einsum"}
_APPLIED = {"Add", "Sub", "Mul", "Div"} | _LAYERS
_PASSED = {
    "Cast", "Clip", "Concat", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "LeakyRelu",
    "Max", "Mean", "Min", "Neg", "Pad", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "Relu", "Reshape",
    "Slice", "Split", "Squeeze", "Sum", "Tile", "Transpose", "Unsqueeze", "Where",
}  # fmt: skip
"""Operators that leave the size of a number, so that what reaches them reaches the output."""
_FIRST = {"Div", "Clip", "Expand", "Gather", "GatherElements", "GatherND", "Pad", "Reshape", "Slice", "Tile"}
"""Operators that leave the size of their first input alone: the others are bounds, shapes, places, denominators."""
_TAKEN = {"Cast", "Identity", "Squeeze", "Transpose", "Unsqueeze"} | _FIRST - {"Div", "Clip", "Pad"}
"""Operators that take rows, parts or copies of a table."""
_SHARES = {"Cast", "Concat", "Div", "Identity", "Mul", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze", "Where"}
"""Operators after which the weights of a softmax still are weights."""


@dataclass(frozen=True)
class _Reach:
    """How an output comes to a size, and where: all factors together, or a constant that is added."""

    size: float
    node: ir.Node
    added: bool

    def __str__(self) -> str:
        return f"holds a constant of up to {self.size:.4g}" if self.added else f"is scaled by {self.size:.4g}"


def check_sampling(graph: LintGraph) -> Iterator[Finding]:
    """A7: sampling at coordinates in the network's own precision."""
    for node in graph.nodes("GridSample"):
        width = _width(node.inputs[0])
        yield graph.finding(
            "A7",
            node,
            "sampling at coordinates",
            "Towards the edges of a [-1, 1] grid fp16 has steps of 0.00049, which are "
            f"{width / 4096:.2g} pixels of {width}.",
            "Keep the chain that computes the grid, and this node, in fp32.",
        )


def check_grids(graph: LintGraph) -> Iterator[Finding]:
    """A7: a constant grid of positions, of any shape, that reaches further than fp16 can resolve."""
    for node in graph.nodes(*_APPLIED):
        for grid in _grids(node)[:1]:
            size = _size(grid)
            yield graph.finding(
                "A7",
                node,
                f"a grid of {np.unique(grid).size} positions up to {size:.4g}",
                f"There fp16 has steps of {_step(size):g}, and sums with the grid are rounded to them.",
                "Compute with normalised coordinates (0 to 1) and scale at the end, in fp32.",
            )


def check_output_scale(graph: LintGraph) -> Iterator[Finding]:
    """A8: an output in hundreds of units, as pixels or metres."""
    named: set[ir.Node] = set()
    for output in graph.graph.outputs:
        reach = max(_reaches(output), key=lambda reach: reach.size, default=None)
        if reach is None or reach.node in named:
            continue
        named.add(reach.node)
        yield graph.finding(
            "A8",
            reach.node,
            f"output {output.name!r} {reach}",
            f"At that size fp16 has steps of {_step(reach.size):g}: positions jump.",
            "Return the value before it is scaled and scale on the deployed side, or keep the last nodes in fp32.",
        )


def _reaches(output: ir.Value) -> Iterator[_Reach]:
    """Every constant by which an output comes to more than fp16 resolves, back to the layers that mix elements."""
    factors: dict[ir.Value, float] = {output: 1.0}
    front: list[tuple[ir.Value, ir.Node | None]] = [(output, None)]
    while front:
        value, scaled_by = front.pop()
        node = value.producer()
        if node is None:
            continue
        factor, reach = _grow(node, factors[value], scaled_by)
        if reach is not None:
            scaled_by = scaled_by if reach.added else reach.node
            if FP16_EXACT < reach.size <= FP16_MAX:
                yield reach
        for source in _passed_on(node):
            if factors.get(source, 0.0) < factor:
                factors[source] = factor
                front.append((source, scaled_by))


def _grow(node: ir.Node, factor: float, scaled_by: ir.Node | None) -> tuple[float, _Reach | None]:
    """The factor before a node, given that after it, and to what size the node's constants bring the output."""
    constants = _constants(node)
    largest = max(map(_size, constants), default=0.0)
    if not largest or any(map(_is_grid, constants)):  # a grid has a finding of its own
        return factor, None
    if node.op_type in ("Add", "Sub"):
        return factor, _Reach(factor * largest, node, added=True)
    grown = factor / largest if node.op_type == "Div" else factor * largest
    return grown, _Reach(grown, scaled_by or node, added=False) if grown > factor else None


def _grids(node: ir.Node) -> list[NDArray[np.generic]]:
    """The grids of positions that a node computes with; what a layer multiplies with are its weights."""
    return [value for value in _constants(node) if _is_grid(value)]


def _constants(node: ir.Node) -> list[NDArray[np.generic]]:
    """The floating constants that a node adds, multiplies with or takes the mean of; none for the weights of layers."""
    if node.op_type not in _APPLIED or (node.op_type in _LAYERS and not _weighs(node)):
        return []
    return [value for value in map(_table, node.inputs) if value is not None and is_floating(value)]


def _table(value: ir.Value | None) -> NDArray[np.generic] | None:
    """The constant that an input is, or whose rows, parts or copies it is."""
    found = constant(value)
    node = None if value is None or found is not None else value.producer()
    return _table(node.inputs[0]) if node is not None and node.op_type in _TAKEN else found


def _passed_on(node: ir.Node) -> list[ir.Value]:
    """The inputs whose size a node passes on."""
    if node.op_type in _FIRST:
        inputs = node.inputs[:1]
    else:
        inputs = node.inputs if node.op_type in _PASSED | _APPLIED - _LAYERS else ()
    return [value for value in inputs if value is not None and value.const_value is None]


def _weighs(node: ir.Node) -> bool:
    """Whether a node takes the mean of its constant under the weights of a softmax, as a soft-argmax does."""
    return any(source.op_type == "Softmax" for source in upstream(node, _SHARES))


def _size(values: NDArray[np.generic]) -> float:
    """The largest magnitude, 0 where there is an infinity."""
    ends = np.array([values.min(), values.max()], np.float64)
    return float(np.abs(ends).max()) if np.isfinite(ends).all() else 0.0


def _is_grid(values: NDArray[np.generic]) -> bool:
    """Whether these are positions at multiples of one step, up to a size that fp16 rounds."""
    if not FP16_EXACT < _size(values) <= FP16_MAX:
        return False
    places = np.unique(values.astype(np.float64))
    if places.size < 3:
        return False
    steps = (places - places[0]) / np.diff(places).min()
    return bool(steps[-1] <= _GRID_STEPS and np.allclose(steps, np.round(steps), atol=0.01))


def _width(value: ir.Value | None) -> int:
    """The last size of a tensor; 1000 where it is not known."""
    shape = None if value is None else value.shape
    last = shape[-1] if shape is not None and len(shape) else None
    return last if isinstance(last, int) else 1000


def _step(size: float) -> float:
    """The distance between neighbouring fp16 numbers of this size."""
    return float(np.spacing(np.float16(size)))
