"""Rules A1 and A2."""

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from torch.nn import functional

from lightning_robust.deployment.graph.lint import lint
from lightning_robust.deployment.graph.session import Session

from ...models import images
from .graphs import Apply, of_module, parser_accepts, rules, written


def interpolated(**settings):
    return Apply(lambda self, x: functional.interpolate(x, size=(9, 9), **settings))


def test_a1_antialiasing():
    (finding,) = of_module(interpolated(mode="bilinear", antialias=True), images())
    assert finding.rule == "A1"
    assert "graphs.py" in finding.source
    assert str(finding).startswith("A1 ")
    assert of_module(interpolated(mode="bilinear"), images()) == []


def resized(mode="half_pixel", kind="linear", opset=20, **settings):
    modes = {"coordinate_transformation_mode": mode} if opset > 10 else {}
    inputs = ["x", "r" if mode == "tf_crop_and_resize" else "", "s"] if opset > 10 else ["x", "s"]
    node = helper.make_node("Resize", inputs, ["y"], "up", mode=kind, **modes, **settings)
    shapes = [("x", TensorProto.FLOAT, [1, 1, 4, 4])], [("y", TensorProto.FLOAT, [1, 1, 8, 8])]
    constants = {"s": np.array([1, 1, 2, 2], np.float32), "r": np.array([0, 0, 0, 0, 1, 1, 1, 1], np.float32)}
    return written([node], *shapes, constants, opset)


MODES = {
    "half_pixel": [],
    "pytorch_half_pixel": [],  # every file of the older exporter of torch
    "align_corners": [],
    "asymmetric": [],
    "tf_crop_and_resize": ["A2"],
    "half_pixel_symmetric": ["A2"],
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["nearest", "linear", "cubic"])
def test_a2_coordinate_modes(mode, kind):
    assert rules(resized(mode, kind)) == MODES[mode]


def test_refusals_are_those_of_the_parser():
    for mode, expected in MODES.items():
        assert parser_accepts(resized(mode)) == (not expected), mode
    assert not parser_accepts(resized(antialias=1))
    assert parser_accepts(resized(opset=10))


def test_a2_old_operator_sets():
    """Nearest neighbours of operator set 10 are those of PyTorch, its linear positions are not."""
    (finding,) = lint(resized(kind="linear", opset=10))
    assert finding.rule == "A2"
    assert "half a pixel" in finding.consequence
    assert rules(resized(kind="nearest", opset=10)) == []


def test_old_linear_positions_are_half_a_pixel_off():
    """A ramp resized by 2: operator set 10 samples at x / 2, PyTorch at (x + 1/2) / 2 - 1/2."""
    ramp = np.arange(4, dtype=np.float32).reshape(1, 1, 1, 4).repeat(4, 2)
    (old,) = Session(resized(opset=10)).run({"x": ramp})
    expected = functional.interpolate(torch.from_numpy(ramp), scale_factor=2, mode="bilinear")
    assert (old[0, 0, 0] - expected[0, 0, 0])[1:-2].numpy() == pytest.approx([0.25] * 5)
    (new,) = Session(resized("pytorch_half_pixel")).run({"x": ramp})
    assert torch.equal(new, expected)
