"""Sums of products accumulated in fp16: the worst that a tensor core may do, as the bound opposite to the emulation.

A tensor core adds the products of 16 pairs at a time, exactly, to its accumulator. With fp32 accumulators that is what
the emulation computes; with fp16 accumulators the running sum is rounded to fp16 after every 16 products. Which of an
engine's kernels do so is not documented, so that fp16 is an interval between the two. It bounds the expected error: on
few samples, or where a network amplifies any rounding, it may err less by chance.

The products of a convolution are taken position by position of its kernel, and 16 channels at a time; with fewer
channels in a group several positions at a time. Products of computed kernels, and all below operator set 10, keep fp32
accumulators. The result of a product costs one rounding for 16 products, and a convolution as many times itself as its
kernel has positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lightning_robust.deployment.numerics.layers import LayeredGraph
from lightning_robust.deployment.numerics.rounding import round_value

BLOCK = 16
"""Products that are summed before the accumulator is rounded."""
_SLICE_OPSET = 10  # from which Slice takes where to cut as inputs
_FLOAT, _INT, _BOOL = (ir.TensorType(kind) for kind in (ir.DataType.FLOAT, ir.DataType.INT64, ir.DataType.BOOL))


def accumulate_in_half(graph: LayeredGraph, node: ir.Node) -> None:
    """Put a loop over blocks of products with an fp16 accumulator in the place of a convolution or a matrix product.

    Args:
        graph: The graph.
        node: A Conv, ConvTranspose, Gemm or MatMul on rounded values. Its output is left to be rounded.
    """
    nodes = _Nodes(graph, node.name or "")
    accumulate = _accumulate_product if node.op_type in ("Gemm", "MatMul") else _accumulate_convolution
    total = accumulate(nodes, node) if graph.version >= _SLICE_OPSET else None
    if total is not None:
        graph.graph.insert_before(node, nodes.nodes)
        graph.take_output(total, node)


class _Nodes:
    """Nodes in the making, in their order.

    Args:
        graph: Where names and weights come from.
        name: What their names begin with.
    """

    def __init__(self, graph: LayeredGraph, name: str) -> None:
        self.graph, self.name = graph, name
        self.nodes: list[ir.Node] = []

    def add(self, op: str, *inputs: ir.Value | None, kind: ir.TensorType = _FLOAT, **attributes: Any) -> ir.Value:
        """One more node; its output."""
        output = self.value(op, kind)
        self.nodes.append(ir.node(op, list(inputs), attributes, outputs=[output], name=output.name))
        return output

    def round(self, value: ir.Value) -> ir.Value:
        """The value rounded to fp16."""
        target = self.value("accumulator", _FLOAT)
        self.nodes += round_value(value, target, "fp16")
        return target

    def value(self, part: str, kind: ir.TensorType, shape: ir.Shape | None = None) -> ir.Value:
        """A new value."""
        return ir.Value(name=self.graph.free_name(f"{self.name}/{part}"), type=kind, shape=shape)

    def weight(self, part: str, values: NDArray[Any]) -> ir.Value:
        """A new weight."""
        return self.graph.add_weight(f"{self.name}/{part}", values)

    def integer(self, *values: int) -> ir.Value:
        """A weight of these integers; without a dimension if there is one."""
        array = np.array(values[0] if len(values) == 1 else values, np.int64)
        return self.graph.shared_weight(f"__{'_'.join(map(str, values))}", array)

    def loop(self, block: Callable[[_Nodes, ir.Value], ir.Value], later: ir.Value) -> ir.Value:
        """The sum of all blocks, rounded after each.

        Args:
            block: Makes the nodes that sum the products of one block, given its index.
            later: The number of blocks after the first.
        """
        first = self.round(block(self, self.integer(0)))
        body, scalar = _Nodes(self.graph, self.name), ir.Shape([])
        step, go_on = self.value("step", _INT, scalar), self.value("go_on", _BOOL, scalar)
        before = self.value("before", _FLOAT)
        index = body.add("Add", step, self.integer(1), kind=_INT)
        after = body.round(body.add("Add", before, block(body, index)))
        still = body.add("Identity", go_on, kind=_BOOL)
        graph = ir.Graph([step, go_on, before], [still, after], nodes=body.nodes, name=f"{self.name}/loop")
        return self.add("Loop", later, None, first, body=graph)


def _accumulate_product(nodes: _Nodes, node: ir.Node) -> ir.Value | None:
    """Blocks along the dimension that a matrix product sums over."""
    left, right = node.inputs[:2]
    if node.attributes.get_int("transA", 0):
        left = nodes.add("Transpose", left)
    if node.attributes.get_int("transB", 0):
        right = nodes.add("Transpose", right)
    vector = right is not None and right.shape is not None and len(right.shape) == 1

    def block(part: _Nodes, index: ir.Value) -> ir.Value:
        size = part.graph.shared_weight("__block", np.array([BLOCK], np.int64))
        start = part.add("Mul", index, size, kind=_INT)
        end = part.add("Add", start, size, kind=_INT)
        axes = [part.graph.shared_weight(f"__axis_{-a}", np.array([a], np.int64)) for a in (-1, -1 if vector else -2)]
        cuts = [part.add("Slice", value, start, end, axis) for value, axis in zip((left, right), axes, strict=True)]
        return part.add("MatMul", *cuts)

    depth = nodes.add("Gather", nodes.add("Shape", left, kind=_INT), nodes.integer(-1), kind=_INT)
    later = nodes.add("Div", nodes.add("Sub", depth, nodes.integer(1), kind=_INT), nodes.integer(BLOCK), kind=_INT)
    total = _scaled(nodes, node, "alpha", nodes.loop(block, later))
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    return total if bias is None else nodes.add("Add", total, _scaled(nodes, node, "beta", bias))


def _scaled(nodes: _Nodes, node: ir.Node, name: str, value: ir.Value) -> ir.Value:
    """The value times a factor that is an attribute of the node."""
    factor = node.attributes.get_float(name, 1.0)
    return value if factor == 1 else nodes.add("Mul", value, nodes.weight(name, np.array(factor, np.float32)))


def _accumulate_convolution(nodes: _Nodes, node: ir.Node) -> ir.Value | None:
    """Blocks of channels and positions of the kernel, the others masked out."""
    data, weight = node.inputs[:2]
    values = nodes.graph.constant(weight)
    if values is None:
        return None
    groups, axis = node.attributes.get_int("group", 1), 0 if node.op_type == "ConvTranspose" else 1
    channels = values.shape[axis] // (groups if axis == 0 else 1)
    picked, masks = _split_kernel(channels, values.shape[2:])
    if len(masks) == 1:
        return None
    of_data = (np.arange(groups)[None, :, None] * channels + picked[:, None]).reshape(len(masks), -1)
    of_weight = picked
    if axis == 0:  # the weights of all groups stand along one axis
        of_weight, masks = of_data, np.tile(masks, (1, groups, *[1] * (masks.ndim - 2)))
    channel, row, mask = (
        nodes.weight(name, table)
        for name, table in (("channel", of_data), ("row", of_weight), ("mask", np.expand_dims(masks, 2 - axis)))
    )

    def block(part: _Nodes, index: ir.Value) -> ir.Value:
        x = part.add("Gather", data, part.add("Gather", channel, index, kind=_INT), axis=1)
        w = part.add("Gather", weight, part.add("Gather", row, index, kind=_INT), axis=axis)
        masked = part.add("Mul", w, part.add("Gather", mask, index))
        attributes: dict[str, Any] = dict(node.attributes)
        return part.add(node.op_type, x, masked, **attributes)

    total = nodes.loop(block, nodes.integer(len(masks) - 1))
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is None:
        return total
    shape = nodes.weight("shape", np.array([-1, *[1] * (values.ndim - 2)], np.int64))
    return nodes.add("Add", total, nodes.add("Reshape", bias, shape))


def _split_kernel(channels: int, kernel: tuple[int, ...]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """For each block which channels of a group it takes, and which of their weights: (blocks, c), (blocks, c, *kernel).

    A block that does not fill is filled with masked channels.
    """
    positions = math.prod(kernel)
    width = min(BLOCK, channels)
    at_once = max(1, BLOCK // channels)
    picked, masks = [], []
    for position in range(0, positions, at_once):
        for channel in range(0, channels, width):
            row = np.arange(channel, channel + width)
            mask = np.zeros((width, positions), np.float32)
            mask[row < channels, position : position + at_once] = 1
            picked.append(np.minimum(row, channels - 1))
            masks.append(mask.reshape(width, *kernel))
    return np.array(picked, np.int64), np.array(masks)
