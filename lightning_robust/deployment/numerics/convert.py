"""fp32 ONNX to half precision for strongly typed engines: decides the type of every tensor and writes it down.

`numerics/emulate.py` measures what the conversion costs in accuracy; `graph/lint/` finds what will overflow.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any, get_args

import numpy as np
import onnx
import onnx.inliner
import onnx.version_converter
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import TensorProto

from lightning_robust.deployment.graph.types import element_types
from lightning_robust.deployment.numerics.operators import ALWAYS_FP32, FP32_INPUTS, FP32_OUTPUTS
from lightning_robust.deployment.numerics.preconditions import check_graph, check_names
from lightning_robust.deployment.numerics.rounding import HALF_TYPES, Half, cast_value, to_half_array

_ONNX = ("", "ai.onnx")  # the names of ONNX's own domain
_SCHEMA_TYPES = {"fp16": "tensor(float16)", "bf16": "tensor(bfloat16)"}
_BF16_OPSET = 22  # the first in which Conv, pooling, Resize's neighbours and GridSample take bfloat16


def to_half(model: onnx.ModelProto, dtype: Half = "fp16", keep_fp32: Collection[str] = ()) -> onnx.ModelProto:
    """Convert an fp32 model so that it computes in fp16 or bf16, its inputs and outputs staying fp32.

    Every float tensor becomes half, but for the nodes of `keep_fp32` and those for which ONNX or their meaning demands
    float (Resize's scales, Range, NonMaxSuppression, quantisation, random numbers, operators of other domains): these
    compute in fp32 between casts. No tensor is cast twice. Weights are rounded to the nearest, ties to even; what is
    too large becomes infinite, as it would in `module.half()`. Constant nodes become initialisers; a Cast of integers
    to float is kept fp32 where a kept node or an output reads it.

    ONNX Runtime's CPU kernels load the fp16 result but compute it in fp32, and have no bf16: use
    `numerics/emulate.py` for numbers.

    Args:
        model: As torch's exporter writes it: one graph, node names unique, weights inside. It is not changed.
        dtype: "fp16" or "bf16". For bf16 a model of opset below 22 is raised to 22, where its operators take bf16.
        keep_fp32: Names of the nodes that compute in fp32.

    Returns:
        The converted model, types inferred and checked, with the names of nodes, inputs and outputs it had.

    Raises:
        ValueError: A name in `keep_fp32` is not a node's; the model holds control flow (If, Loop, Scan), sequences,
            sparse or external weights, tensors or operators that ONNX cannot type; it cannot be raised to opset 22; the
            result is not valid ONNX.

    Example:
        >>> from onnx import parser
        >>> text = "g (float[2] x) => (float[2] y) { [sum] s = Add(x, x) [out] y = Exp(s) }"
        >>> model = parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> {text}')
        >>> [node.op_type for node in to_half(model).graph.node]
        ['Cast', 'Add', 'Exp', 'Cast']
        >>> [node.op_type for node in to_half(model, keep_fp32=["out"]).graph.node]
        ['Cast', 'Add', 'Cast', 'Exp']
    """
    if dtype not in get_args(Half):
        raise ValueError(f"Expected argument `dtype` to be one of {sorted(get_args(Half))}, but got {dtype!r}")
    prepared = _prepare(model, dtype)
    check_names(prepared.graph, keep_fp32)
    return _infer_types(ir.to_proto(_Converter(prepared, dtype, frozenset(keep_fp32)).convert()))


class _Converter:
    """One conversion: decides which tensors each node reads and writes in half, then casts and rounds accordingly.

    Args:
        model: The fp32 model. Its weights are shared, not changed.
        dtype: The half type.
        keep_fp32: Names of nodes that compute in fp32.
    """

    def __init__(self, model: onnx.ModelProto, dtype: Half, keep_fp32: frozenset[str]) -> None:
        types = _complete_types(model)
        self._model = ir.from_proto(model)
        self._graph = self._model.graph
        self._dtype, self._keep_fp32 = dtype, keep_fp32
        self._names = set(types)
        self._lift_constants()
        values = [*self._graph.inputs, *self._graph.initializers.values()]
        values += [value for node in self._graph for value in node.outputs]
        self._floats = {value for value in values if types.get(value.name or "") == TensorProto.FLOAT}
        self._reads: dict[ir.Node, list[bool]] = {}  # node -> is each input read in half?
        self._writes: dict[ir.Node, list[bool]] = {}

    def convert(self) -> ir.Model:
        """Decide for every node, then retype the nodes, cast between types and round the weights."""
        nodes, graph = tuple(self._graph), self._graph
        for node in reversed(nodes):  # backwards, for a Cast asks who reads it
            self._plan(node)
        casts = [step for value in graph.inputs for step in self._cast(value)]
        for node in nodes:
            self._rewrite(node)
        if casts:
            graph.insert_before(graph[0], casts)
        for value in tuple(graph.initializers.values()):
            if value in self._floats and not value.is_graph_input():
                self._convert_weight(value)
        return self._model

    def _lift_constants(self) -> None:
        """Make initialisers of float Constant nodes, so that each can exist in both types."""
        # onnx_ir's LiftConstantsToInitializersPass also lifts integers, and writes names into the caller's tensors
        for node in tuple(self._graph):
            values = _read_constant(node)
            if values is not None:
                old, new = node.outputs[0], self._weight(node.outputs[0].name or "", values)
                old.replace_all_uses_with(new, replace_graph_outputs=True)
                self._graph.remove(node)

    def _plan(self, node: ir.Node) -> None:
        """Decide for each input and output of a node whether it is read, or written, in half."""
        fp32 = [False] * len(node.inputs), [False] * len(node.outputs)
        self._reads[node], self._writes[node] = fp32 if self._stays_fp32(node) else self._allowed(node)

    def _stays_fp32(self, node: ir.Node) -> bool:
        if node.op_type == "Cast" and node.outputs[0] in self._floats:
            # an integer on its way to a kept node must not pass through half
            return node.name in self._keep_fp32 or self._is_read_fp32(node.outputs[0])
        return node.domain not in _ONNX or node.op_type in ALWAYS_FP32 or node.name in self._keep_fp32

    def _allowed(self, node: ir.Node) -> tuple[list[bool], list[bool]]:
        """Which inputs and outputs ONNX's own definition of the operator allows to be half."""
        opset = self._graph.opset_imports.get("", 1)
        try:
            schema = onnx.defs.get_schema(node.op_type, opset, "")
        except onnx.defs.SchemaError as error:
            raise ValueError(f"Node {node.name!r} is of type {node.op_type}, unknown to opset {opset}") from error
        half = _SCHEMA_TYPES[self._dtype]
        kinds = {rule.type_param_str for rule in schema.type_constraints if half in rule.allowed_type_strs}

        def allow(
            formals: Sequence[onnx.defs.OpSchema.FormalParameter], count: int, fp32: Collection[int]
        ) -> list[bool]:
            # the last formal input or output may be variadic
            chosen = (formals[min(index, len(formals) - 1)] for index in range(count))
            return [formal.type_str in kinds and index not in fp32 for index, formal in enumerate(chosen)]

        return (
            allow(schema.inputs, len(node.inputs), FP32_INPUTS.get(node.op_type, ())),
            allow(schema.outputs, len(node.outputs), FP32_OUTPUTS.get(node.op_type, ())),
        )

    def _readers(self, value: ir.Value, *, half: bool) -> list[tuple[ir.Node, int]]:
        return [use for use in value.uses() if self._reads[use.node][use.idx] == half]

    def _is_read_fp32(self, value: ir.Value) -> bool:
        return value.is_graph_output() or bool(self._readers(value, half=False))

    def _rewrite(self, node: ir.Node) -> None:
        """Write the node's own type where an attribute says it, and cast what others read in the other type."""
        is_float_cast = node.op_type == "Cast" and node.outputs[0] in self._floats
        if is_float_cast and not node.outputs[0].uses() and not node.outputs[0].is_graph_output():
            self._graph.remove(node)
            return
        if any(self._writes[node]) and node.outputs[0] in self._floats:
            self._retype(node)
        self._graph.insert_after(node, [step for value in node.outputs for step in self._cast(value)])

    def _retype(self, node: ir.Node) -> None:
        """Write half where an attribute of a node that computes half says float."""
        if node.op_type == "Cast":
            node.attributes["to"] = ir.AttrInt64("to", HALF_TYPES[self._dtype].value)
        if node.op_type == "ConstantOfShape":
            fill = node.attributes.get_tensor("value")
            values = np.zeros(1, np.float32) if fill is None else fill.numpy()
            half = ir.tensor(to_half_array(values, self._dtype), name="value")
            node.attributes["value"] = ir.AttrTensor("value", half)

    def _is_computed_in_half(self, value: ir.Value) -> bool:
        producer = value.producer()
        return producer is not None and self._writes[producer][value.index() or 0]

    def _cast(self, value: ir.Value) -> list[ir.Node]:
        """The one cast of a float tensor to the type that it is not computed in, where that is read.

        An output of the graph keeps its name for its fp32 version, any other tensor for the version that is computed.
        """
        if value not in self._floats:
            return []
        is_half = self._is_computed_in_half(value)
        is_output = is_half and value.is_graph_output()
        readers = self._readers(value, half=not is_half)
        if not readers and not is_output:
            return []
        kind = "fp32" if is_half and not is_output else self._dtype
        other = ir.Value(name=self._free_name(f"{value.name}_{kind}"), type=value.type, shape=value.shape)
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
        readers, name = self._readers(value, half=True), value.name or ""
        if self._is_read_fp32(value):
            name = self._free_name(f"{name}_{self._dtype}")
        else:
            del self._graph.initializers[name]
        if readers and value.const_value is not None:
            _redirect(readers, self._weight(name, to_half_array(value.const_value.numpy(), self._dtype)))

    def _weight(self, name: str, values: NDArray[Any]) -> ir.Value:
        tensor = ir.tensor(values, name=name)
        value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(values.shape), const_value=tensor)
        self._graph.register_initializer(value)
        return value

    def _free_name(self, name: str) -> str:
        while name in self._names:
            name += "_"
        self._names.add(name)
        return name


