"""fp32 ONNX to half precision for strongly typed engines: every tensor's type is decided here and written down.

`numerics/emulate.py` measures what the conversion costs in accuracy; `graph/lint.py` finds what will overflow.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Literal

import onnx
import onnx.inliner
import onnx.version_converter
import torch
from onnx import AttributeProto, NodeProto, TensorProto, helper, numpy_helper

from lightning_robust.deployment.graph.types import element_types
from lightning_robust.suggest import did_you_mean

Half = Literal["fp16", "bf16"]

_TYPES = {
    "fp16": (TensorProto.FLOAT16, "tensor(float16)", torch.float16),
    "bf16": (TensorProto.BFLOAT16, "tensor(bfloat16)", torch.bfloat16),
}
_ONNX = ("", "ai.onnx")  # the names of ONNX's own domain
_BF16_OPSET = 22  # the first in which Conv, pooling, Resize's neighbours and GridSample take bfloat16
# Their attributes name float, or their scales are calibrated numbers that a rounding would change.
_ALWAYS_FP32 = frozenset({
    "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "EyeLike", "Bernoulli", "Multinomial",
    "RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike",
    "BlackmanWindow", "HammingWindow", "HannWindow", "MelWeightMatrix",
})  # fmt: skip
_FP32_INPUTS = {"Resize": {1, 2}}  # roi and scales
_FP32_OUTPUTS = {"LayerNormalization": {1, 2}}  # mean and deviation: of stash_type, float
_SUBGRAPHS = (AttributeProto.GRAPH, AttributeProto.GRAPHS)


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
        >>> import onnx.parser
        >>> text = "g (float[2] x) => (float[2] y) { [sum] s = Add(x, x) [out] y = Exp(s) }"
        >>> model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> {text}')
        >>> [node.op_type for node in to_half(model).graph.node]
        ['Cast', 'Add', 'Exp', 'Cast']
        >>> [node.op_type for node in to_half(model, keep_fp32=["out"]).graph.node]
        ['Cast', 'Add', 'Cast', 'Exp']
    """
    if dtype not in _TYPES:
        raise ValueError(f"Expected argument `dtype` to be one of {sorted(_TYPES)}, but got {dtype!r}")
    converted = _prepare(model, dtype)
    _check_names(converted.graph, keep_fp32)
    _hoist_constants(converted.graph)
    _Converter(converted, dtype, frozenset(keep_fp32)).convert()
    return _infer(converted)


