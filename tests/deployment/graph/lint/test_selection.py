"""Rule A9."""

import torch
from onnx import TensorProto, helper

from ...models import images
from .graphs import Apply, of_module, of_nodes, rules


def test_a9_hard_selection():
    def best(self, x):
        x = x.flatten(2)
        return x.gather(2, x.abs().argmax(2, keepdim=True))

    assert rules(of_module(Apply(best), images())) == ["A9"]
    node = helper.make_node("NonMaxSuppression", ["b", "s"], ["y"], "nms")
    shapes = (
        [("b", TensorProto.FLOAT, [1, 6, 4]), ("s", TensorProto.FLOAT, [1, 1, 6])],
        [("y", TensorProto.INT64, None)],
    )
    assert rules(of_nodes([node], *shapes)) == ["A9"]

    def soft(self, x):
        """As the lane detector: weights around the best cell."""
        x = x.flatten(2)
        places = torch.arange(x.shape[2]).float()
        near = ((places - x.argmax(2, keepdim=True).float()).abs() <= 3).float()
        return (x.softmax(2) * near * places).sum(2)

    assert of_module(Apply(soft), images()) == []
    # the class itself is the output
    assert of_module(Apply(lambda self, x: x.mean((2, 3)).argmax(1)), images()) == []
