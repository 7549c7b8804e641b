"""Rules A6 and A14, each on a model that breaks it and on one that nearly does."""

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from torch.nn import functional

from ...models import OverflowingNorm, images
from .graphs import of_heads, of_module, of_nodes, rules, written


def centred(x):
    return x - x.mean(1, keepdim=True)


def moments(x):
    return (x * x).mean(1, keepdim=True) - x.mean(1, keepdim=True) ** 2


NORMS = {
    "mean of squares": lambda x: centred(x) / (centred(x).pow(2).mean(1, keepdim=True) + 1e-6).sqrt(),
    "variance": lambda x: centred(x) * torch.rsqrt(x.var(1, keepdim=True) + 1e-6),
    "biased variance": lambda x: centred(x) * torch.rsqrt(x.var(1, keepdim=True, unbiased=False) + 1e-6),
    "deviation": lambda x: centred(x) / (x.std(1, keepdim=True) + 1e-6),
    "sum of squares": lambda x: x / ((x * x).sum(1, keepdim=True) + 1e-6).sqrt(),
    "moments": lambda x: centred(x) / (moments(x) + 1e-6).sqrt(),
    "moments, clamped": lambda x: centred(x) * torch.rsqrt(moments(x).clamp(min=1e-6)),
    "power of a half": lambda x: x / (x.square().mean(1, keepdim=True) + 1e-6) ** 0.5,
    "power of minus a half": lambda x: x * (x.square().mean(1, keepdim=True) + 1e-6) ** -0.5,
    "deviation to the power of minus one": lambda x: (
        x * x.square().mean(1, keepdim=True).sqrt().clamp(min=1e-6) ** -1.0
    ),
    "length, clamped": lambda x: x / x.abs().pow(2).sum(1, keepdim=True).sqrt().clamp(min=1e-6),
    "einsum": lambda x: x / torch.einsum("bchw,bchw->bhw", x, x)[:, None].sqrt(),
    "pooled moments": lambda x: centred(x) / (functional.adaptive_avg_pool2d(x * x, 1) + 1e-6).sqrt(),
    "rms_norm": lambda x: functional.rms_norm(x.permute(0, 2, 3, 1), (4,)),
    "local_response_norm": lambda x: functional.local_response_norm(x, 3),
}


def test_a6_norms_written_out():
    found = of_heads(NORMS)
    assert {name: rules(findings) for name, findings in found.items()} == {name: ["A6"] for name in NORMS}


@pytest.mark.parametrize("reciprocal", [False, True])
@pytest.mark.parametrize("square", ["Mul", "Pow"])
def test_a6_by_hand(square, reciprocal):
    """x / sqrt(max(mean(x^2), eps)), as an exporter without names for parts writes it."""
    inputs, power = {"Mul": (["x", "x"], {}), "Pow": (["x", "two"], {"two": np.array(2, np.float32)})}[square]
    last = [helper.make_node("Reciprocal", ["root"], ["r"]), helper.make_node("Mul", ["x", "r"], ["y"])]
    nodes = [
        helper.make_node(square, inputs, ["square"]),
        helper.make_node("ReduceMean", ["square"], ["mean"], axes=[1]),
        helper.make_node("Max", ["mean", "eps"], ["safe"]),
        helper.make_node("Sqrt", ["safe"], ["root"], "root"),
        *(last if reciprocal else [helper.make_node("Div", ["x", "root"], ["y"])]),
    ]
    shape = [TensorProto.FLOAT, [2, 4]]
    (finding,) = of_nodes(nodes, [("x", *shape)], [("y", *shape)], power | {"eps": np.array([1e-6], np.float32)}, 13)
    assert (finding.rule, finding.node) == ("A6", "root")


def test_a6_a_difference_written_twice():
    """(x - m) * (x - m) from two nodes is a square, (x - m) * (x + m) is none."""
    for other, expected in (("Sub", ["A6"]), ("Add", [])):
        nodes = [
            helper.make_node("ReduceMean", ["x"], ["m"], axes=[1]),
            helper.make_node("Sub", ["x", "m"], ["a"]),
            helper.make_node(other, ["x", "m"], ["b"]),
            helper.make_node("Mul", ["a", "b"], ["square"]),
            helper.make_node("ReduceMean", ["square"], ["variance"], axes=[1]),
            helper.make_node("Sqrt", ["variance"], ["root"]),
            helper.make_node("Div", ["a", "root"], ["y"]),
        ]
        shape = [TensorProto.FLOAT, [2, 4]]
        assert rules(of_nodes(nodes, [("x", *shape)], [("y", *shape)], {}, 13)) == expected


def test_a6_overflowing_norm():
    (finding,) = of_module(OverflowingNorm(), images())
    assert finding.rule == "A6"
    assert "models.py" in finding.source


NEARLY = {
    "layer_norm": lambda x: functional.layer_norm(x.permute(0, 2, 3, 1), (4,)),
    "instance_norm": functional.instance_norm,
    "group_norm": lambda x: functional.group_norm(x, 2),
    "root of a mean of magnitudes": lambda x: (x.abs().mean(1) + 1e-3).sqrt(),
    "mean of squares that divides nothing": lambda x: (x.pow(2).mean(1) + 1e-3).sqrt(),
    "squares that are not summed": lambda x: x / (1 + x * x).sqrt(),
    "a mean under a root that divides": lambda x: x / (x.abs().mean(1, keepdim=True) + 1).sqrt(),
    "cube root": lambda x: x / (x.abs().mean(1, keepdim=True) + 1).pow(3),
    "divided by squares without a root": lambda x: x / ((x * x).sum(1, keepdim=True) + 1),
}


def test_a6_nearly():
    assert of_heads(NEARLY) == {name: [] for name in NEARLY}


REDUCTIONS = {
    "ReduceL2": lambda x: functional.normalize(x, dim=1),
    "ReduceLogSumExp": lambda x: x - x.logsumexp(1, keepdim=True),
}


def test_a14_reductions_of_torch():
    for name, (finding,) in of_heads(REDUCTIONS).items():
        assert finding.rule == "A14"
        assert finding.what.startswith(name)


def reduction(operator, kind=TensorProto.FLOAT):
    node = helper.make_node(operator, ["x"], ["y"], "reduce", axes=[1])
    return [node], [("x", kind, [2, 64])], [("y", kind, [2, 1])], {}, 13


@pytest.mark.parametrize("name", ["ReduceL2", "ReduceLogSumExp", "ReduceSumSquare", "ReduceL1", "ReduceMax"])
def test_a14_by_hand(name):
    expected = [] if name in ("ReduceL1", "ReduceMax") else ["A14"]
    assert rules(of_nodes(*reduction(name))) == expected


def test_bounds():
    """The smallest numbers that fp16 loses: 256 squared, and e to the 11.1."""
    assert torch.tensor(256.0).half().square().isinf()
    assert torch.tensor(255.5).half().square().isfinite()
    assert torch.tensor(11.1).half().exp().isinf()
    assert torch.tensor(11.0).half().exp().isfinite()


@pytest.mark.parametrize(("name", "wide"), [("ReduceL2", True), ("ReduceSumSquare", False)])
def test_a14_what_the_installed_parser_does(name, wide):
    """TensorRT-RTX computes the squares of ReduceL2 in fp32 and those of ReduceSumSquare in the type of the input."""
    trt = pytest.importorskip("tensorrt_rtx")
    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(written(*reduction(name, TensorProto.FLOAT16)).SerializeToString())
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    (square,) = [layer for layer in layers if layer.type == trt.LayerType.ELEMENTWISE]
    assert square.get_output(0).dtype == (trt.float32 if wide else trt.float16)
