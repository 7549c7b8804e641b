"""Rules on squares and exponentials, whose sums leave the range of fp16 long before their inputs do."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from lightning_robust.deployment.graph.lint.finding import (
    Finding,
    LintGraph,
    constant,
    reached,
    upstream,
)

_SUMS = {"ReduceMean", "ReduceSum", "AveragePool", "GlobalAveragePool"}
_MOVES = {"Cast", "Expand", "Identity", "Pad", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"}
_BEFORE_ROOT = _MOVES | {"Abs", "Add", "Clip", "Div", "Max", "Mul", "Relu", "Sub"}
_AFTER_ROOT = _MOVES | {"Add", "Clip", "Max", "Mul"}
_BEFORE_SUM = _MOVES | {"Abs", "Div", "Mul"}

_REDUCTIONS = {
    "ReduceL2": (
        "a length, the root of a sum of squares",
        (
            "The parsers of TensorRT 10 write it out in the type of its input: in fp16 it is infinite for lengths "
            "above 255. Newer ones compute it in fp32."
        ),
    ),
    "ReduceSumSquare": ("a sum of squares", "In fp16 it is infinite as soon as the sum exceeds 65504."),
    "ReduceLogSumExp": (
        "the logarithm of a sum of exponentials",
        (
            "The parsers of TensorRT 10 write it out without taking the maximum off first: in fp16 it is infinite for "
            "values above 11. Newer ones take it off."
        ),
    ),
}


def check_written_norms(graph: LintGraph) -> Iterator[Finding]:
    """A6: a normalisation written out, whose squares overflow."""
    for node in graph.nodes("Sqrt", "Pow"):
        if _is_root(node) and _divides(node) and _is_of_squares(node):
            yield graph.finding(
                "A6",
                node,
                "a normalisation written out as squares, their sum and a root",
                "In fp16 the squares overflow for values above 255. Some versions of TensorRT warn of it "
                '("Detected layernorm nodes in FP16"), in some of the spellings, and build it in fp16 all the same.',
                "Keep these nodes in fp32, or write a layer norm as torch.nn.functional.layer_norm, which is one node "
                "(for maps with channels first on x.permute(0, 2, 3, 1)).",
            )


def check_reductions(graph: LintGraph) -> Iterator[Finding]:
    """A14: reductions that hide squares or exponentials."""
    for node in graph.nodes(*_REDUCTIONS):
        what, consequence = _REDUCTIONS[node.op_type]
        yield graph.finding("A14", node, f"{node.op_type}, {what}", consequence, "Keep the node in fp32.")


def _is_root(node: ir.Node) -> bool:
    """A square root, or a power of a fraction."""
    exponent = _exponent(node)
    return node.op_type == "Sqrt" or (exponent is not None and not exponent.is_integer())


def _divides(root: ir.Node) -> bool:
    """Whether something is divided by the root, or by what elementwise steps make of it."""
    exponent = _exponent(root)
    if exponent is not None and exponent < 0:
        return True
    uses = reached(root, _AFTER_ROOT)
    return any(_inverts(user, place) for user, place in uses)


def _inverts(node: ir.Node, place: int) -> bool:
    """Whether a node divides by its input at this place."""
    exponent = _exponent(node)
    if exponent is not None:
        return exponent < 0
    return node.op_type == "Reciprocal" or (node.op_type == "Div" and place == 1)


def _is_of_squares(root: ir.Node) -> bool:
    """Whether a sum of squares is under the root, as a mean, a variance or a difference of two means."""
    for source in upstream(root, _BEFORE_ROOT):
        if source.op_type in _SUMS and any(map(_is_square, upstream(source, _BEFORE_SUM))):
            return True
        if source.op_type == "Einsum" and _is_square(source):
            return True
    return False


def _is_square(node: ir.Node) -> bool:
    if node.op_type in ("Mul", "Einsum"):
        return len(node.inputs) == 2 and _are_one(*node.inputs)
    exponent = _exponent(node)
    return exponent is not None and exponent >= 2 and exponent.is_integer()


def _are_one(left: ir.Value | None, right: ir.Value | None) -> bool:
    """Whether two values are one, or made by two nodes that do the same, as where ``(x - m) * (x - m)`` is written."""
    if left is right or left is None or right is None:
        return left is right
    first, second = left.producer(), right.producer()
    if first is None or second is None:
        return False
    return (first.op_type, tuple(first.inputs)) == (second.op_type, tuple(second.inputs)) and first.op_type == "Sub"


def _exponent(node: ir.Node) -> float | None:
    """The constant exponent of a power; None for other nodes."""
    value = constant(node.inputs[1]) if node.op_type == "Pow" else None
    return float(value.reshape(-1)[0]) if value is not None and value.size == 1 else None
