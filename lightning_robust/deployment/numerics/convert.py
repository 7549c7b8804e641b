"""fp32 ONNX to half precision for strongly typed engines: writes down the type of every tensor.

`numerics/plan.py` decides the types, `numerics/emulate.py` measures what they cost in accuracy; `graph/lint/` finds
what will overflow.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import onnx
import onnx_ir as ir

from lightning_robust.checks import check_choices
from lightning_robust.deployment.graph.types import ONNX_DOMAIN
from lightning_robust.deployment.numerics.layers import LayeredGraph
from lightning_robust.deployment.numerics.plan import Plan, is_of_containers
from lightning_robust.deployment.numerics.precisions import Half, OutOfRange
from lightning_robust.deployment.numerics.prepare import prepare
from lightning_robust.deployment.numerics.rounding import HALF_TYPES, cast_value, is_beyond, to_half_array


def to_half(
    model: onnx.ModelProto, dtype: Half = "fp16", keep_fp32: Collection[str] = (), out_of_range: OutOfRange = "clamp"
) -> onnx.ModelProto:
    """Convert an fp32 model so that it computes in fp16 or bf16, its inputs and outputs staying fp32.

    Every float tensor becomes half, but for the nodes of `keep_fp32` and those for which ONNX or their meaning demands
    float (Resize's scales, Range, NonMaxSuppression, quantisation, random numbers, operators of other domains, control
    flow with all that is in it): these compute in fp32 between casts. No tensor is cast twice. Weights are rounded to
    the nearest, ties to even. The graph is first brought into the form that parsers give it
    (:func:`~.prepare.prepare`): BatchNormalizations folded, Constant nodes as weights. A Cast of integers to float is
    kept fp32 where a kept node or an output reads it.

    The result is for engines. ONNX Runtime's CPU provider has no bf16 and computes fp16 in fp32; it loads most fp16
    graphs, but crashes the process on some (1.32 on an LSTM of PP-OCRv2), so open it in a process that may die. Use
    `numerics/emulate.py` for numbers.

    Args:
        model: As torch's exporter writes it: one graph, weights inside. It is not changed.
        dtype: "fp16" or "bf16". For bf16 a model of opset below 22 is raised to 22, where its operators take bf16.
        keep_fp32: Names of the nodes that compute in fp32. A BatchNormalization and the convolution that it would be
            folded into are kept together.
        out_of_range: What becomes of weights beyond the range of `dtype`: "clamp" takes the nearest number in it, as
            TensorRT's builder does; "keep" keeps the nodes that read them in fp32; "inf" makes them infinite, as
            `module.half()` does.

    Returns:
        The converted model, types inferred and checked, with the names of nodes, inputs and outputs it had.

    Raises:
        ValueError: A name in `keep_fp32` is not a node's; the model holds sequences, sparse or external weights,
            tensors or operators that ONNX cannot type; it cannot be raised to opset 22; the result is not valid ONNX.

    Example:
        >>> from onnx import parser
        >>> text = "g (float[2] x) => (float[2] y) { [sum] s = Add(x, x) [out] y = Exp(s) }"
        >>> model = parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> {text}')
        >>> [node.op_type for node in to_half(model).graph.node]
        ['Cast', 'Add', 'Exp', 'Cast']
        >>> [node.op_type for node in to_half(model, keep_fp32=["out"]).graph.node]
        ['Cast', 'Add', 'Cast', 'Exp']
    """
    return Conversion(model, dtype, keep_fp32, out_of_range).build()


class Conversion:
    """One conversion: casts between the tensors that the plan makes half and those that stay fp32, and rounds weights.

    Args:
        model: As for :func:`to_half`.
        dtype: The half type.
        keep_fp32: Names of nodes that compute in fp32.
        out_of_range: As for :func:`to_half`.

    Raises:
        ValueError: As :func:`to_half`.
    """

    def __init__(
        self, model: onnx.ModelProto, dtype: Half, keep_fp32: Collection[str] = (), out_of_range: OutOfRange = "clamp"
    ) -> None:
        check_choices(dtype=(dtype, Half), out_of_range=(out_of_range, OutOfRange))
        self._layered = prepare(model, dtype, keep_fp32, convert=True)
        _check_tensors(self._layered)
        self._graph = self._layered.graph
        self._plan = Plan(self._layered, dtype, out_of_range)
        self._dtype, self._out_of_range = dtype, out_of_range
        self._beyond: set[str] = set()
        values = [*self._graph.inputs, *self._graph.initializers.values()]
        values += [value for node in self._graph for value in node.outputs]
        self._floats = {value for value in values if self._layered.is_float(value)}

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines for a report on the model that was built."""
        return self._plan.notes(self._beyond)

    def build(self) -> onnx.ModelProto:
        """Retype the nodes, cast between types and round the weights."""
        nodes, graph = tuple(self._graph), self._graph
        casts = [step for value in graph.inputs for step in self._cast(value)]
        for node in nodes:
            self._rewrite(node)
        if casts:
            graph.insert_before(graph[0], casts)
        for value in tuple(graph.initializers.values()):
            if value in self._floats and not value.is_graph_input():
                self._convert_weight(value)
        return _infer_types(ir.to_proto(self._layered.model))

    def _rewrite(self, node: ir.Node) -> None:
        """Write the node's own type where an attribute says it, and cast what others read in the other type."""
        if node.op_type == "Cast" and node.outputs[0] in self._floats:
            if not node.outputs[0].uses() and not node.outputs[0].is_graph_output():
                self._graph.remove(node)
                return
            if any(self._plan.writes[node]):
                node.attributes["to"] = ir.AttrInt64("to", HALF_TYPES[self._dtype].value)
        self._graph.insert_after(node, [step for value in node.outputs for step in self._cast(value)])

    def _cast(self, value: ir.Value) -> list[ir.Node]:
        """The one cast of a float tensor to the type that it is not computed in, where that is read.

        An output of the graph keeps its name for its fp32 version, any other tensor for the version that is computed.
        """
        if value not in self._floats:
            return []
        is_half = self._plan.is_written_half(value)
        is_output = is_half and value.is_graph_output()
        readers = self._plan.readers(value, half=not is_half)
        if not readers and not is_output:
            return []
        kind = "fp32" if is_half and not is_output else self._dtype
        other = ir.Value(name=self._layered.free_name(f"{value.name}_{kind}"), type=value.type, shape=value.shape)
        _redirect(readers, other)
        if is_output:
            self._hand_over_output(value, other)
        dtype = ir.DataType.FLOAT if is_half else HALF_TYPES[self._dtype]
        return [cast_value(value, other, dtype, f"{other.name}_cast")]

    def _hand_over_output(self, half: ir.Value, wide: ir.Value) -> None:
        """Make the fp32 version of an output the output, under its name."""
        self._graph.outputs[:] = [wide if output is half else output for output in self._graph.outputs]
        half.name, wide.name = wide.name, half.name

    def _convert_weight(self, value: ir.Value) -> None:
        """Replace a float initialiser by the versions that are read; drop one that nobody reads."""
        readers, name = self._plan.readers(value, half=True), value.name or ""
        wide = self._plan.is_read_fp32(value)
        if readers and value.const_value is not None:
            values = value.const_value.numpy()
            if is_beyond(values, self._dtype):
                self._beyond.add(name)
            half = to_half_array(values, self._dtype, self._out_of_range)
            weight = self._layered.add_weight(f"{name}_{self._dtype}", half)
            _redirect(readers, weight)
            if not wide:
                del self._graph.initializers[name]
                weight.name = name
        elif not wide:
            del self._graph.initializers[name]