class _Converter:
    """One conversion: which tensors are float, which type each node wants, what both versions of a tensor are called.

    Args:
        model: Changed in place by `convert`.
        dtype: The half type.
        keep_fp32: Names of nodes that compute in fp32.
    """

    def __init__(self, model: onnx.ModelProto, dtype: Half, keep_fp32: frozenset[str]) -> None:
        graph = model.graph
        self.model, self.dtype, self.keep_fp32 = model, dtype, keep_fp32
        self.half_type, self.schema_type, self.torch_type = _TYPES[dtype]
        self.opsets = {entry.domain: entry.version for entry in model.opset_import}
        self.floats = _find_floats(model)
        self.outputs = {value.name for value in graph.output}
        self.weights = {tensor.name for tensor in graph.initializer} - {value.name for value in graph.input}
        self.fp32_read: set[str] = set()
        self.wanted: set[tuple[str, bool]] = set()  # (tensor, in half)
        self.native: dict[str, bool] = {}  # tensor -> computed in half
        self.names: dict[tuple[str, bool], str] = {}

    def convert(self) -> None:
        """Decide for every node, name both versions of every tensor, then rewrite the graph."""
        graph = self.model.graph
        # backwards: a Cast asks who reads it
        plans = [self._plan(node) for node in reversed(graph.node)][::-1]
        self._name_tensors(plans)
        nodes = list(self._cast_inputs())
        for node, (reads, writes) in zip(graph.node, plans, strict=True):
            nodes += self._rewrite(node, reads, writes)
        # copies, since the list they come from is emptied
        nodes = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
        self._convert_weights()
        del graph.node[:]
        graph.node.extend(nodes)

    def _plan(self, node: NodeProto) -> tuple[list[bool], list[bool]]:
        """For each input and output of a node: is it read, or written, in half?"""
        if self._keeps(node):
            reads, writes = [False] * len(node.input), [False] * len(node.output)
        else:
            reads, writes = self._types_of(node)
        self.fp32_read |= {name for name, half in zip(node.input, reads, strict=True) if not half}
        return reads, writes

    def _keeps(self, node: NodeProto) -> bool:
        """Whether a node computes in fp32 whole."""
        if node.op_type == "Cast" and node.output[0] in self.floats:
            # an integer on its way to a kept node must not pass through half
            return node.name in self.keep_fp32 or node.output[0] in self.fp32_read | self.outputs
        return node.domain not in _ONNX or node.op_type in _ALWAYS_FP32 or node.name in self.keep_fp32

    def _types_of(self, node: NodeProto) -> tuple[list[bool], list[bool]]:
        """What ONNX's own definition of the operator allows to be half."""
        opset = self.opsets.get("", self.opsets.get("ai.onnx", 1))
        try:
            schema = onnx.defs.get_schema(node.op_type, opset, "")
        except onnx.defs.SchemaError as error:
            raise ValueError(f"Node {node.name!r} is of type {node.op_type}, unknown to opset {opset}") from error
        allowed = {rule.type_param_str: self.schema_type in rule.allowed_type_strs for rule in schema.type_constraints}
        formal_reads = [allowed.get(item.type_str, False) for item in schema.inputs]
        formal_writes = [allowed.get(item.type_str, False) for item in schema.outputs]
        # the last formal input or output may be variadic
        reads = [formal_reads[min(i, len(formal_reads) - 1)] for i in range(len(node.input))]
        writes = [formal_writes[min(i, len(formal_writes) - 1)] for i in range(len(node.output))]
        for index in _FP32_INPUTS.get(node.op_type, set()) & set(range(len(reads))):
            reads[index] = False
        for index in _FP32_OUTPUTS.get(node.op_type, set()) & set(range(len(writes))):
            writes[index] = False
        return reads, writes

    def _name_tensors(self, plans: list[tuple[list[bool], list[bool]]]) -> None:
        """Find which versions of each float tensor are read, which one is computed, and name both.

        An output of the graph keeps its name for its fp32 version, anything else for the version that is computed.
        """
        graph = self.model.graph
        native = self.native = dict.fromkeys(sorted(self.floats), False)
        self.wanted = {(name, False) for name in self.outputs & self.floats}
        taken = {name for node in graph.node for name in (*node.input, *node.output)} | set(native)
        for node, (reads, writes) in zip(graph.node, plans, strict=True):
            self.wanted |= {pair for pair in zip(node.input, reads, strict=True) if pair[0] in self.floats}
            native.update({name: half for name, half in zip(node.output, writes, strict=True) if name in self.floats})
        for name in self.weights & self.floats:
            native[name] = (name, False) not in self.wanted
        for name, half in native.items():
            first = half and name not in self.outputs
            other = f"{name}_{'fp32' if first else self.dtype}"
            while other in taken:
                other += "_"
            taken.add(other)
            self.names |= {(name, first): name, (name, not first): other}

    def _cast_inputs(self) -> Iterator[NodeProto]:
        """Casts of the graph's own inputs, where half is read."""
        for value in self.model.graph.input:
            yield from self._cast(value.name)

    def _cast(self, name: str) -> Iterator[NodeProto]:
        """The one cast from the computed version of a float tensor to the other, where the other is read."""
        if name not in self.floats or (name, not self.native[name]) not in self.wanted:
            return
        source, target = self.names[name, self.native[name]], self.names[name, not self.native[name]]
        kind = TensorProto.FLOAT if self.native[name] else self.half_type
        yield helper.make_node("Cast", [source], [target], name=f"{target}_cast", to=kind)

    def _rewrite(self, node: NodeProto, reads: list[bool], writes: list[bool]) -> Iterator[NodeProto]:
        """The node with its tensors by their new names, followed by the casts of what it computes."""
        written = list(node.output)
        if node.op_type == "Cast" and not self._is_read(written[0]):
            return
        if any(writes):
            self._retype(node)
        for names, halves in ((node.input, reads), (node.output, writes)):
            names[:] = [self.names.get((name, half), name) for name, half in zip(names, halves, strict=True)]
        yield node
        for name in written:
            yield from self._cast(name)

    def _is_read(self, name: str) -> bool:
        """Whether any node, or the graph's own outputs, read a tensor; true of every tensor that is not float."""
        return name not in self.floats or (name, True) in self.wanted or (name, False) in self.wanted

    def _retype(self, node: NodeProto) -> None:
        """Write half where an attribute of a node that computes half says float."""
        if node.op_type == "Cast" and node.output[0] in self.floats:
            next(item for item in node.attribute if item.name == "to").i = self.half_type
        if node.op_type == "ConstantOfShape" and node.output[0] in self.floats:
            value = next((item.t for item in node.attribute if item.name == "value"), None)
            value = value or helper.make_tensor("value", TensorProto.FLOAT, [1], [0.0])
            rounded = helper.make_attribute("value", self._round(value, value.name))
            del node.attribute[:]
            node.attribute.append(rounded)

    def _convert_weights(self) -> None:
        """Replace each float initialiser by the versions that are read; one that nobody reads goes."""
        graph, kept = self.model.graph, []
        for tensor in graph.initializer:
            name = tensor.name
            if name not in self.weights & self.floats:
                kept.append(tensor)
                continue
            if (name, True) in self.wanted:
                kept.append(self._round(tensor, self.names[name, True]))
            if (name, False) in self.wanted:
                kept.append(tensor)
        kept = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in kept]
        del graph.initializer[:]
        graph.initializer.extend(kept)

    def _round(self, tensor: TensorProto, name: str) -> TensorProto:
        """The tensor in half, rounded by torch: to the nearest, ties to even, too large to infinity."""
        values = torch.tensor(numpy_helper.to_array(tensor)).to(self.torch_type)
        raw = values.view(torch.int16).numpy().tobytes()
        return TensorProto(name=name, data_type=self.half_type, dims=tensor.dims, raw_data=raw)


