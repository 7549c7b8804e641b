"""Rounding to the precisions that engines compute in: of arrays, and of values inside a graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lightning_robust.deployment.numerics.precisions import Half, OutOfRange, Precision

HALF_TYPES = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
"""Element types of the half precisions. There is none for TF32, which GPUs store as fp32."""
HALF_RANGES = {"fp16": (2.0**-24, 65504.0), "bf16": (2.0**-133, (2 - 2.0**-7) * 2.0**127)}
"""The smallest and the largest number of each half precision."""
_OVERFLOW = {"fp16": 65520.0, "bf16": (2 - 2.0**-8) * 2.0**127}  # half a step beyond the largest number
SPLIT_FACTORS, SPLIT_LIMIT = {"tf32": 2.0**13 + 1, "bf16": 2.0**16 + 1}, 2.0**100
"""Constants of :func:`split_value`."""
_TF32_DROPPED_BITS = 13


def is_beyond(values: NDArray[np.float32], precision: str) -> bool:
    """Whether a finite number of the array would become infinite in half precision.

    Example:
        >>> is_beyond(np.array([1.0, 7e4], np.float32), "fp16"), is_beyond(np.array([np.inf], np.float32), "fp16")
        (True, False)
    """
    limit = _OVERFLOW[precision]
    if values.size == 0 or max(values.max(), -values.min()) < limit:  # false where one is NaN
        return False
    return bool(((np.abs(values) >= limit) & np.isfinite(values)).any())


def to_half_array(values: NDArray[np.float32], precision: str, out_of_range: OutOfRange = "inf") -> NDArray[Any]:
    """An fp32 array in half precision: the nearest values, ties to even.

    With ``"clamp"`` what is too large becomes the largest finite number, and what is too small, but not zero, the
    smallest: TensorRT's builder converts weights so and says it in its log (NVIDIA/TensorRT#3101). Else they become
    infinity and zero.

    Example:
        >>> to_half_array(np.array([1.0005, 7e4, -1e-20], np.float32), "fp16")
        array([ 1.001,    inf, -0.   ], dtype=float16)
        >>> to_half_array(np.array([1.0005, 7e4, -1e-20], np.float32), "fp16", "clamp").tolist()
        [1.0009765625, 65504.0, -5.960464477539063e-08]
    """
    kind = HALF_TYPES[precision].numpy()
    with np.errstate(over="ignore"):
        half = values.astype(kind)
    if out_of_range != "clamp":
        return half
    for limit, wrong in zip(HALF_RANGES[precision], (half == 0, np.isinf(half)), strict=True):
        if wrong.any():
            wrong &= (values != 0) & np.isfinite(values)
            half = np.where(wrong, np.copysign(np.float32(limit), values).astype(kind), half)
    return half


def round_array(
    values: NDArray[np.float32], precision: Precision, out_of_range: OutOfRange = "inf"
) -> NDArray[np.float32]:
    """Round an fp32 array to the nearest value of another precision, ties to even.

    Example:
        >>> round_array(np.array([1.0005, 7e4], np.float32), "fp16").tolist()
        [1.0009765625, inf]
    """
    if precision != "tf32":
        return to_half_array(values, precision, out_of_range).astype(np.float32)
    bits = values.view(np.uint32).astype(np.uint64)
    even = (bits >> _TF32_DROPPED_BITS) & 1
    half_step = (1 << (_TF32_DROPPED_BITS - 1)) - 1
    rounded = ((bits + half_step + even) >> _TF32_DROPPED_BITS << _TF32_DROPPED_BITS).astype(np.uint32)
    return np.where(np.isfinite(values), rounded.view(np.float32), values)


def cast_value(source: ir.Value, target: ir.Value, dtype: ir.DataType, name: str) -> ir.Node:
    """The node that computes ``target`` as ``source`` in another element type."""
    return ir.node("Cast", [source], {"to": dtype.value}, outputs=[target], name=name)


def round_value(source: ir.Value, target: ir.Value, precision: Half) -> list[ir.Node]:
    """Nodes that compute ``target`` as the nearest value to ``source`` in half precision, stored as fp32."""
    narrow = ir.Value(name=f"{target.name}__narrow")
    return [
        cast_value(source, narrow, HALF_TYPES[precision], f"round/{target.name}"),
        cast_value(narrow, target, ir.DataType.FLOAT, f"widen/{target.name}"),
    ]


def split_value(source: ir.Value, target: ir.Value, factor: ir.Value, limit: ir.Value) -> list[ir.Node]:
    r"""Nodes that compute ``target`` as ``source`` rounded to fewer significant bits, without a cast.

    Veltkamp's split: with :math:`c = x (2^s + 1)`, :math:`c - (c - x)` is the head of ``x``, its first 24 - s bits.
    Values so large that ``c`` might overflow pass unrounded.

    Args:
        source: An fp32 value.
        target: The value to compute.
        factor: The constant of :data:`SPLIT_FACTORS`.
        limit: The constant :data:`SPLIT_LIMIT`.
    """
    scaled, rest, head, size, small = (
        ir.Value(name=f"{target.name}__{part}") for part in ("scaled", "rest", "head", "size", "small")
    )

    def node(operator: str, inputs: list[ir.Value], output: ir.Value) -> ir.Node:
        return ir.node(operator, inputs, outputs=[output], name=f"round/{output.name}")

    return [
        node("Mul", [source, factor], scaled),
        node("Sub", [scaled, source], rest),
        node("Sub", [scaled, rest], head),
        node("Abs", [source], size),
        node("Less", [size, limit], small),
        node("Where", [small, head, source], target),
    ]
