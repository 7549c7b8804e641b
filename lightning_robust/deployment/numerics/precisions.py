"""The low precisions by name, and what becomes of weights that they do not reach."""

from __future__ import annotations

from typing import Literal

Precision = Literal["fp16", "bf16", "tf32"]
Half = Literal["fp16", "bf16"]
Low = Literal["fp16", "bf16", "tf32", "int8"]
"""What a node may compute in instead of fp32: :data:`Precision`, whose rounding is emulated, and int8."""
OutOfRange = Literal["clamp", "keep", "inf"]
"""What becomes of weights beyond the range of a half precision: the nearest number in it, fp32, or infinity."""
