"""An fp32 graph whose layers can be switched to another precision at run time."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

from lightning_robust.deployment.numerics.emulate import Emulation, to_model
from lightning_robust.deployment.numerics.rounding import OutOfRange, Precision

SWITCHES = "low_precision"
"""Name of the input that :func:`switchable` adds."""


def switchable(
    model: onnx.ModelProto, precision: Precision, *, out_of_range: OutOfRange = "clamp"
) -> tuple[onnx.ModelProto, dict[str, int]]:
    """Build the graph in which each layer can be switched to another precision at run time.

    It has one more input, :data:`SWITCHES`, bools of shape ``(layers,)``: where true, the layer computes as in
    :func:`~.emulate.emulate`, else in fp32. One session then answers what any set of nodes costs; all off is the fp32
    graph, all on is that of ``emulate``. What is off costs one test a value, not a rounding.

    Args:
        model: As for :func:`~.emulate.emulate`.
        precision: ``"fp16"``, ``"bf16"`` or ``"tf32"``.
        out_of_range: As for :func:`~.emulate.emulate`.

    Returns:
        The graph, and node -> position of its switch in the graph's order: all that read or compute values in
        `precision`, for ``"tf32"`` convolutions and matrix products. A BatchNormalization and the convolution that it
        is folded into have one switch.

    Raises:
        ValueError: As :func:`~.emulate.emulate`.
    """
    emulation = _SwitchableEmulation(model, precision, out_of_range=out_of_range)
    built = to_model(emulation.build())
    nodes = [node.name for node in model.graph.node]
    layers = emulation.layered.layers
    switches = {name: emulation.switches.get(layers.get(name, name)) for name in nodes}
    return built, {name: position for name, position in switches.items() if position is not None}


class _SwitchableEmulation(Emulation):
    """The emulation with a switch for each layer.

    Attributes:
        switches: Layer -> position of its switch.
    """

    def __init__(self, model: onnx.ModelProto, precision: Precision, *, out_of_range: OutOfRange) -> None:
        super().__init__(model, precision, out_of_range=out_of_range)
        self.switches: dict[str, int] = {}
        self._values: dict[str, ir.Value] = {}
        self._switches = ir.Value(name=SWITCHES, type=ir.TensorType(ir.DataType.BOOL))

    def build(self) -> ir.Model:
        model = super().build()
        self._switches.shape = ir.Shape([len(self.switches)])
        self._graph.inputs.append(self._switches)
        return model

    def _precision_of(self, node: ir.Node) -> Precision | None:
        precision = super()._precision_of(node)
        casts = self._plan is not None and node.op_type == "Cast" and self.layered.is_float(node.outputs[0])
        if precision is not None or casts:  # a cast is rounded where it is read, and yet it is a layer
            self._switch = self._value_of_switch(node)
        return precision

    def _value_of_switch(self, node: ir.Node) -> ir.Value:
        """The switch of the node's layer, in front of it."""
        layer = self.layered.layer(node)
        if layer not in self.switches:
            name = f"{SWITCHES}/{len(self.switches)}"
            index = self.layered.add_weight(f"{name}/index", np.array(len(self.switches)))
            self._values[layer] = ir.Value(name=name)
            gather = ir.node("Gather", [self._switches, index], outputs=[self._values[layer]], name=name)
            self._graph.insert_before(node, gather)
            self.switches[layer] = len(self.switches)
        return self._values[layer]

    def _read(self, node: ir.Node, index: int, value: ir.Value, precision: Precision) -> ir.Value:
        if value.is_initializer() and not value.is_graph_input():
            self._round_weight(value, precision)
        target = ir.Value(name=self.layered.free_name(f"{value.name}__{node.name}_{index}"))
        self._graph.insert_before(node, self._round(value, target, precision))
        return target

    def _round(self, source: ir.Value, target: ir.Value, precision: Precision) -> list[ir.Node]:
        """``target`` is ``source``, rounded if the switch of the last node is on."""
        kind = ir.TensorType(ir.DataType.FLOAT)
        rounded, passed = (ir.Value(name=f"{target.name}__{end}", type=kind) for end in ("rounded", "passed"))
        if (source, precision) in self._rounded:
            rounding = [ir.node("Identity", [self._rounded[source, precision]], outputs=[rounded])]
        else:
            rounding = super()._round(source, rounded, precision)
        passing = [ir.node("Identity", [source], outputs=[passed])]
        branches = {
            name: ir.Graph([], [output], nodes=nodes, name=name)
            for name, output, nodes in (("then_branch", rounded, rounding), ("else_branch", passed, passing))
        }
        return [ir.node("If", [self._switch], branches, outputs=[target], name=f"choose/{target.name}")]
