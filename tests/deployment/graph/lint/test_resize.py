"""Rules A1 and A2."""

import numpy as np
import pytest
from onnx import TensorProto, helper
from torch.nn import functional

from ...models import images
from .graphs import Apply, of_module, of_nodes, rules


def interpolated(**settings):
    return Apply(lambda self, x: functional.interpolate(x, size=(9, 9), **settings))


def test_a1_antialiasing():
    (finding,) = of_module(interpolated(mode="bilinear", antialias=True), images())
    assert finding.rule == "A1"
    assert "graphs.py" in finding.source
    assert str(finding).startswith("A1 ")
    assert of_module(interpolated(mode="bilinear"), images()) == []


def resized(mode, kind="linear", opset=20):
    node = helper.make_node("Resize", ["x", "", "s"], ["y"], "up", mode=kind, coordinate_transformation_mode=mode)
    shapes = [("x", TensorProto.FLOAT, [1, 1, 4, 4])], [("y", TensorProto.FLOAT, [1, 1, 8, 8])]
    return of_nodes([node], *shapes, {"s": np.array([1, 1, 2, 2], np.float32)}, opset)


@pytest.mark.parametrize("mode", ["pytorch_half_pixel", "tf_crop_and_resize", "half_pixel_symmetric", "asymmetric"])
def test_a2_coordinate_modes(mode):
    assert "A2" in rules(resized(mode))


def test_a2_nearly():
    assert resized("half_pixel") == resized("align_corners") == resized("asymmetric", "nearest") == []
    node = helper.make_node("Resize", ["x", "s"], ["y"], "up", mode="linear")
    shapes = [("x", TensorProto.FLOAT, [1, 1, 4, 4])], [("y", TensorProto.FLOAT, [1, 1, 8, 8])]
    assert "A2" in rules(of_nodes([node], *shapes, {"s": np.array([1, 1, 2, 2], np.float32)}, 10))
