"""All rules together: clean models, order, time."""

import time

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from lightning_robust.demo.fashion_mnist import ImageClassifier
from lightning_robust.demo.lanes import LaneDetector
from lightning_robust.deployment.graph.lint import lint

from ...models import SmallCNN
from .graphs import of_module, written


@pytest.mark.parametrize(
    "module", [ImageClassifier(), LaneDetector(height=64, width=64, channels=8, hidden=16), SmallCNN()], ids=type
)
def test_demo_models_are_clean(module):
    channels, size = (1, 28) if isinstance(module, ImageClassifier) else (3, 16)
    size = 64 if isinstance(module, LaneDetector) else size
    found = of_module(module, torch.rand(2, channels, size, size))
    # as long as the detector returns pixel columns, that is found
    assert [finding for finding in found if finding.rule != "A8"] == []


def test_attention_and_layer_norm_of_torch_are_clean():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True)

        def forward(self, tokens):
            return self.layer(tokens)

    assert of_module(Block(), torch.rand(2, 5, 16)) == []


def test_time_is_linear_in_the_size_of_the_graph():
    """4,000 nodes in a chain, with a constant each that reaches the output."""

    def seconds(count):
        nodes = [helper.make_node("Add", [f"x{i}", "c"], [f"x{i + 1}"], f"add{i}") for i in range(count)]
        parts = [("x0", TensorProto.FLOAT, [1, 4])], [(f"x{count}", TensorProto.FLOAT, [1, 4])]
        model = written(nodes, *parts, {"c": np.ones(4, np.float32)})
        start = time.process_time()
        assert lint(model) == []
        return time.process_time() - start

    seconds(10)
    assert seconds(4000) < 3
