"""Half-precision arithmetic on any CPU: an fp32 graph whose values are rounded as an engine would round them.

ONNX Runtime's CPU provider does not compute in fp16: it casts weights and keeps every intermediate in fp32, so that
an overflow inside the network stays unseen. Rounding each value explicitly shows it.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto

from lightning_robust.checks import check_choices
from lightning_robust.deployment.graph.types import ONNX_DOMAIN
from lightning_robust.deployment.numerics.accumulate import accumulate_in_half
from lightning_robust.deployment.numerics.layers import nodes_within
from lightning_robust.deployment.numerics.operators import MOVES, TENSOR_CORE
from lightning_robust.deployment.numerics.plan import Plan, island_notes
from lightning_robust.deployment.numerics.precisions import OutOfRange, Precision
from lightning_robust.deployment.numerics.prepare import prepare
from lightning_robust.deployment.numerics.rounding import (
    SPLIT_FACTORS,
    SPLIT_LIMIT,
    is_beyond,
    round_array,
    round_value,
    split_value,
)

_BF16_CAST_OPSET = 13  # the first whose Cast knows bfloat16; below it values are split


def emulate(
    model: onnx.ModelProto,
    precision: Precision,
    keep_fp32: Collection[str] = (),
    *,
    out_of_range: OutOfRange = "clamp",
    tf32: bool = False,
    fp16_accumulators: bool = False,
) -> onnx.ModelProto:
    r"""Build the fp32 graph that computes what an engine in another precision would compute.

    For ``"fp16"`` and ``"bf16"`` the tensors that :func:`~.convert.to_half` makes half are rounded to the nearest
    representable value, :math:`y = \mathrm{fp32}(\mathrm{fp16}(f(x)))`, with sums accumulated in fp32; what it leaves
    in fp32 (:class:`~.plan.Plan` says what) is not. The graph is first brought into the form that parsers give it, see
    :func:`~.prepare.prepare`. For ``"tf32"`` the operands of convolutions and matrix products are rounded to 10
    mantissa bits (Veltkamp's split), everything else stays fp32: what a GPU does when TF32 is allowed.

    An engine fuses nodes and then rounds less often (smaller error); one that accumulates in fp16 errs more
    (``fp16_accumulators``), so that fp16 is an interval between the two.

    Args:
        model: fp32 graph as from :func:`~lightning_robust.deployment.graph.export.export`. It is not changed.
        precision: ``"fp16"``, ``"bf16"`` or ``"tf32"``.
        keep_fp32: Names of nodes that compute in fp32 on unrounded weights. Their results are rounded where a node
            that is not kept reads them; what they read from such a node has been rounded.
        out_of_range: What becomes of weights beyond the range of `precision`: ``"clamp"`` takes the nearest number in
            it, as TensorRT's builder does; ``"keep"`` keeps the nodes that read them in fp32; ``"inf"`` makes them
            infinite, as ``module.half()`` does. Values that are computed overflow whatever this says.
        tf32: Let convolutions and matrix products that stay fp32 compute in TF32, as in an engine that is built
            with TF32 allowed, which is ``trtexec``'s default.
        fp16_accumulators: Accumulate convolutions and matrix products in fp16, see :mod:`~.accumulate`.

    Returns:
        A new graph with the same inputs and outputs, both fp32.

    Raises:
        ValueError: For an unknown precision, an unknown node name, or sparse or external weights.

    Example:
        >>> from onnx import parser
        >>> text = "g (float[1] x) => (float[1] y) { [act] y = Relu(x) }"
        >>> model = parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> {text}')
        >>> [node.op_type for node in emulate(model, "fp16").graph.node]
        ['Cast', 'Cast', 'Relu', 'Cast', 'Cast']
    """
    emulation = Emulation(
        model, precision, keep_fp32, out_of_range=out_of_range, tf32=tf32, fp16_accumulators=fp16_accumulators
    )
    return to_model(emulation.build())


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
        out_of_range: As for :func:`emulate`.
        tf32: As for :func:`emulate`.
        fp16_accumulators: As for :func:`emulate`.

    Attributes:
        layered: The graph that is being rewritten.
        unrounded: Rounded output of a node -> the output before its rounding.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        precision: Precision,
        keep_fp32: Collection[str] = (),
        *,
        out_of_range: OutOfRange = "clamp",
        tf32: bool = False,
        fp16_accumulators: bool = False,
    ) -> None:
        check_choices(precision=(precision, Precision), out_of_range=(out_of_range, OutOfRange))
        self.layered = prepare(model, precision, keep_fp32)
        self.unrounded: dict[ir.Value, ir.Value] = {}
        self._graph = self.layered.graph
        self._precision, self._out_of_range = precision, out_of_range
        self._tf32, self._fp16_accumulators = tf32, fp16_accumulators
        self._plan = None if precision == "tf32" else Plan(self.layered, precision, out_of_range)
        self._islands = tuple(island_notes(self.layered))  # before loops of the emulation's own come in
        self._rounded: dict[tuple[ir.Value, Precision], ir.Value] = {}
        self._exact: set[ir.Value] = set()  # values that rounding would not change
        self._beyond: set[str] = set()
        self._narrowed = 0

    @property
    def changes_nothing(self) -> bool:
        """Whether the graph that was built rounds nothing."""
        return self._narrowed == 0

    @property
    def is_blind(self) -> bool:
        """Whether products are where nothing looks: in a graph without fp32, or within If, Loop and Scan."""
        within = (inner.op_type in TENSOR_CORE for node in self._graph for inner in nodes_within(node))
        return TensorProto.FLOAT not in self.layered.types.values() or any(within)

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines for a report on the graph that was built."""
        return self._islands if self._plan is None else self._plan.notes(self._beyond)

    def build(self) -> ir.Model:
        """Insert the roundings."""
        for node in tuple(self._graph):
            precision = self._precision_of(node)
            if precision is not None:
                self._narrowed += 1
                self._narrow(node, precision)
        self.layered.drop_unread_weights()
        return self.layered.model

    def _precision_of(self, node: ir.Node) -> Precision | None:
        """What the node computes in; None for fp32."""
        if self._plan is not None and self._is_low(node):
            return self._precision
        multiplies = node.op_type in TENSOR_CORE and node.domain in ONNX_DOMAIN
        kept = self.layered.is_kept(node)
        return "tf32" if multiplies and (self._tf32 if self._plan is not None else not kept) else None

    def _is_low(self, node: ir.Node) -> bool:
        """Whether the node reads or writes anything in half."""
        return self._plan is not None and bool(self._operands(node, self._precision) or self._outputs(node))

    def _operands(self, node: ir.Node, precision: Precision) -> list[tuple[int, ir.Value]]:
        """The floats that a node reads in a precision; TF32 adds a bias in fp32."""
        low = (True, True) if precision == "tf32" or self._plan is None else self._plan.reads[node]
        values = enumerate(node.inputs[: len(low)])
        return [(i, value) for i, value in values if value is not None and low[i] and self.layered.is_float(value)]

    def _outputs(self, node: ir.Node) -> list[ir.Value]:
        """The floats that a node writes in half."""
        if self._plan is None:
            return []
        pairs = zip(node.outputs, self._plan.writes[node], strict=True)
        return [value for value, is_low in pairs if is_low and self.layered.is_float(value)]

    def _narrow(self, node: ir.Node, precision: Precision) -> None:
        """Let a node read and write values of another precision."""
        for index, value in self._operands(node, precision):
            node.replace_input_with(index, self._read(node, index, value, precision))
        if precision == "tf32":
            return
        outputs = self._outputs(node)
        if node.op_type in MOVES:
            self._exact.update(outputs)
        elif node.op_type != "Cast":  # who reads an integer in half rounds it; who reads it in fp32 does not
            self._graph.insert_after(node, [step for value in outputs for step in self._write(value)])
        if self._fp16_accumulators and node.op_type in TENSOR_CORE:
            accumulate_in_half(self.layered, node)

    def _read(self, node: ir.Node, index: int, value: ir.Value, precision: Precision) -> ir.Value:
        """The value that a node in low precision reads in the place of one of its inputs."""
        if value in self._exact:
            return value
        if value.is_initializer() and not value.is_graph_input():
            return self._round_weight(value, precision)
        key = value, precision
        if key not in self._rounded:
            target = self._rounded[key] = ir.Value(name=self.layered.free_name(f"{value.name}__{precision}"))
            self._graph.insert_before(node, self._round(value, target, precision))
        return self._rounded[key]

    def _write(self, value: ir.Value) -> list[ir.Node]:
        """Put a rounding between a node's output and all who read it, under the output's name."""
        rounded = ir.Value(name=value.name, type=value.type, shape=value.shape)
        value.replace_all_uses_with(rounded, replace_graph_outputs=True)
        value.name = self.layered.free_name(f"{rounded.name}__exact")
        self._exact.add(rounded)
        self.unrounded[rounded] = value
        return self._round(value, rounded, self._precision)

    def _round_weight(self, value: ir.Value, precision: Precision) -> ir.Value:
        key = value, precision
        if key not in self._rounded and value.const_value is not None:
            weights = value.const_value.numpy()
            if precision != "tf32" and is_beyond(weights, precision):
                self._beyond.add(value.name or "")
            rounded = round_array(weights, precision, self._out_of_range)
            self._rounded[key] = self.layered.add_weight(f"{value.name}__{precision}", rounded)
        return self._rounded[key]

    def _round(self, source: ir.Value, target: ir.Value, precision: Precision) -> list[ir.Node]:
        """The nodes that round one value into another."""
        if precision == "fp16" or (precision == "bf16" and self.layered.version >= _BF16_CAST_OPSET):
            return round_value(source, target, precision)
        constants = (
            self.layered.shared_weight(f"__{precision}_{name}", np.array(value, np.float32))
            for name, value in (("factor", SPLIT_FACTORS[precision]), ("limit", SPLIT_LIMIT))
        )
        return split_value(source, target, *constants)
