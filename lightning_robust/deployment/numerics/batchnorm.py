"""BatchNormalization as builders see it: folded in fp32, before anything is rounded.

A variance of 1e6 is infinite in fp16, but the scale that it means is not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lightning_robust.deployment.numerics.layers import LayeredGraph

_EPSILON = 1e-5  # ONNX's default
Folds = dict[ir.Node, ir.Node | None]
"""BatchNormalization -> the Conv, ConvTranspose or Gemm that it is folded into, None for one that stands alone."""


@dataclass(frozen=True)
class _Affine:
    """What a BatchNormalization does to each channel, in fp64."""

    scale: NDArray[np.float64]
    shift: NDArray[np.float64]


def find_folds(graph: LayeredGraph) -> Folds:
    """The BatchNormalizations whose statistics are known, and what each is folded into, whose layer it joins.

    The node before it takes it in where its weights are known and nothing else reads its result.
    """
    folds: Folds = {}
    for node in graph.graph:
        if node.op_type == "BatchNormalization" and _affine(graph, node) is not None:
            root = folds[node] = _root(graph, folds, node)
            if root is not None:
                graph.layers[node.name or ""] = graph.layer(root)
    return folds


def fold_batchnorms(graph: LayeredGraph, folds: Folds) -> None:
    """Fold them, but for those in layers that are kept in fp32; one that stands alone keeps a scale and a bias."""
    for node, root in folds.items():
        affine = None if graph.is_kept(node) else _affine(graph, node)
        if affine is None:
            continue
        if root is None:
            _simplify(graph, node, affine)
        else:
            _FOLD[root.op_type](graph, root, affine)
            graph.take_output(root.outputs[0], node)


def _affine(graph: LayeredGraph, node: ir.Node) -> _Affine | None:
    """What the node does to each channel, if that is known: y = scale x + shift."""
    known = [part.astype(np.float64) for value in node.inputs[1:5] if (part := graph.constant(value)) is not None]
    training = node.attributes.get_int("training_mode", 0) or any(output.uses() for output in node.outputs[1:])
    if len(known) < 4 or training or not graph.is_float(node.inputs[0]):
        return None
    scale, bias, mean, variance = known
    scale = scale / np.sqrt(variance + node.attributes.get_float("epsilon", _EPSILON))
    return _Affine(scale, bias - mean * scale)


def _root(graph: LayeredGraph, folds: Folds, norm: ir.Node) -> ir.Node | None:
    """What a BatchNormalization can be folded into."""
    producer = norm.inputs[0].producer() if norm.inputs[0] is not None else None
    root = folds.get(producer, producer) if producer is not None else None
    if producer is None or root is None:
        return None
    return root if _is_alone(producer) and _takes(graph, root, norm) else None


def _is_alone(node: ir.Node) -> bool:
    """Whether one other node reads the result, and nothing else."""
    return len(node.outputs[0].uses()) == 1 and not node.outputs[0].is_graph_output()


def _takes(graph: LayeredGraph, root: ir.Node, norm: ir.Node) -> bool:
    """Whether the node before a BatchNormalization can take it in."""
    if root.op_type not in _FOLD or root.domain or not graph.is_float(root.outputs[0]):
        return False
    weight = graph.constant(root.inputs[1])
    bias = root.inputs[2] if len(root.inputs) > 2 else None
    known = weight is not None and (bias is None or graph.constant(bias) is not None)
    scale = graph.constant(norm.inputs[1])
    return known and scale is not None and scale.ndim == 1 and _FITS[root.op_type](graph, root, len(scale))


def _simplify(graph: LayeredGraph, node: ir.Node, affine: _Affine) -> None:
    """Mean 0, variance 1: only a scale and a bias are left to be rounded."""
    values = affine.scale, affine.shift, np.zeros_like(affine.scale), np.ones_like(affine.scale)
    for index, (part, value) in enumerate(zip(("scale", "bias", "mean", "variance"), values, strict=True), start=1):
        node.replace_input_with(index, graph.add_weight(f"{node.name}/{part}", value.astype(np.float32)))
    node.attributes["epsilon"] = ir.AttrFloat32("epsilon", 0.0)


def _set_weights(graph: LayeredGraph, node: ir.Node, weight: NDArray[np.float64], bias: NDArray[np.float64]) -> None:
    node.resize_inputs(3)
    for index, (part, values) in enumerate((("weight", weight), ("bias", bias)), start=1):
        node.replace_input_with(index, graph.add_weight(f"{node.name}/{part}", values.astype(np.float32)))


def _bias(graph: LayeredGraph, node: ir.Node) -> NDArray[np.float64]:
    values = graph.constant(node.inputs[2]) if len(node.inputs) > 2 else None
    return np.zeros((), np.float64) if values is None else values.astype(np.float64)


def _kernel(graph: LayeredGraph, node: ir.Node) -> NDArray[np.float64]:
    values = graph.constant(node.inputs[1])
    return np.zeros((), np.float64) if values is None else values.astype(np.float64)


def _along(values: NDArray[np.float64], ndim: int) -> NDArray[np.float64]:
    """One value a channel, for an array whose first dimension is the channels'."""
    return values.reshape(-1, *[1] * (ndim - 1))


def _fold_conv(graph: LayeredGraph, node: ir.Node, affine: _Affine) -> None:
    weight = _kernel(graph, node)
    bias = _bias(graph, node) * affine.scale + affine.shift
    _set_weights(graph, node, weight * _along(affine.scale, weight.ndim), bias)


def _fold_transposed_conv(graph: LayeredGraph, node: ir.Node, affine: _Affine) -> None:
    weight, groups = _kernel(graph, node), node.attributes.get_int("group", 1)
    parts = weight.reshape(groups, -1, *weight.shape[1:])  # group, channels in, channels out, kernel
    scale = affine.scale.reshape(groups, 1, -1, *[1] * (weight.ndim - 2))
    bias = _bias(graph, node) * affine.scale + affine.shift
    _set_weights(graph, node, (parts * scale).reshape(weight.shape), bias)


def _fold_gemm(graph: LayeredGraph, node: ir.Node, affine: _Affine) -> None:
    weight, beta = _kernel(graph, node), node.attributes.get_float("beta", 1.0)
    scale = affine.scale[:, None] if node.attributes.get_int("transB", 0) else affine.scale
    bias = beta * _bias(graph, node) * affine.scale + affine.shift
    node.attributes["beta"] = ir.AttrFloat32("beta", 1.0)
    _set_weights(graph, node, weight * scale, bias)


def _conv_fits(graph: LayeredGraph, node: ir.Node, channels: int) -> bool:
    return _kernel(graph, node).shape[0] == channels


def _transposed_conv_fits(graph: LayeredGraph, node: ir.Node, channels: int) -> bool:
    return _kernel(graph, node).shape[1] * node.attributes.get_int("group", 1) == channels


def _gemm_fits(graph: LayeredGraph, node: ir.Node, channels: int) -> bool:
    return _kernel(graph, node).shape[0 if node.attributes.get_int("transB", 0) else 1] == channels


_FOLD = {"Conv": _fold_conv, "ConvTranspose": _fold_transposed_conv, "Gemm": _fold_gemm}
_FITS = {"Conv": _conv_fits, "ConvTranspose": _transposed_conv_fits, "Gemm": _gemm_fits}
