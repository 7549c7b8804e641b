"""Graphs that the tests of precision share."""

import functools

import numpy as np
import onnx.parser
import torch
from onnx import TensorProto, helper, numpy_helper

from lightning_robust.deployment.graph.export import export, frozen_copy
from lightning_robust.deployment.graph.session import Session
from lightning_robust.deployment.numerics.sweep import NodeSweep

from .models import OutlierViT, OverflowingNorm, SmallCNN, images

MODULES = {"cnn": SmallCNN, "norm": OverflowingNorm, "vit": OutlierViT}


def run(model, x):
    """The first output of a graph with one input."""
    return Session(model).run({model.graph.input[0].name: x.numpy()})[0]


@functools.cache
def make(kind, count=4):
    torch.manual_seed(0)
    x = images(count)
    return export(frozen_copy(MODULES[kind]()), (x,)), x


def sweep(kind, **settings):
    exported, x = make(kind)
    return exported, x, NodeSweep(exported.model, {"input": x.numpy()}, origins=exported.origins, **settings)


def chain(*steps, size=4):
    """x through nodes ``(op, constant or None)`` named n0, n1, ..."""
    nodes, weights = [], []
    for i, (op, constant) in enumerate(steps):
        operands = [f"v{i}"]
        if constant is not None:
            weights.append(numpy_helper.from_array(np.array([constant], np.float32), f"c{i}"))
            operands.append(f"c{i}")
        nodes.append(helper.make_node(op, operands, [f"v{i + 1}"], f"n{i}"))
    x = helper.make_tensor_value_info("v0", TensorProto.FLOAT, ["batch", size])
    y = helper.make_tensor_value_info(f"v{len(steps)}", TensorProto.FLOAT, ["batch", size])
    graph = helper.make_graph(nodes, "g", [x], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def binary(op, value, *, name="node"):
    """A graph x op constant."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None])
    constant = numpy_helper.from_array(np.array([value], np.float32), "c")
    graph = helper.make_graph([helper.make_node(op, ["x", "c"], ["y"], name)], "g", [x], [y], [constant])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def graph(text, opset=20, **weights):
    """A model from ONNX's own text form, with fp32 or int64 weights given as arrays."""
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]> {text}')
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items())
    onnx.checker.check_model(model, full_check=True)
    return model
