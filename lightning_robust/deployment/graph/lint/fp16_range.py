"""What will go wrong on TensorRT, read off the ONNX graph without running it.

How much it matters on real inputs is measured elsewhere (``numerics/emulate.py``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, numpy_helper

from lightning_robust.deployment.graph.export import Origin

FP16_MAX, FP16_NORMAL, FP16_EXACT = 65504.0, 6.1e-5, 512.0
"""Largest fp16 number, smallest normal one, and where its steps become half a unit."""
_TINY_SHARE = 0.2
_ELEMENTWISE = {"Add", "Sub", "Mul", "Div", "Neg", "Clip", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Identity"}
_ELEMENTWISE |= {"Concat", "Cast", "Slice", "Flatten"}
_PLAIN_RESIZE = {"half_pixel", "align_corners"}


@dataclass(frozen=True)
class Finding:
    """One thing to mend.

    Args:
        rule: ``"A1"`` to ``"A12"``.
        node: Name of the ONNX node, or of the initializer or output.
        module: Path of the PyTorch module; empty if unknown.
        source: File and line of the user's code; empty if unknown.
        what: What the graph holds.
        consequence: What happens on TensorRT.
        remedy: What to write instead.
    """

    rule: str
    node: str
    module: str
    source: str
    what: str
    consequence: str
    remedy: str

    def __str__(self) -> str:
        """One line."""
        place = " ".join(part for part in (self.module or self.node, f"({self.source})" if self.source else "") if part)
        return f"{self.rule} {place}: {self.what}. {self.consequence} {self.remedy}"


def lint(model: onnx.ModelProto, origins: Mapping[str, Origin] | None = None) -> list[Finding]:
    """All findings, in the order of the rules and then of the graph.

    ===  ====================================================================================================
    A1   resize with antialiasing
    A2   resize in a coordinate mode of its own, or from before operator set 11
    A3   weights beyond the range of fp16, or many below its smallest normal number
    A4   constants beyond the range of fp16 that are added or filled in, as in attention masks
    A5   dropout or BatchNorm in training mode
    A6   a normalisation layer written out as powers, means and roots
    A7   sampling by coordinates, or long ranges of coordinates, in floating point
    A8   an output scaled to hundreds of units, as pixels or metres
    A9   hard selection: values gathered by ArgMax or TopK, non-maximum suppression
    A10  shapes computed in floating point
    A11  GridSample whose grid and features have different types
    A12  types that do not agree
    ===  ====================================================================================================

    Args:
        model: Any ONNX model, whole.
        origins: Node name -> where it comes from, as of :class:`~lightning_robust.deployment.graph.export.Exported`.

    Returns:
        An empty list for a clean model.
    """
    graph = _Graph(model, origins or {})
    rules = (_resize, _weights, _masks, _training, _norms, _coordinates, _outputs, _selection, _shapes, _grids, _types)
    found = [finding for rule in rules for finding in rule(graph)]
    return sorted(found, key=lambda finding: int(finding.rule[1:]))


class _Graph:
    """The graph, with what feeds what."""

    def __init__(self, model: onnx.ModelProto, origins: Mapping[str, Origin]) -> None:
        self.model, self.nodes, self.origins = model, list(model.graph.node), origins
        self.producer = {name: node for node in self.nodes for name in node.output}
        self.outputs = [output.name for output in model.graph.output]
        self.constants: dict[str, np.ndarray] = {}
        for tensor in model.graph.initializer:
            if not tensor.external_data:
                self.constants[tensor.name] = numpy_helper.to_array(tensor)
        for node in self.nodes:
            value = _attribute(node, "value")
            if node.op_type == "Constant" and isinstance(value, TensorProto):
                self.constants[node.output[0]] = numpy_helper.to_array(value)
        self.opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=1)

    def of(self, *kinds: str) -> Iterator[NodeProto]:
        """Nodes of these operators."""
        return (node for node in self.nodes if node.op_type in kinds)

    def parents(self, node: NodeProto) -> list[NodeProto]:
        """What feeds a node."""
        return [self.producer[name] for name in node.input if name in self.producer]

    def children(self, node: NodeProto) -> list[NodeProto]:
        """What a node feeds."""
        return [other for other in self.nodes if set(node.output) & set(other.input)]

    def constant(self, node: NodeProto) -> np.ndarray | None:
        """The floating constant among the inputs of a node."""
        found = [self.constants[name] for name in node.input if name in self.constants]
        return next((value for value in found if _is_floating(value)), None)

    def finding(self, rule: str, node: NodeProto | str, what: str, consequence: str, remedy: str) -> Finding:
        """With the place that the node comes from."""
        name = node if isinstance(node, str) else node.name or node.output[0]
        origin = self.origins.get(name, Origin("", ""))
        return Finding(rule, name, origin.module, origin.source, what, consequence, remedy)


def _resize(graph: _Graph) -> Iterator[Finding]:
    for node in graph.of("Resize", "Upsample"):
        mode = _text(node, "coordinate_transformation_mode", "half_pixel")
        kind = _text(node, "mode", "nearest")
        if _attribute(node, "antialias"):
            yield graph.finding(
                "A1",
                node,
                f"{kind} resize with antialiasing",
                "TensorRT refuses the node: there is no engine.",
                "Resize with antialias=False, pool before, or resize in the preprocessing.",
            )
        plain = mode in _PLAIN_RESIZE or (mode == "asymmetric" and kind == "nearest")
        if graph.opset < 11 or not plain:
            what = f"{kind} resize of operator set {graph.opset}" if graph.opset < 11 else f"{kind} resize by {mode!r}"
            yield graph.finding(
                "A2",
                node,
                what,
                "Versions read positions differently: features shift by up to half a pixel, or the node is refused.",
                "Export with operator set 18 or later and align_corners=False.",
            )


def _weights(graph: _Graph) -> Iterator[Finding]:
    used = {name: node for node in graph.of("Conv", "ConvTranspose", "Gemm", "MatMul") for name in node.input[1:]}
    for name, node in used.items():
        value = graph.constants.get(name)
        if value is None or not _is_floating(value) or value.size == 0:
            continue
        size = np.abs(value[value != 0].astype(np.float64))
        if size.size and size.max() > FP16_MAX:
            yield graph.finding(
                "A3",
                node,
                f"weights up to {size.max():.3g} in {name}",
                "They are infinite in fp16, and so is what they touch.",
                "Scale the layer down and its input up, or keep the node in fp32.",
            )
        elif size.size and (size < FP16_NORMAL).mean() > _TINY_SHARE:
            yield graph.finding(
                "A3",
                node,
                f"{(size < FP16_NORMAL).mean():.0%} of the weights in {name} are below the smallest normal fp16 number",
                "They lose their digits or become zero.",
                "Scale the layer up and its output down (a normalisation before it has the same effect).",
            )


def _masks(graph: _Graph) -> Iterator[Finding]:
    for node in graph.of("Add", "Sub", "Where", "Mul", "Clip", "Max", "Min", "ConstantOfShape", "Expand"):
        values = [graph.constants[name] for name in node.input if name in graph.constants]
        filled = _attribute(node, "value")
        values += [numpy_helper.to_array(filled)] if isinstance(filled, TensorProto) else []
        largest = max((float(np.abs(v[np.isfinite(v)]).max(initial=0)) for v in values if _is_floating(v)), default=0)
        if largest > FP16_MAX and node.op_type not in ("Clip", "Max", "Min"):
            yield graph.finding(
                "A4",
                node,
                f"{node.op_type} with a constant of size {largest:.3g}",
                "It is infinite in fp16: a row that is masked whole becomes NaN, and infinity times zero too.",
                "Mask with -1e4, or with torch.finfo(dtype).min of the type in use; scaled_dot_product_attention does.",
            )


def _training(graph: _Graph) -> Iterator[Finding]:
    for node in graph.of("Dropout", "BatchNormalization"):
        switch = graph.constants.get(node.input[2]) if node.op_type == "Dropout" and len(node.input) > 2 else None
        # before operator set 12 dropout had no switch and does nothing at inference
        on = bool(switch) if switch is not None else bool(_attribute(node, "training_mode"))
        if on:
            yield graph.finding(
                "A5",
                node,
                f"{node.op_type} in training mode",
                "Outputs are random or depend on the rest of the batch; TensorRT refuses the node or ignores the mode.",
                "Call model.eval() before the export.",
            )


def _norms(graph: _Graph) -> Iterator[Finding]:
    for node in graph.of("Sqrt"):
        chain = _single(graph, node, "Add")
        mean = _single(graph, chain, "ReduceMean") if chain is not None else None
        square = graph.parents(mean)[0] if mean is not None and graph.parents(mean) else None
        if square is None or not _squares(graph, square):
            continue
        inverts = any(child.op_type in ("Div", "Reciprocal") for child in graph.children(node))
        if inverts:
            yield graph.finding(
                "A6",
                node,
                "a normalisation layer written out as squares, their mean and a root",
                "The squares overflow in fp16 for activations above 255: TensorRT does not see that it is one layer.",
                "Use torch.nn.functional.layer_norm, for maps with channels first on x.permute(0, 2, 3, 1).",
            )


def _coordinates(graph: _Graph) -> Iterator[Finding]:
    for node in graph.of("GridSample"):
        yield graph.finding(
            "A7",
            node,
            "sampling at computed coordinates",
            "In fp16 coordinates have steps of 0.0005 of the picture: half a pixel in a thousand.",
            "Keep the chain that computes the grid, and this node, in fp32.",
        )
    for node in graph.of("Add", "Sub", "Mul", "Div"):
        value = graph.constant(node)
        if value is None or value.size <= FP16_EXACT:
            continue
        steps = np.diff(value.reshape(-1).astype(np.float64))
        if np.allclose(steps, steps[0], rtol=1e-3, atol=1e-9) and steps[0] != 0 and np.abs(value).max() > FP16_EXACT:
            yield graph.finding(
                "A7",
                node,
                f"a range of {value.size} coordinates up to {np.abs(value).max():.0f}",
                "From 512 on fp16 has steps of half a unit, from 1024 on of a whole one.",
                "Compute with normalised coordinates (0 to 1) and scale at the end, in fp32.",
            )


def _outputs(graph: _Graph) -> Iterator[Finding]:
    for name in graph.outputs:
        node = graph.producer.get(name)
        seen: set[str] = set()
        while node is not None and node.op_type in _ELEMENTWISE and node.output[0] not in seen:
            seen.add(node.output[0])
            value = graph.constant(node) if node.op_type in ("Mul", "Div") else None
            scale = None if value is None else float(np.abs(value).max(initial=0))
            scale = 1 / scale if scale and node.op_type == "Div" else scale
            if scale is not None and scale > FP16_EXACT:
                yield graph.finding(
                    "A8",
                    node,
                    f"output {name!r} is scaled by {scale:.4g}",
                    "In fp16 numbers above 512 have steps of half a unit: positions jump.",
                    "Return the value before scaling and scale in the car, or keep the node in fp32.",
                )
                break
            node = next(iter(graph.parents(node)), None)


def _selection(graph: _Graph) -> Iterator[Finding]:
    for node in graph.of("NonMaxSuppression"):
        yield graph.finding("A9", node, "non-maximum suppression in the graph", *_JUMPS)
    for node in graph.of("ArgMax", "ArgMin", "TopK"):
        indices = node.output[-1]
        reached, front = {indices}, [indices]
        while front:
            name = front.pop()
            for child in graph.nodes:
                if name not in child.input:
                    continue
                place = list(child.input).index(name)
                if child.op_type in ("Gather", "GatherElements", "GatherND", "ScatterElements", "ScatterND") and place:
                    yield graph.finding("A9", node, f"{node.op_type} selects what {child.op_type} reads", *_JUMPS)
                    front = []
                    break
                if child.op_type in ("Cast", "Unsqueeze", "Squeeze", "Reshape", "Expand", "Concat", "Add", "Mul"):
                    new = [output for output in child.output if output not in reached]
                    reached |= set(new)
                    front += new


_JUMPS = (
    "Two scores that are nearly equal change places by rounding: the selected value jumps.",
    "Weigh neighbours (a soft-argmax around the best), or select in the car, in fp32.",
)


def _shapes(graph: _Graph) -> Iterator[Finding]:
    floats = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16}
    for node in graph.of("Cast"):
        if _attribute(node, "to") not in floats:
            continue
        front, seen = graph.parents(node), set()
        while front:
            parent = front.pop()
            if parent.op_type in ("Shape", "Size"):
                yield graph.finding(
                    "A10",
                    node,
                    "a shape computed in floating point",
                    "In fp16 sizes above 2048 are rounded: the result has another shape, or the build fails.",
                    "Compute sizes with integers (//), or pass scale_factor instead of a size.",
                )
                break
            if parent.output[0] not in seen and parent.op_type in ("Gather", "Slice", "Squeeze", "Unsqueeze", "Concat"):
                seen.add(parent.output[0])
                front += graph.parents(parent)


def _grids(graph: _Graph) -> Iterator[Finding]:
    nodes = list(graph.of("GridSample"))
    if not nodes:
        return
    kinds = _kinds(graph.model)
    for node in nodes:
        features, grid = (kinds.get(name) for name in node.input[:2])
        if features is not None and grid is not None and features != grid:
            names = [TensorProto.DataType.Name(kind) for kind in (features, grid)]
            yield graph.finding(
                "A11",
                node,
                f"GridSample of {names[0]} features by a {names[1]} grid",
                "TensorRT wants one type and refuses the node.",
                "Cast the features to the type of the grid (fp32) and the result back.",
            )


def _types(graph: _Graph) -> Iterator[Finding]:
    try:
        onnx.shape_inference.infer_shapes(graph.model, check_type=True, strict_mode=True)
    except (onnx.shape_inference.InferenceError, RuntimeError) as error:
        message = " ".join(str(error).split())
        node = next((n for n in graph.nodes if n.name and n.name in message), None)
        yield graph.finding(
            "A12",
            node if node is not None else graph.model.graph.name,
            f"types that do not agree ({message[-160:]})",
            "A strongly typed engine does not build.",
            "Convert with lightning_robust.deployment.numerics.convert.to_half, which puts casts between types.",
        )


def _kinds(model: onnx.ModelProto) -> dict[str, int]:
    """The element type of every tensor that is known."""
    try:
        graph = onnx.shape_inference.infer_shapes(model).graph
    except (onnx.shape_inference.InferenceError, RuntimeError):
        graph = model.graph
    known = {value.name: value.type.tensor_type.elem_type for value in [*graph.input, *graph.value_info, *graph.output]}
    return known | {tensor.name: tensor.data_type for tensor in graph.initializer}


def _single(graph: _Graph, node: NodeProto, kind: str) -> NodeProto | None:
    found = [parent for parent in graph.parents(node) if parent.op_type == kind]
    return found[0] if len(found) == 1 else None


def _squares(graph: _Graph, node: NodeProto) -> bool:
    if node.op_type == "Mul":
        return len(node.input) == 2 and node.input[0] == node.input[1]
    exponent = graph.constant(node) if node.op_type == "Pow" else None
    return exponent is not None and exponent.size == 1 and float(exponent.reshape(-1)[0]) == 2.0


def _is_floating(value: np.ndarray) -> bool:
    return bool(value.size) and (np.issubdtype(value.dtype, np.floating) or value.dtype.name == "bfloat16")


def _attribute(node: NodeProto, name: str) -> object:
    return next((onnx.helper.get_attribute_value(each) for each in node.attribute if each.name == name), None)


def _text(node: NodeProto, name: str, default: str) -> str:
    value = _attribute(node, name)
    return value.decode() if isinstance(value, bytes) else default
