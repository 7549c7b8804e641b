"""Half-precision arithmetic on any CPU: an fp32 graph whose values are rounded as an engine would round them.

ONNX Runtime's CPU provider does not compute in fp16: it casts weights and keeps every intermediate in fp32, so that
an overflow inside the network stays unseen. Rounding each value explicitly shows it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from lightning_robust.deployment.graph.types import element_types

Precision = Literal["fp16", "bf16", "tf32"]

MOVES = frozenset(
    [
        "Concat",
        "DepthToSpace",
        "Expand",
        "Flatten",
        "Gather",
        "GatherElements",
        "GatherND",
        "Identity",
        "Pad",
        "Reshape",
        "Shape",
        "Slice",
        "SpaceToDepth",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
        "Where",
    ]
)
"""Operators that only move values: their results are as rounded as their inputs."""
SWITCHES = "low_precision"
"""Name of the input that :func:`switchable` adds."""
# Operators that an engine computes on tensor cores when TF32 is allowed.
_TENSOR_CORE = frozenset(["Conv", "ConvTranspose", "Gemm", "MatMul"])
_CAST = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
_TF32_SPLIT = float(2**13 + 1)
_TF32_LIMIT = float(2**100)


def emulate(model: onnx.ModelProto, precision: Precision, keep_fp32: Collection[str] = ()) -> onnx.ModelProto:
    r"""Build the fp32 graph that computes what an engine in another precision would compute.

    For ``"fp16"`` and ``"bf16"`` every weight, every input and the result of every floating-point node is rounded to
    the nearest representable value, :math:`y = \mathrm{fp32}(\mathrm{fp16}(f(x)))`, with sums accumulated in fp32.
    For ``"tf32"`` the operands of convolutions and matrix products are rounded to 10 mantissa bits (Veltkamp's
    split), everything else stays fp32: what a GPU does when TF32 is allowed.

    An engine fuses nodes and then rounds less often (smaller error); one that accumulates in fp16 errs more.

    Args:
        model: fp32 graph as from :func:`~lightning_robust.deployment.graph.export.export`.
        precision: ``"fp16"``, ``"bf16"`` or ``"tf32"``.
        keep_fp32: Names of nodes that compute in fp32 on unrounded weights. Their results are rounded where a node
            that is not kept reads them; what they read from such a node has been rounded.

    Returns:
        A new graph with the same inputs and outputs, both fp32. The given one is left alone.

    Raises:
        ValueError: For an unknown precision, an unknown node name, or a graph with subgraphs (If, Loop, Scan).

    Example:
        >>> x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
        >>> y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
        >>> graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"], "act")], "g", [x], [y])
        >>> [node.op_type for node in emulate(helper.make_model(graph), "fp16").graph.node]
        ['Cast', 'Cast', 'Relu', 'Cast', 'Cast']
    """
    if precision not in ("fp16", "bf16", "tf32"):
        raise ValueError(f"Expected `precision` to be 'fp16', 'bf16' or 'tf32', but got {precision!r}.")
    _check_nodes(model.graph, keep_fp32)
    return _Emulation(model, precision, frozenset(keep_fp32)).build()


def round_array(values: NDArray[np.float32], precision: Precision) -> NDArray[np.float32]:
    """Round an fp32 array to the nearest value of another precision, ties to even; too large becomes infinity.

    Example:
        >>> round_array(np.array([1.0005, 7e4], np.float32), "fp16").tolist()
        [1.0009765625, inf]
    """
    with np.errstate(over="ignore"):
        if precision == "fp16":
            return values.astype(np.float16).astype(np.float32)
        dropped = {"bf16": 16, "tf32": 13}[precision]
        bits = values.view(np.uint32).astype(np.uint64)
        even = (bits >> dropped) & 1
        rounded = ((bits + (1 << (dropped - 1)) - 1 + even) >> dropped << dropped).astype(np.uint32)
        return np.where(np.isfinite(values), rounded.view(np.float32), values)


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
    if precision not in ("fp16", "bf16", "tf32"):
        raise ValueError(f"Expected `precision` to be 'fp16', 'bf16' or 'tf32', but got {precision!r}.")
    _check_nodes(model.graph, ())
    emulation = _Switchable(model, precision, frozenset())
    return emulation.build(), tuple(emulation.switches)


class _Emulation:
    """One pass over the nodes that rounds what each reads and computes; no value is rounded twice.

    A node that computes in half precision stores half: what a node kept in fp32 reads from it has lost its bits.
    """

    def __init__(self, model: onnx.ModelProto, precision: Precision, keep: frozenset[str]) -> None:
        self._model = onnx.ModelProto()
        self._model.CopyFrom(model)
        self._precision: Precision = precision
        self._keep = keep
        self._types = element_types(model)
        self._initializers = {tensor.name: tensor for tensor in self._model.graph.initializer}
        self._rounded: dict[str, str] = {}
        self._exact: set[str] = set()  # values that rounding would not change
        self._nodes: list[onnx.NodeProto] = []

    def build(self) -> onnx.ModelProto:
        graph = self._model.graph
        if self._precision == "tf32":
            self._add_constants()
        for node in list(graph.node):
            self._add(node)
        del graph.node[:], graph.value_info[:]
        graph.node.extend(self._nodes)
        _drop_unused(graph)
        return self._model

    def _add(self, node: onnx.NodeProto) -> None:
        narrow = node.name not in self._keep and self._is_floating(node)
        if narrow:
            operands = 2 if self._precision == "tf32" else len(node.input)  # a bias is added in fp32
            for index, name in enumerate(node.input[:operands]):
                if self._types.get(name) == TensorProto.FLOAT:
                    node.input[index] = self._read(node, index, name)
        self._nodes.append(node)
        if narrow and self._precision != "tf32":
            for index, name in enumerate(node.output):
                if self._types.get(name) == TensorProto.FLOAT:
                    self._write(node, index, name)

    def _is_floating(self, node: onnx.NodeProto) -> bool:
        if self._precision == "tf32":
            return node.op_type in _TENSOR_CORE
        return any(self._types.get(name) == TensorProto.FLOAT for name in (*node.input, *node.output))

    def _read(self, node: onnx.NodeProto, index: int, name: str) -> str:
        """The name under which a node in low precision reads a value."""
        return self._round(name)

    def _write(self, node: onnx.NodeProto, index: int, name: str) -> None:
        """Round what a node in low precision computed."""
        if node.op_type not in MOVES:
            node.output[index] = f"{name}__exact"
            self._nodes.extend(self._cast(f"{name}__exact", name))
        self._exact.add(name)

    def _round(self, name: str) -> str:
        if name in self._exact:
            return name
        if name not in self._rounded:
            target = f"{name}__{self._precision}"
            self._rounded[name] = target
            if name in self._initializers:
                self._round_weight(name, target)
            else:
                self._nodes.extend(self._steps(name, target))
        return self._rounded[name]

    def _round_weight(self, name: str, target: str) -> None:
        values = numpy_helper.to_array(self._initializers[name])
        rounded = round_array(np.ascontiguousarray(values), self._precision)
        self._model.graph.initializer.append(numpy_helper.from_array(rounded, target))

    def _steps(self, source: str, target: str) -> list[onnx.NodeProto]:
        return self._split(source, target) if self._precision == "tf32" else self._cast(source, target)

    def _cast(self, source: str, target: str) -> list[onnx.NodeProto]:
        narrow = f"{target}__narrow"
        return [
            helper.make_node("Cast", [source], [narrow], f"round/{target}", to=_CAST[self._precision]),
            helper.make_node("Cast", [narrow], [target], f"widen/{target}", to=TensorProto.FLOAT),
        ]

    def _split(self, source: str, target: str) -> list[onnx.NodeProto]:
        """Veltkamp: with c = x (2^13 + 1), c - (c - x) is x rounded to 11 significant bits."""

        def node(op: str, inputs: list[str], output: str) -> onnx.NodeProto:
            return helper.make_node(op, inputs, [output], f"round/{output}")

        return [
            node("Mul", [source, "__tf32_split"], f"{target}__scaled"),
            node("Sub", [f"{target}__scaled", source], f"{target}__rest"),
            node("Sub", [f"{target}__scaled", f"{target}__rest"], f"{target}__head"),
            node("Abs", [source], f"{target}__size"),
            node("Less", [f"{target}__size", "__tf32_limit"], f"{target}__small"),
            node("Where", [f"{target}__small", f"{target}__head", source], target),
        ]

    def _add_constants(self) -> None:
        for name, value in (("__tf32_split", _TF32_SPLIT), ("__tf32_limit", _TF32_LIMIT)):
            self._model.graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), name))


class _Switchable(_Emulation):
    """The same with a switch before every rounding."""

    def __init__(self, model: onnx.ModelProto, precision: Precision, keep: frozenset[str]) -> None:
        super().__init__(model, precision, keep)
        self.switches: list[str] = []

    def build(self) -> onnx.ModelProto:
        model = super().build()
        model.graph.input.append(helper.make_tensor_value_info(SWITCHES, TensorProto.BOOL, [len(self.switches)]))
        return model

    def _add(self, node: onnx.NodeProto) -> None:
        if self._is_floating(node):
            switch = f"{SWITCHES}/{len(self.switches)}"
            index = numpy_helper.from_array(np.array(len(self.switches)), f"{switch}/index")
            self._model.graph.initializer.append(index)
            self._nodes.append(helper.make_node("Gather", [SWITCHES, index.name], [switch], switch))
            self.switches.append(node.name)
        super()._add(node)

    def _read(self, node: onnx.NodeProto, index: int, name: str) -> str:
        if name in self._initializers and name not in self._rounded:
            self._rounded[name] = f"{name}__{self._precision}"
            self._round_weight(name, self._rounded[name])
        return self._choose(name, f"{name}__read{len(self.switches)}_{index}")

    def _write(self, node: onnx.NodeProto, index: int, name: str) -> None:
        if node.op_type not in MOVES:
            node.output[index] = f"{name}__exact"
            self._choose(f"{name}__exact", name)

    def _choose(self, source: str, target: str) -> str:
        """``target`` is ``source``, rounded if the switch of the last node is on."""
        inner = f"{target}__rounded"
        if source in self._rounded:
            rounding = [helper.make_node("Identity", [self._rounded[source]], [inner])]
        else:
            rounding = self._steps(source, inner)
        passing = [helper.make_node("Identity", [source], [f"{target}__passed"])]
        branches = {
            name: helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(out, TensorProto.FLOAT, None)])
            for name, nodes, out in (
                ("then_branch", rounding, inner),
                ("else_branch", passing, f"{target}__passed"),
            )
        }
        switch = f"{SWITCHES}/{len(self.switches) - 1}"
        self._nodes.append(helper.make_node("If", [switch], [target], f"choose/{target}", **branches))
        return target


def _check_nodes(graph: onnx.GraphProto, names: Iterable[str]) -> None:
    known = {node.name for node in graph.node}
    unknown = sorted(set(names) - known)
    if unknown:
        raise ValueError(f"Expected `keep_fp32` to name nodes of the graph, but got {unknown}.")
    for node in graph.node:
        if any(attribute.HasField("g") for attribute in node.attribute):
            raise ValueError(
                f"Expected a graph without subgraphs, but node {node.name!r} ({node.op_type}) has one. "
                "Replace data-dependent control flow by tensor operations."
            )


def _drop_unused(graph: onnx.GraphProto) -> None:
    used = {name for node in graph.node for name in _read_names(node)} | {value.name for value in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _read_names(node: onnx.NodeProto) -> Iterator[str]:
    """All that a node reads, in its branches too."""
    yield from node.input
    for attribute in node.attribute:
        for inner in attribute.g.node:
            yield from _read_names(inner)
