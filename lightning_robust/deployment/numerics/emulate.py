"""Half-precision arithmetic on any CPU: an fp32 graph whose values are rounded as an engine would round them.

ONNX Runtime's CPU provider does not compute in fp16: it casts weights and keeps every intermediate in fp32, so that
an overflow inside the network stays unseen. Rounding each value explicitly shows it.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import get_args

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto

from lightning_robust.deployment.graph.types import element_types
from lightning_robust.deployment.numerics.operators import MOVES, TENSOR_CORE
from lightning_robust.deployment.numerics.preconditions import check_graph, check_names
from lightning_robust.deployment.numerics.rounding import (
    TF32_FACTOR,
    TF32_LIMIT,
    Precision,
    round_array,
    round_value,
    split_value,
)

SWITCHES = "low_precision"
"""Name of the input that :func:`switchable` adds."""


def emulate(model: onnx.ModelProto, precision: Precision, keep_fp32: Collection[str] = ()) -> onnx.ModelProto:
    r"""Build the fp32 graph that computes what an engine in another precision would compute.

    For ``"fp16"`` and ``"bf16"`` every weight, every input and the result of every floating-point node is rounded to
    the nearest representable value, :math:`y = \mathrm{fp32}(\mathrm{fp16}(f(x)))`, with sums accumulated in fp32.
    For ``"tf32"`` the operands of convolutions and matrix products are rounded to 10 mantissa bits (Veltkamp's
    split), everything else stays fp32: what a GPU does when TF32 is allowed.

    An engine fuses nodes and then rounds less often (smaller error); one that accumulates in fp16 errs more.

    Args:
        model: fp32 graph as from :func:`~lightning_robust.deployment.graph.export.export`. It is not changed.
        precision: ``"fp16"``, ``"bf16"`` or ``"tf32"``.
        keep_fp32: Names of nodes that compute in fp32 on unrounded weights. Their results are rounded where a node
            that is not kept reads them; what they read from such a node has been rounded.

    Returns:
        A new graph with the same inputs and outputs, both fp32.

    Raises:
        ValueError: For an unknown precision, an unknown node name, sparse weights, or a graph with subgraphs (If, Loop,
            Scan).

    Example:
        >>> from onnx import parser
        >>> text = "g (float[1] x) => (float[1] y) { [act] y = Relu(x) }"
        >>> model = parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> {text}')
        >>> [node.op_type for node in emulate(model, "fp16").graph.node]
        ['Cast', 'Cast', 'Relu', 'Cast', 'Cast']
    """
    return to_model(Emulation(model, precision, keep_fp32).build())


def switchable(model: onnx.ModelProto, precision: Precision) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Build the graph in which each floating-point node can be switched to another precision at run time.

    It has one more input, :data:`SWITCHES`, bools of shape ``(nodes,)``: where true, the node computes as in
    :func:`emulate`, else in fp32. One session then answers what any set of nodes costs; all off is the fp32 graph, all
    on is :func:`emulate`'s. What is off costs one test a value, not a rounding.

    Args:
        model: As for :func:`emulate`.
        precision: ``"fp16"``, ``"bf16"`` or ``"tf32"``.

    Returns:
        The graph, and the names of the nodes in the order of the switches: all that read or compute fp32 values, for
        ``"tf32"`` convolutions and matrix products.

    Raises:
        ValueError: As :func:`emulate`.
    """
    emulation = _SwitchableEmulation(model, precision)
    return to_model(emulation.build()), tuple(emulation.switched)


def to_model(model: ir.Model) -> onnx.ModelProto:
    """The ONNX model without its inferred types, which do not hold in a graph that was rewritten."""
    proto = ir.to_proto(model)
    del proto.graph.value_info[:]
    return proto


