"""What half precision and TF32 mean for ONNX's operators."""

from __future__ import annotations

MOVES = frozenset({
    "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Pad", "Reshape",
    "Shape", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze", "Where",
})  # fmt: skip
"""Operators that only move values: their results are as rounded as their inputs."""
TENSOR_CORE = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Operators that a GPU computes on tensor cores when TF32 is allowed."""
QDQ = ("QuantizeLinear", "DequantizeLinear")
"""The two operators of a tensor on its way through int8, in their order."""
ALWAYS_FP32 = frozenset({
    "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul",
    "EyeLike", "Bernoulli", "Multinomial",
    "RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike",
    "BlackmanWindow", "HammingWindow", "HannWindow", "MelWeightMatrix",
})  # fmt: skip
"""Operators whose attributes name float, or whose scales are calibrated numbers that a rounding would change."""
FP32_INPUTS = {"Resize": {1, 2}, "Upsample": {1}}
"""Operator -> inputs that stay fp32: the region and the scales of a resize."""
FP32_OUTPUTS = {"LayerNormalization": {1, 2}}
"""Operator -> outputs that stay fp32: mean and deviation, which have the type of an attribute."""
