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
_APPLIED = {"Add", "Sub", "Mul", "Div", "MatMul", "Gemm", "Conv", "Einsum"}
_WEIGHED = {"MatMul", "Gemm", "Conv", "Einsum"}
_PASSED = {
    "Cast", "Clip", "Concat", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "LeakyRelu",
    "Max", "Mean", "Min", "Neg", "Pad", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "Relu", "Reshape",
    "Slice", "Split", "Squeeze", "Sum", "Tile", "Transpose", "Unsqueeze", "Where",
}  # fmt: skip
"""Operators that leave the size of a number, so that what reaches them reaches the output."""
_SHARES = {"Cast", "Concat", "Div", "Identity", "Mul", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze", "Where"}
"""Operators after which the weights of a softmax still are weights."""


@dataclass(frozen=True)
class _Reach:
    """A node by which an output comes to a size: by ``factor`` in all, or by adding a constant."""

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
        grids = [value for value in map(_applied, node.inputs) if _is_grid(value)]
        for grid in grids[:1]:
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
    factors = {output: 1.0}
    front = [output]
    while front:
        value = front.pop()
        factor, node = factors[value], value.producer()
        if node is None:
            continue
        sizes = [_size(_applied(read)) for read in node.inputs] if node.op_type in _APPLIED else []
        added = node.op_type in ("Add", "Sub")
        after = factor if added else factor * _factor(node, sizes)
        size = factor * max(sizes, default=0.0) if added else after
        grown = added or after > factor
        if grown and FP16_EXACT < size <= FP16_MAX and not any(map(_is_grid, map(_applied, node.inputs))):
            yield _Reach(size, node, added)
        for source in _sources(node):
            if factors.get(source, 0.0) < after:
                factors[source] = after
                front.append(source)


def _factor(node: ir.Node, sizes: list[float]) -> float:
    """By how much a node multiplies with its constants."""
    largest = max(sizes, default=0.0) or 1.0
    if node.op_type == "Div":
        return 1 / largest
    return largest if node.op_type == "Mul" or _weighs(node) else 1.0


def _sources(node: ir.Node) -> list[ir.Value]:
    """The inputs whose size a node passes on."""
    if node.op_type == "Div":
        inputs = node.inputs[:1]
    elif node.op_type in ("Gather", "GatherElements", "GatherND", "Clip", "Pad", "Reshape", "Slice", "Expand", "Tile"):
        inputs = node.inputs[:1]
    else:
        inputs = node.inputs if node.op_type in _PASSED | {"Add", "Sub", "Mul"} else ()
    return [value for value in inputs if value is not None]


def _weighs(node: ir.Node) -> bool:
    """Whether a node averages its constant with the weights of a softmax, as a soft-argmax does."""
    return node.op_type in _WEIGHED and any(source.op_type == "Softmax" for source in upstream(node, _SHARES))


def _applied(value: ir.Value | None) -> NDArray[np.generic] | None:
    """The constant that an input is, if it is floating."""
    found = constant(value)
    return found if found is not None and is_floating(found) else None


def _size(values: NDArray[np.generic] | None) -> float:
    """The largest magnitude among the finite values, 0 for none."""
    if values is None:
        return 0.0
    ends = np.array([values.min(), values.max()], np.float64)
    return float(np.abs(ends).max()) if np.isfinite(ends).all() else 0.0


def _is_grid(values: NDArray[np.generic] | None) -> bool:
    """Whether these are positions at multiples of one step, up to a size that fp16 rounds."""
    if values is None or not FP16_EXACT < _size(values) <= FP16_MAX:
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