class Emulation:
    """One pass over the nodes that rounds what each reads and computes; no value is rounded twice.

    A node that computes in half precision stores half: what a node kept in fp32 reads from it has lost its bits.

    Args:
        model: As for :func:`emulate`.
        precision: ``"fp16"``, ``"bf16"`` or ``"tf32"``.
        keep_fp32: Names of nodes that compute in fp32.

    Attributes:
        types: Tensor name -> element type, of all tensors before the change.
        unrounded: Rounded output of a node -> the output before its rounding.
    """

    def __init__(self, model: onnx.ModelProto, precision: Precision, keep_fp32: Collection[str] = ()) -> None:
        if precision not in get_args(Precision):
            raise ValueError(f"Expected `precision` to be 'fp16', 'bf16' or 'tf32', but got {precision!r}.")
        check_graph(model.graph)
        check_names(model.graph, keep_fp32)
        self.unrounded: dict[ir.Value, ir.Value] = {}
        self._model = ir.from_proto(model)
        self._graph = self._model.graph
        self._keep = frozenset(keep_fp32)
        self._precision: Precision = precision
        self.types = element_types(model)
        self._rounded: dict[ir.Value, ir.Value] = {}
        self._exact: set[ir.Value] = set()  # values that rounding would not change

    def build(self) -> ir.Model:
        """Insert the roundings."""
        for node in tuple(self._graph):
            if node.name not in self._keep and self._is_floating(node):
                self._narrow(node)
        self._drop_unread_weights()
        return self._model

    def _is_floating(self, node: ir.Node) -> bool:
        if self._precision == "tf32":
            return node.op_type in TENSOR_CORE
        return any(self._is_float(value) for value in (*node.inputs, *node.outputs))

    def _is_float(self, value: ir.Value | None) -> bool:
        return value is not None and self.types.get(value.name or "") == TensorProto.FLOAT

    def _operands(self, node: ir.Node) -> list[tuple[int, ir.Value]]:
        """The floats that a node reads in the other precision; TF32 adds a bias in fp32."""
        values = node.inputs[:2] if self._precision == "tf32" else node.inputs
        return [(index, value) for index, value in enumerate(values) if value is not None and self._is_float(value)]

    def _narrow(self, node: ir.Node) -> None:
        """Let a node read and write values of the other precision."""
        for index, value in self._operands(node):
            node.replace_input_with(index, self._read(node, index, value))
        outputs = [value for value in node.outputs if self._is_float(value)]
        if node.op_type in MOVES:
            self._exact.update(outputs)
        elif self._precision != "tf32":
            self._graph.insert_after(node, [step for value in outputs for step in self._write(value)])

    def _read(self, node: ir.Node, index: int, value: ir.Value) -> ir.Value:
        """The value that a node in low precision reads in the place of one of its inputs."""
        if value in self._exact:
            return value
        if value.is_initializer():
            return self._round_weight(value)
        if value not in self._rounded:
            target = self._rounded[value] = ir.Value(name=f"{value.name}__{self._precision}")
            self._graph.insert_before(node, self._round(value, target))
        return self._rounded[value]

    def _write(self, value: ir.Value) -> list[ir.Node]:
        """Put a rounding between a node's output and all who read it, under the output's name."""
        rounded = ir.Value(name=value.name, type=value.type, shape=value.shape)
        value.replace_all_uses_with(rounded, replace_graph_outputs=True)
        value.name = f"{rounded.name}__exact"
        self._exact.add(rounded)
        self.unrounded[rounded] = value
        return self._round(value, rounded)

    def _round_weight(self, value: ir.Value) -> ir.Value:
        if value not in self._rounded and value.const_value is not None:
            weights = round_array(value.const_value.numpy(), self._precision)
            self._rounded[value] = self._add_weight(f"{value.name}__{self._precision}", weights)
        return self._rounded[value]

    def _round(self, source: ir.Value, target: ir.Value) -> list[ir.Node]:
        """The nodes that round one value into another."""
        if self._precision == "tf32":
            factor = self._add_weight("__tf32_split", np.array(TF32_FACTOR, np.float32))
            limit = self._add_weight("__tf32_limit", np.array(TF32_LIMIT, np.float32))
            return split_value(source, target, factor, limit)
        return round_value(source, target, self._precision)

    def _add_weight(self, name: str, values: np.ndarray) -> ir.Value:
        if name not in self._graph.initializers:
            self._graph.register_initializer(ir.Value(name=name, const_value=ir.tensor(values, name=name)))
        return self._graph.initializers[name]

    def _drop_unread_weights(self) -> None:
        # not onnx_ir's RemoveUnusedNodesPass, which drops nodes and outputs that a trace has to report
        for name, value in tuple(self._graph.initializers.items()):
            if not value.uses() and not value.is_graph_output():
                del self._graph.initializers[name]


class _SwitchableEmulation(Emulation):
    """The same with a switch before every rounding."""

    def __init__(self, model: onnx.ModelProto, precision: Precision) -> None:
        super().__init__(model, precision)
        self.switched: list[str] = []
        self._switches = ir.Value(name=SWITCHES, type=ir.TensorType(ir.DataType.BOOL))

    def build(self) -> ir.Model:
        model = super().build()
        self._switches.shape = ir.Shape([len(self.switched)])
        self._graph.inputs.append(self._switches)
        return model

    def _narrow(self, node: ir.Node) -> None:
        name = f"{SWITCHES}/{len(self.switched)}"
        index = self._add_weight(f"{name}/index", np.array(len(self.switched)))
        self._switch = ir.Value(name=name)
        gather = ir.node("Gather", [self._switches, index], outputs=[self._switch], name=name)
        self._graph.insert_before(node, gather)
        self.switched.append(node.name or "")
        super()._narrow(node)

    def _read(self, node: ir.Node, index: int, value: ir.Value) -> ir.Value:
        if value.is_initializer():
            self._round_weight(value)
        target = ir.Value(name=f"{value.name}__read{len(self.switched)}_{index}")
        self._graph.insert_before(node, self._round(value, target))
        return target

    def _round(self, source: ir.Value, target: ir.Value) -> list[ir.Node]:
        """``target`` is ``source``, rounded if the switch of the last node is on."""
        kind = ir.TensorType(ir.DataType.FLOAT)
        rounded, passed = (ir.Value(name=f"{target.name}__{end}", type=kind) for end in ("rounded", "passed"))
        if source in self._rounded:
            rounding = [ir.node("Identity", [self._rounded[source]], outputs=[rounded])]
        else:
            rounding = super()._round(source, rounded)
        passing = [ir.node("Identity", [source], outputs=[passed])]
        branches = {
            name: ir.Graph([], [output], nodes=nodes, name=name)
            for name, output, nodes in (("then_branch", rounded, rounding), ("else_branch", passed, passing))
        }
        return [ir.node("If", [self._switch], branches, outputs=[target], name=f"choose/{target.name}")]