def _redirect(readers: Iterable[tuple[ir.Node, int]], value: ir.Value) -> None:
    for node, index in readers:
        node.replace_input_with(index, value)


def _prepare(model: onnx.ModelProto, dtype: Half) -> onnx.ModelProto:
    """The model with functions inlined and, for bf16, at least opset 22; refuses what the converter does not know."""
    model = onnx.inliner.inline_local_functions(model) if model.functions else model
    check_graph(model.graph)
    for node in model.graph.node:
        if "Sequence" in node.op_type or "Optional" in node.op_type:
            raise ValueError(f"Expected a model of tensors only, but node {node.name!r} is of type {node.op_type}")
    opset = max((entry.version for entry in model.opset_import if entry.domain in _ONNX), default=1)
    return model if dtype == "fp16" or opset >= _BF16_OPSET else _raise_opset(model, opset)


def _raise_opset(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    metadata = {node.name: list(node.metadata_props) for node in model.graph.node}
    try:
        raised = onnx.version_converter.convert_version(model, _BF16_OPSET)
    except Exception as error:
        raise ValueError(
            f"bf16 needs opset {_BF16_OPSET}, but got a model of opset {opset} that cannot be raised ({error}). "
            f"Export it with opset_version={_BF16_OPSET}"
        ) from error
    for node in raised.graph.node:  # the version converter drops where each node comes from
        if not node.metadata_props:
            node.metadata_props.extend(metadata.get(node.name, ()))
    return raised


def _read_constant(node: ir.Node) -> NDArray[Any] | None:
    """The numbers of a Constant node, whichever attribute holds them; None for other nodes and types."""
    if node.op_type != "Constant":
        return None
    tensor = node.attributes.get_tensor("value")
    if tensor is not None:
        return tensor.numpy() if tensor.dtype == ir.DataType.FLOAT else None
    values = node.attributes.get("value_float", node.attributes.get("value_floats"))
    return None if values is None else np.array(values.value, np.float32)


def _complete_types(model: onnx.ModelProto) -> dict[str, int]:
    """The type of every tensor; raises ValueError for one that nobody knows."""
    types = element_types(model)
    for node in model.graph.node:
        for name in node.output:
            if name and not types.get(name):
                raise ValueError(
                    f"Expected tensors of known types, but not known is that of {name!r}, computed by node "
                    f"{node.name!r} of type {node.domain or 'ai.onnx'}.{node.op_type}. Add it to the graph's value_info"
                )
    return types


def _infer_types(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its types inferred anew and checked.

    Types stated before the conversion are wrong now, except for the outputs of operators of other domains, which no
    inference can type.
    """
    foreign = {name for node in model.graph.node if node.domain not in _ONNX for name in node.output}
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
