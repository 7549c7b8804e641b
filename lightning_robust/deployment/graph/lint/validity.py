"""Rules on graphs that TensorRT refuses, or builds into something else than was trained."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
import onnx_ir as ir
from onnx import TensorProto

from lightning_robust.deployment.graph.lint.finding import Finding, LintGraph, constant, upstream
from lightning_robust.deployment.graph.types import declared_types, element_types, without_large_weights

_FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16}
_TYPE_ERRORS = ("inconsistent type", "unsupported type", "elem type")
_PASSING_SHAPES = {"Gather", "Slice", "Squeeze", "Unsqueeze", "Concat"}


def check_training_mode(graph: LintGraph) -> Iterator[Finding]:
    """A5: dropout or BatchNorm in training mode."""
    for node in graph.nodes("Dropout", "BatchNormalization"):
        if _trains(node):
            yield graph.finding(
                "A5",
                node,
                f"{node.op_type} in training mode",
                "Outputs are random or depend on the rest of the batch, and TensorRT refuses the node.",
                "Call model.eval() before the export. What eval() does not switch off, as F.dropout(x, 0.5), needs "
                "training=self.training.",
            )


def check_floating_shapes(graph: LintGraph) -> Iterator[Finding]:
    """A10: sizes that are cast to floating point."""
    for node in graph.nodes("Cast"):
        sizes = (source.op_type in ("Shape", "Size") for source in upstream(node, _PASSING_SHAPES))
        if node.attributes.get_int("to", 0) in _FLOATS and any(sizes):
            yield graph.finding(
                "A10",
                node,
                "a shape computed in floating point",
                "Converted to fp16, sizes above 2048 are rounded, and with them the shapes or positions computed.",
                "Compute sizes with integers (//), or pass scale_factor instead of a size.",
            )


def check_grid_types(graph: LintGraph) -> Iterator[Finding]:
    """A11: GridSample whose grid and features have different types."""
    nodes = list(graph.nodes("GridSample"))
    types = _known_types(graph.model) if nodes else {}
    for node in nodes:
        kinds = [types.get(value.name or "") if value is not None else None for value in node.inputs[:2]]
        if None not in kinds and kinds[0] != kinds[1]:
            features, grid = (ir.DataType(kind or 0).name for kind in kinds)
            yield graph.finding(
                "A11",
                node,
                f"GridSample of {features} features by a {grid} grid",
                "TensorRT wants one type and refuses the node.",
                "Cast the features to the type of the grid (fp32) and the result back.",
            )


def check_types(graph: LintGraph) -> Iterator[Finding]:
    """A12: types that do not agree. Shapes that do not are no finding: a false annotation of an output does no harm."""
    try:
        onnx.shape_inference.infer_shapes(without_large_weights(graph.model), check_type=True, strict_mode=True)
    except (onnx.shape_inference.InferenceError, RuntimeError) as error:
        message = " ".join(str(error).split())
        if any(sign in message for sign in _TYPE_ERRORS):
            told = message.rpartition("): ")[2].removeprefix("[TypeInferenceError] ")
            yield graph.finding(
                "A12",
                next((node for node in graph.graph if node.name and f"node name: {node.name})" in message), None),
                f"types that do not agree ({told[:160]})",
                "A strongly typed engine does not build.",
                "Convert with lightning_robust.deployment.numerics.convert.to_half, which puts casts between types.",
            )


def _trains(node: ir.Node) -> bool:
    if node.op_type == "BatchNormalization":
        return bool(node.attributes.get_int("training_mode", 0))
    # dropout without a switch, from before operator set 12, does nothing at inference
    switch = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    return switch is not None and bool(switch)


def _known_types(model: onnx.ModelProto) -> dict[str, int]:
    try:
        return element_types(model)
    except (onnx.shape_inference.InferenceError, RuntimeError):
        return declared_types(model.graph)
