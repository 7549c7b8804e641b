"""Modules and graphs that the rules are tried on."""

import numpy as np
from onnx import helper, numpy_helper
from torch import nn

from lightning_robust.deployment.graph.export import export, frozen_copy
from lightning_robust.deployment.graph.lint import lint


def rules(findings):
    return [finding.rule for finding in findings]


def of_module(module, *args):
    exported = export(frozen_copy(module), args)
    return lint(exported.model, exported.origins)


def of_nodes(nodes, inputs, outputs, initializers=(), opset=20):
    """A graph written by hand."""
    info = [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in inputs]
    out = [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in outputs]
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in dict(initializers).items()]
    graph = helper.make_graph(nodes, "graph", info, out, tensors)
    return lint(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)]))


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
