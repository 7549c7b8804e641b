"""Rules on constants that fp16 cannot hold: too large, or too small to keep their digits."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lightning_robust.deployment.graph.lint.finding import (
    Finding,
    LintGraph,
    constant,
    is_floating,
    reached,
    upstream,
)
from lightning_robust.deployment.numerics.operators import ALWAYS_FP32, FP32_INPUTS, MOVES
from lightning_robust.tables import percent

FP16_MAX, FP16_NORMAL = 65504.0, 6.1e-5
"""Largest fp16 number, and smallest normal one."""
_TINY_SHARE, _LOST = 0.2, 1e-3
"""A3: share of weights below the normal numbers from which the loss is computed, and the loss that counts, which is
twice what rounding costs normal numbers at most."""
_PRODUCTS = {"Conv", "ConvTranspose", "Gemm", "MatMul", "Mul"}
_FILLED = {"Add", "Sub", "Mul", "ConstantOfShape"} | MOVES
"""Operators by which a mask is made, moved and applied."""
_HARMLESS = {"Clip", "Max", "Min", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"}
"""Operators for which a bound beyond the range means the same wherever it is rounded to."""
_CLAMPED = "fp16 ends at 65504: weakly typed builders and this package clamp there, module.half() makes it infinite"


def check_weights(graph: LintGraph) -> Iterator[Finding]:
    """A3: weights beyond the range of fp16, or most of them below its smallest normal number."""
    for value, node in _rounded(graph).items():
        if node.op_type == "BatchNormalization" or node.op_type in _FILLED - _PRODUCTS:
            continue
        weights = constant(value)
        largest = _largest_finite(weights)
        lost = _lost(weights) if node.op_type in _PRODUCTS else 0.0
        if largest > FP16_MAX and node.op_type not in _FILLED:
            yield graph.finding(
                "A3",
                node,
                f"numbers up to {largest:.3g} in {value.name}",
                f"{_CLAMPED}.",
                "Scale the layer down and its input up, or keep the node in fp32.",
            )
        elif lost > _LOST:
            yield graph.finding(
                "A3",
                node,
                f"numbers in {value.name} that are mostly below 6.1e-05, the smallest normal fp16 number",
                f"Rounded to fp16 they change by {percent(lost)} (relative L2 distance), or become zero.",
                "Scale the layer up and its output down (a normalisation before it has the same effect).",
            )


def check_batch_norms(graph: LintGraph) -> Iterator[Finding]:
    """A3: BatchNorm statistics beyond the range of fp16."""
    for node in graph.nodes("BatchNormalization"):
        values = [constant(value) for value in node.inputs[1:5]]
        largest = max(map(_largest_finite, values))
        if largest > FP16_MAX:
            folded = _folded(node, values)
            beyond = folded > FP16_MAX
            yield graph.finding(
                "A3",
                node,
                f"BatchNorm with numbers up to {largest:.3g}" + (f", {folded:.3g} when folded" if beyond else ""),
                f"{_CLAMPED}."
                if beyond
                else "module.half() makes them infinite, and one of infinite variance returns its bias. This package "
                "folds the layer into one factor and one offset in fp32 first, and they fit.",
                "Keep the node in fp32." if beyond else "Fold the layer in fp32 before any other conversion to fp16.",
            )


def check_masks(graph: LintGraph) -> Iterator[Finding]:
    """A4: constants beyond the range of fp16 that are added or filled in, as in attention masks."""
    for node in graph.nodes(*_FILLED):
        constants = [constant(value) for value in node.inputs]
        if node.op_type == "ConstantOfShape":
            fill = node.attributes.get_tensor("value")
            constants = [None if fill is None else fill.numpy()]
        largest = max(map(_largest_finite, constants), default=0.0)
        if largest > FP16_MAX and not _leaves_rows_open(node, constants):
            yield graph.finding(
                "A4",
                node,
                f"{node.op_type} with a constant of size {largest:.3g}",
                f"{_CLAMPED}: a row that is masked whole becomes NaN then, and so does zero times infinity.",
                "Mask with -1e4, or give scaled_dot_product_attention a Boolean mask.",
            )


def _leaves_rows_open(node: ir.Node, constants: list[NDArray[np.generic] | None]) -> bool:
    """Whether a mask, once infinite, is as good as before: no row is masked whole, or NaN is replaced afterwards.

    Torch exports scaled_dot_product_attention so: a causal mask leaves the diagonal open, and where a Boolean mask may
    close a row the softmax is asked for NaN.
    """
    if node.op_type == "Mul":
        return False
    guards = (reader.op_type == "IsNaN" for reader, _ in reached(node, {*_FILLED, "Softmax"}))
    causal = (source.op_type == "Trilu" for source in upstream(node, {"Equal", "Not", "Cast", "Where"}))
    return any(guards) or any(causal) or not any(map(_closes_a_row, constants))


def _closes_a_row(mask: NDArray[np.generic] | None) -> bool:
    """Whether a constant is beyond the range everywhere, or in a whole row."""
    if mask is None or _largest_finite(mask) <= FP16_MAX:
        return False
    return bool((np.abs(np.atleast_1d(mask)) > FP16_MAX).all(-1).any())


def _rounded(graph: LintGraph) -> dict[ir.Value, ir.Node]:
    """The constant inputs that a conversion rounds, each with the last node that reads it."""
    readers: dict[ir.Value, ir.Node] = {}
    for node in graph.graph:
        if node.domain or node.op_type in ALWAYS_FP32 | _HARMLESS:
            continue
        stays = FP32_INPUTS.get(node.op_type, set())
        readers |= {v: node for i, v in enumerate(node.inputs) if v is not None and i not in stays}
    return readers


def _largest_finite(values: NDArray[np.generic] | None) -> float:
    """The largest finite magnitude, 0 for nothing floating. Infinity itself is exact in fp16."""
    if values is None or not is_floating(values):
        return 0.0
    # the two ends first, since they allocate nothing
    ends = [float(values.min()), float(values.max())]
    if not np.isfinite(ends).all():
        ends = np.abs(values[np.isfinite(values)].astype(np.float64))
        return float(ends.max(initial=0.0))
    return max(map(abs, ends))


def _lost(weights: NDArray[np.generic] | None) -> float:
    """The relative L2 distance to the rounded weights in range, where many are below the normal numbers; else 0."""
    if weights is None or not is_floating(weights):
        return 0.0
    weights = weights[(weights != 0) & (np.abs(weights) <= FP16_MAX)].astype(np.float32)
    if not weights.size or float((np.abs(weights) < FP16_NORMAL).mean()) <= _TINY_SHARE:
        return 0.0
    wide = weights.astype(np.float64)
    return float(np.linalg.norm(wide - weights.astype(np.float16)) / np.linalg.norm(wide))


def _folded(node: ir.Node, values: list[NDArray[np.generic] | None]) -> float:
    """The largest factor or offset of a BatchNorm as one affine map; 0 where its statistics are not constant."""
    if any(value is None for value in values):
        return 0.0
    scale, bias, mean, variance = (value.astype(np.float64) for value in values if value is not None)
    factor = scale / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
    return max(_largest_finite(factor), _largest_finite(bias - mean * factor))
