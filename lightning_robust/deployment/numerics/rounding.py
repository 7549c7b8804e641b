"""Rounding to the precisions that engines compute in: of arrays, and of values inside a graph."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

Precision = Literal["fp16", "bf16", "tf32"]
Half = Literal["fp16", "bf16"]

HALF_TYPES = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
"""Element types of the half precisions. There is none for TF32, which GPUs store as fp32."""
TF32_FACTOR, TF32_LIMIT = float(2**13 + 1), float(2**100)
"""Constants of :func:`split_value`."""
_TF32_DROPPED_BITS = 13


def to_half_array(values: NDArray[np.float32], precision: str) -> NDArray[Any]:
    """An fp32 array in half precision: the nearest values, ties to even; too large becomes infinity.

    Example:
        >>> to_half_array(np.array([1.0005, 7e4], np.float32), "fp16")
        array([1.001,   inf], dtype=float16)
    """
    with np.errstate(over="ignore"):
        return values.astype(HALF_TYPES[precision].numpy())


def round_array(values: NDArray[np.float32], precision: Precision) -> NDArray[np.float32]:
    """Round an fp32 array to the nearest value of another precision, ties to even; too large becomes infinity.

    Example:
        >>> round_array(np.array([1.0005, 7e4], np.float32), "fp16").tolist()
        [1.0009765625, inf]
    """
    if precision != "tf32":
        return to_half_array(values, precision).astype(np.float32)
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
    r"""Nodes that compute ``target`` as ``source`` rounded to TF32's 11 significant bits.

    Veltkamp's split: with :math:`c = x (2^{13} + 1)`, :math:`c - (c - x)` is the head of ``x``. Values so large that
    ``c`` might overflow pass unrounded.

    Args:
        source: An fp32 value.
        target: The value to compute.
        factor: The constant :data:`TF32_FACTOR`.
        limit: The constant :data:`TF32_LIMIT`.
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
