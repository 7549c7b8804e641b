"""What each product of a graph costs when it alone is quantised: its operands pass through int8 by a switch."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from lightning_robust.deployment.graph.origin import Origin
from lightning_robust.deployment.numerics.calibration import Ranges
from lightning_robust.deployment.numerics.emulate import to_model
from lightning_robust.deployment.numerics.layers import LayeredGraph
from lightning_robust.deployment.numerics.operators import QDQ
from lightning_robust.deployment.numerics.quantise import (
    is_quantised,
    prepare_products,
    products,
    quantise_products,
)
from lightning_robust.deployment.numerics.sweep import Measure, NodeSweep, relative_distance
from lightning_robust.deployment.numerics.switches import SWITCHES, choose_value
from lightning_robust.deployment.numerics.trace import NodeTrace, compare_nodes


class Int8Sweep(NodeSweep):
    """One ONNX Runtime session that answers what any set of products costs in int8.

    The ranges stay as they are whatever is switched, as they do in :func:`~.quantise.quantise_products`.

    Args:
        model: fp32 graph.
        feeds: Input name -> array.
        ranges: What int8 covers, from :func:`~.calibration.calibrate`.
        measure: As for :class:`~.sweep.NodeSweep`, and so are all that follow.
        unit: As there.
        origins: As there.
        kept: Names of nodes that are not quantised whatever is asked, as a user's ``exclude_int8`` has them.

    Raises:
        ValueError: If the graph is quantised already, cannot be quantised, or has no product to quantise.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        feeds: Mapping[str, NDArray[np.generic]],
        ranges: Ranges,
        *,
        measure: Measure = relative_distance,
        unit: str = "rel_l2",
        origins: Mapping[str, Origin] | None = None,
        kept: Collection[str] = (),
    ) -> None:
        if is_quantised(model):
            raise ValueError(
                "Expected an fp32 graph, but this one is quantised already, and its weights in fp32 are not known. "
                "Give the graph that it was made from."
            )
        self._ranges = ranges
        super().__init__(model, feeds, precision="int8", measure=measure, unit=unit, origins=origins, kept=kept)

    def _build(self) -> tuple[onnx.ModelProto, dict[str, int]]:
        graph = prepare_products(self._model, self._kept)
        self._kept |= {str(node.name) for node in products(graph) if graph.is_kept(node)}  # by its BatchNormalization
        return switchable_int8(self._model, self._ranges)

    def _trace(self) -> dict[str, NodeTrace]:
        narrow = ir.from_proto(quantise_products(self._model, self._ranges, self._kept).model).graph
        return compare_nodes(prepare_products(self._model, self._kept), narrow, self._feeds)


def switchable_int8(model: onnx.ModelProto, ranges: Ranges) -> tuple[onnx.ModelProto, dict[str, int]]:
    """Build the graph in which each product can be switched to int8 at run time.

    It has one more input, :data:`~.switches.SWITCHES`, bools of shape ``(products,)``: where true, the operands of the
    product pass through a quantisation of their own, else they are fp32. All off is the fp32 graph, all on is that of
    :func:`~.quantise.quantise_products`.

    Args:
        model: As there.
        ranges: As there.

    Returns:
        The graph, and product -> position of its switch in the graph's order.

    Raises:
        ValueError: As there, and where nothing can be quantised.
    """
    quantised = quantise_products(model, ranges)
    if not quantised.nodes:
        raise ValueError(f"Expected products to quantise, but got {'; '.join(quantised.notes)}.")
    switches = {name: position for position, name in enumerate(quantised.nodes)}
    graph, wide = LayeredGraph(ir.from_proto(quantised.model), {}, 0), prepare_products(model)
    originals = {node.name: node for node in wide.graph}
    switch = ir.Value(name=SWITCHES, type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([len(switches)]))
    graph.graph.inputs.append(switch)
    for node in tuple(graph.graph):
        if node.name in switches:
            _switch_operands(graph, node, _gather(graph, node, switch, switches[node.name]), wide, originals[node.name])
    graph.drop_unread_nodes(node for node in graph.graph if node.op_type in QDQ)
    return to_model(graph.model), switches


def _gather(graph: LayeredGraph, node: ir.Node, switches: ir.Value, position: int) -> ir.Value:
    """The switch at a position, in front of a node."""
    index = graph.add_weight(f"{SWITCHES}/{position}/index", np.array(position))
    return graph.add_node(node, "Gather", [switches, index], "switch", kind=ir.DataType.BOOL)


def _switch_operands(
    graph: LayeredGraph, node: ir.Node, switch: ir.Value, wide: LayeredGraph, original: ir.Node
) -> None:
    """Let a product read its operands through int8 where the switch is on, and else as they were."""
    for index, value in enumerate(tuple(node.inputs[:2])):
        target = ir.Value(name=graph.free_name(f"{node.name}/operand_{index}"))
        chain = _int8_steps(value)
        source = chain[0].inputs[0]
        if len(chain) == 1:  # a weight, stored as integers
            weight = wide.constant(original.inputs[index])
            source = None if weight is None else graph.add_weight(f"{target.name}/fp32", weight)
        if source is not None:
            graph.graph.insert_before(node, choose_value(switch, _copies(chain, str(target.name)), source, target))
            node.replace_input_with(index, target)


def _int8_steps(value: ir.Value | None) -> list[ir.Node]:
    """The nodes that take a value through int8, in order: both, or for a weight the second alone."""
    chain: list[ir.Node] = []
    while value is not None and (node := value.producer()) is not None and node.op_type in QDQ:
        chain.insert(0, node)
        value = node.inputs[0]
    return chain


def _copies(chain: Sequence[ir.Node], name: str) -> list[ir.Node]:
    """Copies of nodes in a row, the second of which reads the first."""
    copies: list[ir.Node] = []
    for node in chain:
        inputs = [copies[-1].outputs[0] if copies else node.inputs[0], *node.inputs[1:]]
        output = ir.Value(name=f"{name}/{node.op_type}")
        copies.append(ir.Node("", node.op_type, inputs, node.attributes.values(), outputs=[output]))
    return copies
