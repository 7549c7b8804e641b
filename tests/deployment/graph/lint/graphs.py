"""Modules and graphs that the rules are tried on."""

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from torch import nn

from lightning_robust.deployment.graph.export import export, frozen_copy
from lightning_robust.deployment.graph.lint import lint

from ...models import images


def rules(found):
    """The rules of findings, or of a graph."""
    return [finding.rule for finding in (lint(found) if isinstance(found, onnx.ModelProto) else found)]


def of_module(module, *args):
    exported = export(frozen_copy(module), args)
    return lint(exported.model, exported.origins)


def of_nodes(*parts, **settings):
    """What is found in a graph written by hand."""
    return lint(written(*parts, **settings))


def written(nodes, inputs, outputs, initializers=(), opset=20):
    """A graph written by hand; constants that no node reads are left out."""
    info = [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in inputs]
    out = [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in outputs]
    read = {name for node in nodes for name in node.input}
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in dict(initializers).items()]
    graph = helper.make_graph(nodes, "graph", info, out, [tensor for tensor in tensors if tensor.name in read])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def parser_accepts(model):
    """Whether the parser of TensorRT-RTX takes every node; skips the test where it is not installed."""
    trt = pytest.importorskip("tensorrt_rtx")
    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    network = trt.Builder(logger).create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    return trt.OnnxParser(network, logger).supports_model_v2(model.SerializeToString())


class Apply(nn.Module):
    """A function of the output of a layer with a name."""

    def __init__(self, function, **layers):
        super().__init__()
        self.neck = nn.Conv2d(3, 4, 3, padding=1)
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.function = function

    def forward(self, pictures):
        return self.function(self, self.neck(pictures))


class _Head(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class _Heads(nn.Module):
    def __init__(self, functions):
        super().__init__()
        self.neck = nn.Conv2d(3, 4, 3, padding=1)
        self.heads = nn.ModuleList(map(_Head, functions))

    def forward(self, pictures):
        x = self.neck(pictures)
        return tuple(head(x) for head in self.heads)


def of_heads(functions):
    """What is found in each of several functions of one layer's output, name -> findings. One export for all."""
    found = of_module(_Heads(functions.values()), images())
    parts = {name: [f for f in found if f.module == f"heads.{index}"] for index, name in enumerate(functions)}
    assert sum(map(len, parts.values())) == len(found), found
    return parts
