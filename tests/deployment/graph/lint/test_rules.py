"""All rules together: clean models, order, time."""

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from lightning_robust.demo.fashion_mnist import ImageClassifier
from lightning_robust.demo.lanes import LaneDetector

from ...models import SmallCNN
from .graphs import of_module, of_nodes


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


def test_large_graphs_are_read_in_time():
    """2,000 nodes in a chain, with a constant each."""
    nodes = [helper.make_node("Add", [f"x{i}", "c"], [f"x{i + 1}"], f"add{i}") for i in range(2000)]
    inputs, outputs = [("x0", TensorProto.FLOAT, [1, 4])], [("x2000", TensorProto.FLOAT, [1, 4])]
    assert of_nodes(nodes, inputs, outputs, {"c": np.ones(4, np.float32)}) == []
