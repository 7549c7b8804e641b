"""Rules on numbers that fp16 cannot hold: too large, too small, or too coarse."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lightning_robust.deployment.graph.lint.finding import (
    Finding,
    LintGraph,
    constant,
    consumers,
    floating_constants,
    is_floating,
    producers,
)

FP16_MAX, FP16_NORMAL, FP16_EXACT = 65504.0, 6.1e-5, 512.0
"""Largest fp16 number, smallest normal one, and where its steps become half a unit."""
_TINY_SHARE = 0.2
_ELEMENTWISE = {"Add", "Sub", "Mul", "Div", "Neg", "Clip", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Identity"}
_ELEMENTWISE |= {"Concat", "Cast", "Slice", "Flatten"}


def check_weights(graph: LintGraph) -> Iterator[Finding]:
    """A3: weights beyond the range of fp16, or many below its smallest normal number."""
    weighted = graph.nodes("Conv", "ConvTranspose", "Gemm", "MatMul")
    readers = {value: node for node in weighted for value in node.inputs[1:] if value is not None}
    for value, node in readers.items():
        size = _sizes(constant(value))
        largest, tiny = size.max(initial=0), float((size < FP16_NORMAL).mean()) if size.size else 0.0
        if largest > FP16_MAX:
            yield graph.finding(
                "A3",
                node,
                f"weights up to {largest:.3g} in {value.name}",
                "They are infinite in fp16, and so is what they touch.",
                "Scale the layer down and its input up, or keep the node in fp32.",
            )
        elif tiny > _TINY_SHARE:
            yield graph.finding(
                "A3",
                node,
                f"{tiny:.0%} of the weights in {value.name} are below the smallest normal fp16 number",
                "They lose their digits or become zero.",
                "Scale the layer up and its output down (a normalisation before it has the same effect).",
            )


def check_masks(graph: LintGraph) -> Iterator[Finding]:
    """A4: constants beyond the range of fp16 that are added or filled in, as in attention masks."""
    for node in graph.nodes("Add", "Sub", "Where", "Mul", "ConstantOfShape", "Expand"):
        constants = floating_constants(node)
        fill = node.attributes.get_tensor("value")
        if fill is not None and is_floating(fill.numpy()):
            constants.append(fill.numpy())
        largest = max((float(np.abs(v[np.isfinite(v)]).max(initial=0)) for v in constants), default=0)
        if largest > FP16_MAX:
            yield graph.finding(
                "A4",
                node,
                f"{node.op_type} with a constant of size {largest:.3g}",
                "It is infinite in fp16: a row that is masked whole becomes NaN, and infinity times zero too.",
                "Mask with -1e4, or with torch.finfo(dtype).min of the type in use; scaled_dot_product_attention does.",
            )


def check_written_norms(graph: LintGraph) -> Iterator[Finding]:
    """A6: a normalisation layer written out, whose squares overflow."""
    for node in graph.nodes("Sqrt"):
        offset = _only_producer(node, "Add")
        mean = None if offset is None else _only_producer(offset, "ReduceMean")
        squares = [] if mean is None else producers(mean)[:1]
        divides = any(reader.op_type in ("Div", "Reciprocal") for reader in consumers(node))
        if divides and any(_is_square(square) for square in squares):
            yield graph.finding(
                "A6",
                node,
                "a normalisation layer written out as squares, their mean and a root",
                "The squares overflow in fp16 for activations above 255: TensorRT does not see that it is one layer.",
                "Use torch.nn.functional.layer_norm, for maps with channels first on x.permute(0, 2, 3, 1).",
            )


def check_output_scale(graph: LintGraph) -> Iterator[Finding]:
    """A8: an output scaled to hundreds of units, as pixels or metres."""
    for output in graph.graph.outputs:
        for node in _elementwise_chain(output):
            scale = _scale(node)
            if scale > FP16_EXACT:
                yield graph.finding(
                    "A8",
                    node,
                    f"output {output.name!r} is scaled by {scale:.4g}",
                    "In fp16 numbers above 512 have steps of half a unit: positions jump.",
                    "Return the value before scaling and scale on the deployed side, or keep the node in fp32.",
                )
                break


def _sizes(weights: NDArray[np.generic] | None) -> NDArray[np.float64]:
    """The magnitudes of all floating weights that are not zero."""
    if weights is None or not is_floating(weights):
        return np.empty(0)
    return np.abs(weights[weights != 0].astype(np.float64))


def _elementwise_chain(output: ir.Value) -> Iterator[ir.Node]:
    """The nodes that an output has passed through, the last first, up to one that mixes elements."""
    node, seen = output.producer(), set()
    while node is not None and node.op_type in _ELEMENTWISE and node not in seen:
        seen.add(node)
        yield node
        node = next(iter(producers(node)), None)


def _scale(node: ir.Node) -> float:
    """The largest factor by which a node multiplies with a constant, 0 for other nodes."""
    constants = floating_constants(node) if node.op_type in ("Mul", "Div") else []
    size = float(np.abs(constants[0]).max()) if constants else 0.0
    return 1 / size if size and node.op_type == "Div" else size


def _only_producer(node: ir.Node, operator: str) -> ir.Node | None:
    matches = [source for source in producers(node) if source.op_type == operator]
    return matches[0] if len(matches) == 1 else None


def _is_square(node: ir.Node) -> bool:
    if node.op_type == "Mul":
        return len(node.inputs) == 2 and node.inputs[0] is node.inputs[1]
    exponents = floating_constants(node)[:1] if node.op_type == "Pow" else []
    return any(exponent.size == 1 and float(exponent.reshape(-1)[0]) == 2.0 for exponent in exponents)
