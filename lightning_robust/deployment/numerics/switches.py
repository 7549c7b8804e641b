"""An fp32 graph whose layers can be switched to another precision at run time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnx_ir as ir

from lightning_robust.deployment.numerics.emulate import Emulation, to_model
from lightning_robust.deployment.numerics.operators import TENSOR_CORE
from lightning_robust.deployment.numerics.precisions import OutOfRange, Precision

SWITCHES = "low_precision"
"""Name of the input that :func:`switchable` adds."""
_TF32 = ""  # the key of the last switch, which belongs to no layer


def switchable(
    model: onnx.ModelProto, precision: Precision, *, out_of_range: OutOfRange = "clamp", tf32: bool = False
) -> tuple[onnx.ModelProto, dict[str, int]]:
    """Build the graph in which each layer can be switched to another precision at run time.

    It has one more input, :data:`SWITCHES`, bools of shape ``(layers,)``: where true, the layer computes as in
    :func:`~.emulate.emulate`, else in fp32. One session then answers what any set of nodes costs; all off is the fp32
    graph, all on is that of ``emulate``. What is off costs one test a value, not a rounding.

    Args:
        model: As for :func:`~.emulate.emulate`.
        precision: ``"fp16"``, ``"bf16"`` or ``"tf32"``.
        out_of_range: As for :func:`~.emulate.emulate`.
        tf32: Add one more switch, the last: where true, what stays fp32 multiplies in TF32.

    Returns:
        The graph, and node -> position of its switch in the graph's order: all that read or compute values in
        `precision`, for ``"tf32"`` convolutions and matrix products. A BatchNormalization and the convolution that it
        is folded into have one switch.

    Raises:
        ValueError: As :func:`~.emulate.emulate`.
    """
    emulation = _SwitchableEmulation(model, precision, out_of_range=out_of_range, tf32=tf32)
    built = to_model(emulation.build())
    nodes = [node.name for node in model.graph.node]
    layers = emulation.layered.layers
    switches = {name: emulation.switches.get(layers.get(name, name)) for name in nodes}
    return built, {name: position for name, position in switches.items() if position is not None}


def choose_value(switch: ir.Value, steps: Sequence[ir.Node], off: ir.Value, target: ir.Value) -> ir.Node:
    """A node that computes one of two values, and not the other.

    Args:
        switch: A bool.
        steps: Nodes of which the last computes the value where the switch is on.
        off: The value where it is off.
        target: What is computed.
    """
    kind = ir.TensorType(ir.DataType.FLOAT)
    on, passed = steps[-1].outputs[0], ir.Value(name=f"{target.name}__passed", type=kind)
    on.type = kind
    passing = [ir.node("Identity", [off], outputs=[passed])]
    branches = {
        name: ir.Graph([], [output], nodes=nodes, name=name)
        for name, output, nodes in (("then_branch", on, steps), ("else_branch", passed, passing))
    }
    return ir.node("If", [switch], branches, outputs=[target], name=f"choose/{target.name}")


class _SwitchableEmulation(Emulation):
    """The emulation with a switch for each layer.

    Attributes:
        switches: Layer -> position of its switch.
    """

    def __init__(self, model: onnx.ModelProto, precision: Precision, *, out_of_range: OutOfRange, tf32: bool) -> None:
        super().__init__(model, precision, out_of_range=out_of_range, tf32=tf32)
        self.switches: dict[str, int] = {}
        self._values: dict[str, ir.Value] = {}
        self._in_tf32: dict[ir.Value, ir.Value] = {}
        self._switches = ir.Value(name=SWITCHES, type=ir.TensorType(ir.DataType.BOOL))

    def build(self) -> ir.Model:
        model = super().build()
        self._switches.shape = ir.Shape([len(self.switches) + self._tf32])
        self._graph.inputs.append(self._switches)
        return model

    def _precision_of(self, node: ir.Node) -> Precision | None:
        precision = super()._precision_of(node)
        if precision == "tf32" and self._plan is not None:  # fp32 whatever is asked, and TF32 where that is allowed
            self._switch = self._value_of_switch(node, _TF32, -1)
            return precision
        casts = self._plan is not None and node.op_type == "Cast" and self.layered.is_float(node.outputs[0])
        if precision is not None or casts:  # a cast is rounded where it is read, and yet it is a layer
            layer = self.layered.layer(node)
            self._switch = self._value_of_switch(node, layer, self.switches.setdefault(layer, len(self.switches)))
        return precision

    def _value_of_switch(self, node: ir.Node, key: str, position: int) -> ir.Value:
        """The switch at a position, in front of the first node that asks for it."""
        if key not in self._values:
            name = f"{SWITCHES}/{position}"
            index = self.layered.add_weight(f"{name}/index", np.array(position))
            self._values[key] = ir.Value(name=name)
            gather = ir.node("Gather", [self._switches, index], outputs=[self._values[key]], name=name)
            self._graph.insert_before(node, gather)
        return self._values[key]

    def _read(self, node: ir.Node, index: int, value: ir.Value, precision: Precision) -> ir.Value:
        if value.is_initializer() and not value.is_graph_input():
            self._round_weight(value, precision)
        target = ir.Value(name=self.layered.free_name(f"{value.name}__{node.name}_{index}"))
        multiplies = node.op_type in TENSOR_CORE and any(value is read for _, read in self._operands(node, "tf32"))
        off = self._read_in_tf32(node, value) if self._tf32 and self._plan is not None and multiplies else value
        self._graph.insert_before(node, self._choose(self._switch, value, target, precision, off))
        return target

    def _read_in_tf32(self, node: ir.Node, value: ir.Value) -> ir.Value:
        """What a product in fp32 reads: the value, in TF32 where the last switch allows it."""
        if value not in self._in_tf32:
            if value.is_initializer() and not value.is_graph_input():
                self._round_weight(value, "tf32")
            wide = self._in_tf32[value] = ir.Value(name=self.layered.free_name(f"{value.name}__wide"))
            switch = self._value_of_switch(node, _TF32, -1)
            self._graph.insert_before(node, self._choose(switch, value, wide, "tf32", value))
        return self._in_tf32[value]

    def _round(self, source: ir.Value, target: ir.Value, precision: Precision) -> list[ir.Node]:
        return [self._choose(self._switch, source, target, precision, source)]

    def _choose(
        self, switch: ir.Value, source: ir.Value, target: ir.Value, precision: Precision, off: ir.Value
    ) -> ir.Node:
        """``target`` is ``source``, rounded, if the switch is on, else ``off``."""
        rounded = ir.Value(name=f"{target.name}__rounded")
        if (source, precision) in self._rounded:
            rounding = [ir.node("Identity", [self._rounded[source, precision]], outputs=[rounded])]
        else:
            rounding = super()._round(source, rounded, precision)
        return choose_value(switch, rounding, off, target)
