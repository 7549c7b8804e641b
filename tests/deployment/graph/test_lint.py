"""Each rule on a model that breaks it and on one that nearly does; none on the demos."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional

from lightning_robust.demo.fashion_mnist import ImageClassifier
from lightning_robust.demo.lanes import LaneDetector
from lightning_robust.deployment.graph.export import export, frozen_copy
from lightning_robust.deployment.graph.lint import lint
from lightning_robust.deployment.numerics.convert import to_half

from ..models import OverflowingNorm, SmallCNN, images


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


@pytest.mark.parametrize(
    "module", [ImageClassifier(), LaneDetector(height=64, width=64, channels=8, hidden=16), SmallCNN()], ids=type
)
def test_demo_models_are_clean(module):
    channels, size = (1, 28) if isinstance(module, ImageClassifier) else (3, 16)
    size = 64 if isinstance(module, LaneDetector) else size
    assert of_module(module, torch.rand(2, channels, size, size)) == []


def test_attention_and_layer_norm_of_torch_are_clean():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True)

        def forward(self, tokens):
            return self.layer(tokens)

    assert of_module(Block(), torch.rand(2, 5, 16)) == []


def interpolated(**settings):
    return Apply(lambda self, x: functional.interpolate(x, size=(9, 9), **settings))


def test_a1_antialiasing():
    (finding,) = of_module(interpolated(mode="bilinear", antialias=True), images())
    assert finding.rule == "A1"
    assert "test_lint.py" in finding.source
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


@pytest.mark.parametrize(("scale", "expected"), [(1e6, ["A3"]), (1e-6, ["A3"]), (1e4, []), (1e-2, [])])
def test_a3_weights(scale, expected):
    module = Apply(lambda self, x: self.last(x.mean((2, 3))), last=nn.Linear(4, 4))
    with torch.no_grad():
        module.last.weight.copy_(torch.linspace(0.5, 1, 16).reshape(4, 4) * scale)
    found = of_module(module, images())
    assert rules(found) == expected
    assert all(finding.module == "last" for finding in found)


@pytest.mark.parametrize(("fill", "expected"), [(-1e9, ["A4"]), (torch.finfo(torch.float32).min, ["A4"]), (-1e4, [])])
def test_a4_masks(fill, expected):
    module = Apply(lambda self, x: x.masked_fill(x < 0, fill).flatten(1).softmax(1))
    assert rules(of_module(module, images())) == expected


def test_a4_clamping_far_out_is_no_mask():
    assert of_module(Apply(lambda self, x: x.clamp(-1e9, 1e9).flatten(1)), images()) == []


def dropped(training):
    node = helper.make_node("Dropout", ["x", "r", "t"], ["y"], "drop")
    constants = {"r": np.array(0.5, np.float32), "t": np.array(training)}
    return of_nodes([node], [("x", TensorProto.FLOAT, [2, 3])], [("y", TensorProto.FLOAT, [2, 3])], constants)


def test_a5_training_mode():
    assert rules(dropped(True)) == ["A5"]
    assert dropped(False) == []
    values = {name: np.ones(3, np.float32) for name in "sbmv"}
    for mode, outputs in ((1, ["y", "m2", "v2"]), (0, ["y"])):
        node = helper.make_node("BatchNormalization", ["x", *"sbmv"], outputs, "norm", training_mode=mode)
        shapes = [("x", TensorProto.FLOAT, [2, 3])], [("y", TensorProto.FLOAT, [2, 3])]
        assert rules(of_nodes([node], *shapes, values)) == ["A5"] * mode


def test_a6_norms_written_out():
    (finding,) = of_module(OverflowingNorm(), images())
    assert finding.rule == "A6"
    assert "models.py" in finding.source
    norm = Apply(lambda self, x: functional.layer_norm(x.permute(0, 2, 3, 1), (4,)))
    assert of_module(norm, images()) == []
    # a length, and a mean of squares that divides nothing
    assert of_module(Apply(lambda self, x: (x.abs().mean(1) + 1e-3).sqrt()), images()) == []
    assert of_module(Apply(lambda self, x: (x.pow(2).mean(1) + 1e-3).sqrt()), images()) == []


def test_a7_coordinates():
    def sampled(self, x):
        return functional.grid_sample(x, x[:, :2].tanh().permute(0, 2, 3, 1), align_corners=False)

    assert "A7" in rules(of_module(Apply(sampled), images()))
    for cells, expected in ((600, ["A7"]), (500, [])):
        places = torch.arange(cells).float()
        module = Apply(lambda self, x, places=places: (x.mean((1, 2, 3))[:, None].expand(-1, 1) * places).sum(1))
        assert rules(of_module(module, images())) == expected
    # many numbers that are no range, and a range from 0 to 1
    noise = torch.randn(600, generator=torch.Generator().manual_seed(0)) * 1000
    for values in (noise, torch.linspace(0, 1, 600)):
        module = Apply(lambda self, x, values=values: (x.mean((1, 2, 3))[:, None] * values).sum(1))
        assert of_module(module, images()) == []


@pytest.mark.parametrize(("scale", "expected"), [(960.0, ["A8"]), (400.0, [])])
def test_a8_outputs_in_pixels(scale, expected):
    assert rules(of_module(Apply(lambda self, x: x.mean((1, 2)).sigmoid() * scale + 1), images())) == expected


def test_a8_large_numbers_inside_are_not_outputs():
    assert of_module(Apply(lambda self, x: (x.mean((1, 2)) * 960).sigmoid()), images()) == []


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


def test_a10_shapes_in_floating_point():
    def graph(kind):
        nodes = [
            helper.make_node("Shape", ["x"], ["shape"], "shape"),
            helper.make_node("Cast", ["shape"], ["float"], "cast", to=kind),
            helper.make_node("Mul", ["float", "two"], ["double"], "mul"),
            helper.make_node("Cast", ["double"], ["sizes"], "back", to=TensorProto.INT64),
            helper.make_node("Expand", ["one", "sizes"], ["y"], "expand"),
        ]
        two = np.array(2, np.float32 if kind == TensorProto.FLOAT else np.int64)
        constants = {"two": two, "one": np.ones((1, 1), np.float32)}
        return of_nodes(nodes, [("x", TensorProto.FLOAT, ["n", 3])], [("y", TensorProto.FLOAT, None)], constants)

    assert rules(graph(TensorProto.FLOAT)) == ["A10"]
    assert graph(TensorProto.INT64) == []


@pytest.mark.parametrize(("kind", "expected"), [(TensorProto.FLOAT16, ["A7", "A11"]), (TensorProto.FLOAT, ["A7"])])
def test_a11_grids_of_another_type(kind, expected):
    node = helper.make_node("GridSample", ["x", "g"], ["y"], "sample")
    inputs = [("x", kind, [1, 1, 4, 4]), ("g", TensorProto.FLOAT, [1, 4, 4, 2])]
    assert rules(of_nodes([node], inputs, [("y", kind, [1, 1, 4, 4])])) == expected


def test_a12_types_that_do_not_agree():
    exported = export(frozen_copy(SmallCNN()), (images(),))
    half = to_half(exported.model)
    assert "A12" not in rules(lint(half))
    broken = onnx.ModelProto()
    broken.CopyFrom(half)
    weight = next(tensor for tensor in broken.graph.initializer if tensor.data_type == TensorProto.FLOAT16)
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight).astype(np.float32), weight.name))
    (finding,) = [found for found in lint(broken) if found.rule == "A12"]
    assert "A strongly typed engine does not build" in finding.consequence


def test_large_graphs_are_read_in_time():
    """2,000 nodes in a chain, with a constant each."""
    nodes = [helper.make_node("Add", [f"x{i}", "c"], [f"x{i + 1}"], f"add{i}") for i in range(2000)]
    inputs, outputs = [("x0", TensorProto.FLOAT, [1, 4])], [("x2000", TensorProto.FLOAT, [1, 4])]
    assert of_nodes(nodes, inputs, outputs, {"c": np.ones(4, np.float32)}) == []
