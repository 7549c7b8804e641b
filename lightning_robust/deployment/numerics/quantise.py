"""fp32 ONNX to int8 after training: one graph with QuantizeLinear and DequantizeLinear, which every int8 engine takes.

`numerics/calibration.py` finds the ranges, `numerics/integers.py` executes the result in integers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from lightning_robust.deployment.graph.types import ONNX_DOMAIN
from lightning_robust.deployment.numerics.calibration import Ranges
from lightning_robust.deployment.numerics.computed_weights import fold_computed_weights
from lightning_robust.deployment.numerics.layers import LayeredGraph, nodes_within
from lightning_robust.deployment.numerics.operators import QDQ, TENSOR_CORE
from lightning_robust.deployment.numerics.pairs import insert_pairs, two_operands
from lightning_robust.deployment.numerics.prepare import prepare, raise_opset
from lightning_robust.suggest import first_of

_OPSET = 13  # the first in which weights have a scale for each channel
_INTEGER = frozenset({
    "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "QGemm", "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul",
})  # fmt: skip
"""Products on integers."""
_LINE = 5  # nodes that a note names


@dataclass(frozen=True)
class Quantised:
    """A graph in int8, and what became of its products.

    Args:
        model: The graph with Q/DQ.
        nodes: The products in int8, by their names in the graph that was quantised.
        of: How many products that graph has.
        left: Product -> why it stays fp32, where it is not the user who said so.
        given: Whether the graph was quantised already, and taken as it is.
    """

    model: onnx.ModelProto
    nodes: tuple[str, ...]
    of: int
    left: dict[str, str] = field(default_factory=dict)
    given: bool = False

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines for a report."""
        taken = ["quantised already, taken as it is"] * self.given
        reasons = {reason: [name for name in self.left if self.left[name] == reason] for reason in self.left.values()}
        kept = [f"left in fp32, for {reason}: {first_of(names, _LINE)}" for reason, names in reasons.items()]
        return (f"{len(self.nodes)} of {self.of} products in int8", *taken, *kept)


def is_quantised(model: onnx.ModelProto) -> bool:
    """Whether a graph holds quantised tensors already, as after quantisation-aware training.

    Example:
        >>> from onnx import parser
        >>> text = "g (float[2] x, float s) => (uint8[2] y) { y = QuantizeLinear(x, s) }"
        >>> is_quantised(parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> {text}'))
        True
    """
    return any(node.op_type in _INTEGER.union(QDQ) for node in model.graph.node)


def quantise_products(model: onnx.ModelProto, ranges: Ranges, exclude: Collection[str] = ()) -> Quantised:
    """Quantise what the convolutions and matrix products of a graph read, by ONNX Runtime's quantiser.

    Every operand of a Conv, ConvTranspose, Gemm or MatMul passes through int8, symmetric, with zero point 0: weights
    with a scale for each output channel, :math:`max |w| / 127`, all else with one scale, range / 127. Biases, results
    and all other nodes stay float, as TensorRT takes them; the rest is the engine's to fuse. A BatchNormalization is
    folded into the convolution before it first. Nodes keep their names.

    Args:
        model: The fp32 graph. It is not changed. Below opset 13, which knows no scales of channels, it is raised.
        ranges: From :func:`~.calibration.calibrate` on :func:`operands`.
        exclude: Nodes that are not quantised: what they read does not pass through int8 for their sake.

    Raises:
        ValueError: If a name is unknown, the graph cannot be followed or raised, or the quantiser refuses it.

    Example:
        >>> from onnx import numpy_helper, parser
        >>> text = "g (float[batch, 2] x) => (float[batch, 3] y) { [op] y = MatMul(x, w) }"
        >>> model = parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> {text}')
        >>> model.graph.initializer.extend([numpy_helper.from_array(np.ones((2, 3), np.float32), "w")])
        >>> [node.op_type for node in quantise_products(model, {"x": 1.0}).model.graph.node]
        ['QuantizeLinear', 'DequantizeLinear', 'DequantizeLinear', 'MatMul']
    """
    graph = prepare_products(model, exclude)
    candidates = products(graph)
    offered = [node for node in candidates if not graph.is_kept(node)]
    left = {str(node.name): why for node in offered if (why := _obstacle(graph, node, ranges))}
    chosen = [node for node in offered if node.name not in left]
    within = _products_within(graph)
    left |= dict.fromkeys(within, "they lie in a branch or a loop")
    names, of = tuple(str(node.name) for node in chosen), len(candidates) + len(within)
    return Quantised(insert_pairs(graph, chosen, ranges) if chosen else model, names, of, left)