def _prepare(model: onnx.ModelProto, dtype: Half) -> onnx.ModelProto:
    """A copy with functions inlined and, for bf16, at least opset 22; refuses what the converter does not know."""
    copy = (
        onnx.inliner.inline_local_functions(model)
        if model.functions
        else onnx.ModelProto.FromString(model.SerializeToString())
    )
    _refuse_unknown(copy.graph)
    opset = max((entry.version for entry in copy.opset_import if entry.domain in _ONNX), default=1)
    if dtype == "fp16" or opset >= _BF16_OPSET:
        return copy
    metadata = {node.name: list(node.metadata_props) for node in copy.graph.node}
    try:
        raised = onnx.version_converter.convert_version(copy, _BF16_OPSET)
    except Exception as error:
        raise ValueError(
            f"bf16 needs opset {_BF16_OPSET}, but got a model of opset {opset} that cannot be raised ({error}). "
            f"Export it with opset_version={_BF16_OPSET}"
        ) from error
    for node in raised.graph.node:  # the converter drops where each node comes from
        if not node.metadata_props:
            node.metadata_props.extend(metadata.get(node.name, ()))
    return raised


def _refuse_unknown(graph: onnx.GraphProto) -> None:
    """Raise ValueError for control flow, sequences, sparse and external weights."""
    for node in graph.node:
        if any(item.type in _SUBGRAPHS for item in node.attribute):
            raise ValueError(
                f"Expected a model without control flow, but node {node.name!r} is of type {node.op_type}. Write the "
                "branch with torch.where, unroll the loop, or cut it out of the exported model"
            )
        if "Sequence" in node.op_type or "Optional" in node.op_type:
            raise ValueError(f"Expected a model of tensors only, but node {node.name!r} is of type {node.op_type}")
    if graph.sparse_initializer:
        raise ValueError(f"Expected dense weights, but {graph.sparse_initializer[0].values.name!r} is sparse")
    for tensor in graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            raise ValueError(
                f"Expected the weights inside the model, but {tensor.name!r} lies in a file of its own. Export with "
                "external_data=False, or load with onnx.load(path, load_external_data=True)"
            )


def _check_names(graph: onnx.GraphProto, keep_fp32: Collection[str]) -> None:
    """Raise ValueError for a name that is no node's, with the names that look like it."""
    known = {node.name for node in graph.node}
    for name in keep_fp32:
        if name not in known:
            raise ValueError(f"Expected names of nodes in `keep_fp32`, but got {name!r}.{did_you_mean(name, known)}")


def _hoist_constants(graph: onnx.GraphProto) -> None:
    """Make initialisers of Constant nodes, so that each can have its half and its fp32 version."""
    rest = []
    for node in graph.node:
        value = _read_constant(node) if node.op_type == "Constant" else None
        if value is None:
            rest.append(NodeProto.FromString(node.SerializeToString()))
        else:
            value.name = node.output[0]
            graph.initializer.append(value)
    del graph.node[:]
    graph.node.extend(rest)


def _read_constant(node: NodeProto) -> TensorProto | None:
    """The float tensor of a Constant node, whichever attribute holds it; None for other types."""
    item = node.attribute[0]
    if item.name == "value" and item.t.data_type == TensorProto.FLOAT:
        return TensorProto.FromString(item.t.SerializeToString())
    if item.name == "value_float":
        return helper.make_tensor("", TensorProto.FLOAT, [], [item.f])
    if item.name == "value_floats":
        return helper.make_tensor("", TensorProto.FLOAT, [len(item.floats)], item.floats)
    return None


def _find_floats(model: onnx.ModelProto) -> set[str]:
    """The names of all fp32 tensors; raises ValueError for a tensor whose type nobody knows."""
    kinds = element_types(model)
    for node in model.graph.node:
        for name in node.output:
            if name and not kinds.get(name):
                raise ValueError(
                    f"Expected tensors of known types, but not known is that of {name!r}, computed by node "
                    f"{node.name!r} of type {node.domain or 'ai.onnx'}.{node.op_type}. Add it to the graph's value_info"
                )
    return {name for name, kind in kinds.items() if kind == TensorProto.FLOAT}


def _infer(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its types inferred anew and checked; what was known of its fp32 tensors is wrong by now.

    Only of what operators of other domains compute the types stand, since no inference finds them.
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