def _redirect(readers: Iterable[tuple[ir.Node, int]], value: ir.Value) -> None:
    for node, index in readers:
        node.replace_input_with(index, value)


def _check_tensors(layered: LayeredGraph) -> None:
    """Raise ValueError for what is no tensor, and for a tensor whose type nobody knows."""
    for node in layered.graph:
        if is_of_containers(node):
            raise ValueError(f"Expected a model of tensors only, but node {node.name!r} is of type {node.op_type}")
        for value in node.outputs:
            if value.name and not layered.types.get(value.name):
                raise ValueError(
                    f"Expected tensors of known types, but not known is that of {value.name!r}, computed by node "
                    f"{node.name!r} of type {node.domain or 'ai.onnx'}.{node.op_type}. Add it to the graph's value_info"
                )


def _infer_types(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its types inferred anew and checked.

    Types stated before the conversion are wrong now, except for the outputs of operators of other domains, which no
    inference can type.
    """
    foreign = {name for node in model.graph.node if node.domain not in ONNX_DOMAIN for name in node.output}
    known = [onnx.ValueInfoProto.FromString(v.SerializeToString()) for v in model.graph.value_info if v.name in foreign]
    del model.graph.value_info[:]
    model.graph.value_info.extend(known)
    try:
        inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
        onnx.checker.check_model(inferred, full_check=True)
    except Exception as error:
        raise ValueError(
            f"The converted model is not valid ONNX: {error}. Name the node in keep_fp32, or export with another opset"
        ) from error
    return inferred