def take_quantised(model: onnx.ModelProto) -> Quantised:
    """A graph that holds Q/DQ already, after quantisation-aware training or by another tool, as it is.

    Raises:
        ValueError: For a scale that is not positive and finite; the message names the node.
    """
    _check_all_scales(model.graph)
    producers = {name: node for node in model.graph.node for name in node.output}
    of = [node for node in model.graph.node if node.op_type in TENSOR_CORE | _INTEGER]
    names = [node.name for node in of if node.op_type in _INTEGER or _reads_int8(node, producers)]
    return Quantised(model, tuple(names), len(of), given=True)


def _check_all_scales(graph: onnx.GraphProto) -> None:
    weights = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type in QDQ and node.input[1] in weights:
            _check_scales(node, onnx.numpy_helper.to_array(weights[node.input[1]]))


def _check_scales(node: onnx.NodeProto, scales: NDArray[np.floating]) -> None:
    wrong = scales[~(np.isfinite(scales) & (scales > 0))]
    if wrong.size:
        raise ValueError(
            f"Expected positive scales, but a scale of {node.op_type} {node.name!r} is {wrong.flat[0]}. Quantise the "
            "model again, on data on which this tensor is not zero and finite."
        )


def _reads_int8(node: onnx.NodeProto, producers: Mapping[str, onnx.NodeProto]) -> bool:
    """Whether both operands come out of a DequantizeLinear."""
    return all(name in producers and producers[name].op_type == "DequantizeLinear" for name in node.input[:2])


def operands(model: onnx.ModelProto) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """The graph that ranges are found on, and its tensors that int8 needs the ranges of."""
    graph = prepare_products(model)
    values = [value for node in products(graph) for value in two_operands(node)]
    names = dict.fromkeys(
        str(value.name) for value in values if graph.is_float(value) and graph.constant(value) is None
    )
    return ir.to_proto(graph.model), tuple(names)


def products(graph: LayeredGraph) -> list[ir.Node]:
    """The convolutions and matrix products of a graph, those within If, Loop and Scan left aside."""
    return [node for node in graph.graph if node.op_type in TENSOR_CORE and node.domain in ONNX_DOMAIN]


def _products_within(graph: LayeredGraph) -> list[str]:
    """The products within If, Loop and Scan, by the names of these and their own."""
    return [
        f"{node.name}/{inner.name or inner.op_type}"
        for node in graph.graph
        for inner in nodes_within(node)
        if inner.op_type in TENSOR_CORE
    ]


def prepare_products(model: onnx.ModelProto, exclude: Collection[str] = ()) -> LayeredGraph:
    """The fp32 graph as it is before :func:`quantise_products` lets its products read int8."""
    opset = max((entry.version for entry in model.opset_import if entry.domain in ONNX_DOMAIN), default=1)
    graph = prepare(model if opset >= _OPSET else raise_opset(model, opset, _OPSET), "fp16", exclude, convert=True)
    fold_computed_weights(graph, filter(graph.is_float, (v for node in products(graph) for v in two_operands(node))))
    return graph


def _obstacle(graph: LayeredGraph, node: ir.Node, ranges: Ranges) -> str:
    """Why a product cannot be quantised; empty where it can."""
    values = two_operands(node)
    if not all(graph.is_float(value) for value in values):
        return "what they read is not fp32"
    weights = [weight for value in values if (weight := graph.constant(value)) is not None]
    limits = [ranges.get(value.name or "", np.nan) for value in values if graph.constant(value) is None]
    if not limits:
        return "both operands are weights"
    return _obstacle_in_numbers(weights, limits)


def _obstacle_in_numbers(weights: list[NDArray[np.floating]], limits: list[float]) -> str:
    if not all(np.isfinite(weight).all() for weight in weights):
        return "their weights are not finite"
    if not np.isfinite(limits).all():
        return "what they read is not finite on the calibration data"
    return "" if all(limits) else "what they read is zero on the calibration data"
