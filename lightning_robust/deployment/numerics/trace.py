"""How far each node's values drift when a whole graph computes in low precision, in one run of bounded memory.

What a node costs at the outputs is measured in ``numerics/sensitivity.py``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from lightning_robust.deployment.graph.session import Session
from lightning_robust.deployment.graph.types import element_types
from lightning_robust.deployment.numerics.emulate import Precision, emulate

_OUTPUT = "rounding_trace"
_PREFIX = "narrow/"
_NUMBERS = 5


@dataclass(frozen=True)
class NodeTrace:
    r"""How far one node's values have drifted from fp32, everything before it and itself in low precision.

    Args:
        drift: :math:`\|h - f\| / \|f\|` of its first output, ``h`` in low precision, ``f`` in fp32; infinite where
            ``h`` is not finite and ``f`` is.
        overflow: Share of its values that were finite before they were rounded, and infinite after.
        nonfinite: Share of its values that are infinite or NaN, inherited ones included, and were not in fp32.
        flushed: Share of its values that rounding made zero.
    """

    drift: float
    overflow: float
    nonfinite: float
    flushed: float


def trace_rounding(
    model: onnx.ModelProto, feeds: Mapping[str, NDArray[np.generic]], precision: Precision
) -> dict[str, NodeTrace]:
    """Run a graph twice at once, in fp32 and in low precision, and compare every node.

    The numbers are reduced inside the graph, so that no intermediate value outlives its last reader.

    Args:
        model: fp32 graph.
        feeds: Input name -> array.
        precision: ``"fp16"``, ``"bf16"`` or ``"tf32"``.

    Returns:
        Node name -> :class:`NodeTrace`, for every node with a floating first output.
    """
    paired, names = _pair(model, precision)
    (numbers,) = Session(paired, optimise=False).run(feeds)
    numbers = numbers.reshape(len(names), _NUMBERS)
    return {name: _to_trace(*row) for name, row in zip(names, numbers.tolist(), strict=True)}


def _to_trace(error: float, size: float, overflow: float, nonfinite: float, flushed: float) -> NodeTrace:
    if nonfinite > 0 or not math.isfinite(error):
        drift = math.inf
    else:
        drift = math.sqrt(error / size) if size > 0 else (0.0 if error == 0 else math.inf)
    return NodeTrace(drift, overflow, nonfinite, flushed)


def _pair(model: onnx.ModelProto, precision: Precision) -> tuple[onnx.ModelProto, list[str]]:
    """The graph, its copy in low precision on the same inputs, and five numbers a node as the only output."""
    narrow = emulate(model, precision).graph
    paired = onnx.ModelProto()
    paired.CopyFrom(model)
    graph = paired.graph
    shared = {value.name for value in graph.input} | {""}

    def renamed(name: str) -> str:
        return name if name in shared else _PREFIX + name

    known = {tensor.name for tensor in graph.initializer}
    for tensor in narrow.initializer:
        copy = graph.initializer.add()
        copy.CopyFrom(tensor)
        copy.name = renamed(tensor.name)
    for node in narrow.node:
        copy_node = graph.node.add()
        copy_node.CopyFrom(node)
        copy_node.name = _PREFIX + node.name
        copy_node.input[:] = [renamed(name) for name in node.input]
        copy_node.output[:] = [renamed(name) for name in node.output]
    unrounded = {name for node in narrow.node for name in node.output} | known
    names: list[str] = []
    parts: list[str] = []
    types = element_types(model)
    for node in model.graph.node:
        value = node.output[0]
        if types.get(value) == TensorProto.FLOAT:
            exact = f"{value}__exact" if f"{value}__exact" in unrounded else value
            graph.node.extend(_compare(value, renamed(value), renamed(exact), f"trace/{len(names)}"))
            parts.append(f"trace/{len(names)}")
            names.append(node.name)
    graph.node.append(helper.make_node("Concat", parts, [_OUTPUT], "trace", axis=0))
    graph.initializer.append(numpy_helper.from_array(np.array(0, np.float32), "trace/zero"))
    graph.initializer.append(numpy_helper.from_array(np.array([-1]), "trace/flat"))
    del graph.output[:], graph.value_info[:]
    graph.output.append(helper.make_tensor_value_info(_OUTPUT, TensorProto.DOUBLE, [None]))
    return paired, names


def _compare(wide: str, narrow: str, exact: str, target: str) -> Iterator[NodeProto]:
    """Nodes that reduce one value's fp32 and low-precision versions to the numbers of :func:`_to_trace`."""

    def node(op: str, inputs: list[str], output: str, **attributes: Any) -> NodeProto:
        return helper.make_node(op, inputs, [f"{target}/{output}"], f"{target}/{output}", **attributes)

    def own(*names: str) -> list[str]:
        return [f"{target}/{name}" for name in names]

    yield node("Sub", [narrow, wide], "error32")
    yield node("Cast", own("error32"), "error64", to=TensorProto.DOUBLE)
    yield node("ReduceSumSquare", own("error64"), "error", keepdims=0)
    yield node("Cast", [wide], "wide64", to=TensorProto.DOUBLE)
    yield node("ReduceSumSquare", own("wide64"), "size", keepdims=0)
    for name, value in (("wide", wide), ("narrow", narrow), ("exact", exact)):
        # a finite value minus itself is zero, infinity and NaN minus themselves are NaN
        yield node("Sub", [value, value], f"{name}_self")
        yield node("Equal", [f"{target}/{name}_self", "trace/zero"], f"{name}_finite")
    yield node("Not", own("narrow_finite"), "lost")
    yield node("And", own("lost", "exact_finite"), "overflow_mask")
    yield node("And", own("lost", "wide_finite"), "nonfinite_mask")
    yield node("Equal", [narrow, "trace/zero"], "is_zero")
    yield node("Equal", [exact, "trace/zero"], "was_zero")
    yield node("Not", own("was_zero"), "was_something")
    yield node("And", own("is_zero", "was_something"), "flushed_mask")
    for name in ("overflow", "nonfinite", "flushed"):
        yield node("Cast", own(f"{name}_mask"), f"{name}_values", to=TensorProto.DOUBLE)
        yield node("ReduceMean", own(f"{name}_values"), name, keepdims=0)
    scalars = ("error", "size", "overflow", "nonfinite", "flushed")
    for name in scalars:
        yield node("Reshape", [f"{target}/{name}", "trace/flat"], f"{name}_flat")
    yield helper.make_node("Concat", own(*(f"{name}_flat" for name in scalars)), [target], target, axis=0)
