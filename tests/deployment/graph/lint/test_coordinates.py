"""Rules A7 and A8."""

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from torch.nn import functional

from ...models import images
from .graphs import Apply, of_heads, of_module, of_nodes, rules


def sampled(self, x):
    return functional.grid_sample(x, x[:, :2].tanh().permute(0, 2, 3, 1), align_corners=False)


def test_a7_sampling():
    (finding,) = of_module(Apply(sampled), images())
    assert finding.rule == "A7"
    assert "0.0039 pixels of 16" in finding.consequence


def test_a7_steps_closed_form():
    """At 0.75 of a [-1, 1] grid: 2**-11 of a half width, 0.244 pixels of 1000."""
    step = float(np.spacing(np.float16(0.75)))
    assert step == pytest.approx(0.00049, rel=0.01)
    assert step * 1000 / 2 == pytest.approx(1000 / 4096)


def test_a7_coordinates():
    noise = torch.randn(600, generator=torch.Generator().manual_seed(0)) * 1000
    places = {"600": torch.arange(600), "500": torch.arange(500), "none": noise, "normal": torch.linspace(0, 1, 600)}
    found = of_heads({n: lambda x, v=v: (x.mean((1, 2, 3))[:, None] * v).sum(1) for n, v in places.items()})
    # numbers that are no grid are found where they reach an output
    assert {name: rules(f) for name, f in found.items()} == {"600": ["A7"], "500": [], "none": ["A8"], "normal": []}
    (inside,) = of_heads({"inside": lambda x: (x.mean((1, 2, 3))[:, None] * noise).sum(1).sigmoid()}).values()
    assert inside == []


def anchors():
    rows, columns = torch.meshgrid(torch.arange(16) * 80, torch.arange(24) * 80, indexing="ij")
    return torch.stack([columns, rows]).float()[None]


def levels():
    """The anchor points of strides 8, 16 and 32 on a map of 640, one after the other."""
    return torch.cat([torch.arange(stride / 2, 640, stride) for stride in (8, 16, 32)])


def scores(x):
    """(N, 4, 24)."""
    return x.flatten(2)[:, :, :24]


GRIDS = {
    "anchors of four dimensions up to 1840": (lambda x: functional.pad(x, (0, 8))[:, :2] + anchors(), "A7", "1840"),
    "anchors of several strides": (lambda x: x.flatten(1)[:, :1] + levels(), "A7", "636"),
    "24 places that are 80 apart": (lambda x: (scores(x).softmax(2) * torch.arange(24) * 80).sum(2), "A8", "1840"),
    "the same as one constant": (lambda x: (scores(x).softmax(2) * (torch.arange(24) * 80)).sum(2), "A7", "1840"),
    "a product with places": (lambda x: scores(x).softmax(2) @ (torch.arange(24) * 80.0), "A7", "1840"),
    "a product, then a scale": (lambda x: scores(x).softmax(2) @ torch.arange(24.0) * 80, "A8", "1840"),
    "a sum of indices, then a scale": (lambda x: (scores(x).softmax(2) * torch.arange(24)).sum(2) * 80, "A8", "1840"),
    "einsum": (lambda x: torch.einsum("bkw,w->bk", scores(x).softmax(2), torch.arange(24.0)) * 80, "A8", "1840"),
    "a weighted mean": (
        lambda x: (scores(x).softmax(2) * torch.arange(24.0)).sum(2) / scores(x).softmax(2).sum(2) * 80,
        "A8",
        "1840",
    ),
    "one of two parts": (lambda x: torch.cat([x.mean((2, 3)), x.mean((1, 2)).sigmoid() * 960], 1), "A8", "960"),
    "a row of a table": (
        lambda x: x.mean((2, 3)) + torch.tensor([100.0, 700.0, 1300.0])[(x.mean((1, 2, 3)) > 0).long()][:, None],
        "A7",
        "1300",
    ),
    "an offset": (lambda x: x.mean((1, 2)) * 20 + 700, "A8", "700"),
    "divided by a width in units": (lambda x: x.mean((1, 2)) / (1 / 1840), "A8", "1840"),
}


def test_grids_by_their_largest_value():
    found = of_heads({name: head for name, (head, _, _) in GRIDS.items()})
    assert {name: rules(findings) for name, findings in found.items()} == {
        n: [rule] for n, (_, rule, _) in GRIDS.items()
    }
    for name, (finding,) in found.items():
        size = GRIDS[name][2]
        assert size in finding.what
        assert f"steps of {0.5 if float(size) < 1024 else 1:g}" in finding.consequence


LEARNED = torch.randn(4, 24, generator=torch.Generator().manual_seed(0))
LEARNED[:, 7] = 3000.0

SMALL = {
    "learned positions with an outlier": lambda x: (scores(x) + LEARNED).softmax(2),
    "places as a fraction": lambda x: (scores(x).softmax(2) * torch.linspace(0, 1, 24)).sum(2),
    "16 bins": lambda x: scores(x)[:, :, :16].softmax(2) @ torch.arange(16.0) * 32,
    "scaled before a sigmoid": lambda x: (x.mean((1, 2)) * 960).sigmoid(),
    "scaled up and down again": lambda x: x.mean((1, 2)) * 960 / 960,
    "a large denominator": lambda x: x.mean((1, 2)) / (x.mean((1, 2)).abs() + 1000),
    "a minus infinity": lambda x: x.masked_fill(x < 0, -torch.inf).flatten(1).softmax(1),
}


def test_grids_nearly():
    assert of_heads(SMALL) == {name: [] for name in SMALL}


def test_a8_outputs_in_pixels():
    found = of_heads({scale: lambda x, scale=scale: x.mean((1, 2)).sigmoid() * scale + 1 for scale in (960, 400)})
    assert rules(found[960]) == ["A8"]
    assert found[400] == []


def test_a8_one_finding_for_one_output():
    three = {"three": lambda x: torch.cat([x.mean((1, 2)) * scale for scale in (700, 1900, 800)], 1)}
    ((finding,),) = of_heads(three).values()
    assert "1900" in finding.what


def test_a8_step_is_that_of_fp16():
    sizes = (513, 1840, 5000, 60000)
    found = of_heads({str(size): lambda x, size=size: x.mean((1, 2)).sigmoid() * size for size in sizes})
    for size in sizes:
        half = torch.tensor(float(size)).half()
        step = (torch.nextafter(half, torch.tensor(torch.inf).half()) - half).item()
        ((finding,),) = [found[str(size)]]
        assert f"steps of {step:g}:" in finding.consequence


def test_a8_soft_argmax_in_pixels():
    """As the lane detector of the demo: weights near the best cell, their mean, its place in a picture of 960."""

    def columns(x):
        scores = x.flatten(2)[:, :, :24]
        places = torch.arange(24).float()
        near = ((places - scores.argmax(2, keepdim=True).float()).abs() <= 3).float()
        weights = scores.softmax(2) * near
        return ((weights * places).sum(2) / weights.sum(2) + 0.5) * 40 - 0.5

    ((finding,),) = of_heads({"columns": columns}).values()
    assert finding.rule == "A8"
    assert "920" in finding.what


@pytest.mark.parametrize(("step", "expected"), [(80, ["A7"]), (20, [])])
def test_a7_a_range_that_is_computed_in_the_graph(step, expected):
    """As exporters that fold nothing write it: Range -> Cast -> Mul -> Unsqueeze, and the mean under a softmax."""
    nodes = [
        helper.make_node("Range", ["zero", "count", "one"], ["indices"]),
        helper.make_node("Cast", ["indices"], ["cells"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["cells", "step"], ["places"]),
        helper.make_node("Unsqueeze", ["places", "axis"], ["row"]),
        helper.make_node("Softmax", ["x"], ["weights"]),
        helper.make_node("Mul", ["weights", "row"], ["product"], "product"),
        helper.make_node("ReduceSum", ["product", "one_axis"], ["y"], keepdims=0),
    ]
    whole = {"zero": np.array(0), "count": np.array(24), "one": np.array(1), "axis": np.array([0])}
    constants = whole | {"one_axis": np.array([1]), "step": np.array(step, np.float32)}
    found = of_nodes(nodes, [("x", TensorProto.FLOAT, [2, 24])], [("y", TensorProto.FLOAT, [2])], constants)
    assert rules(found) == expected
    assert all(finding.node == "product" and "1840" in finding.what for finding in found)


def test_a_range_without_end_is_not_made():
    nodes = [helper.make_node("Range", ["zero", "count", "one"], ["r"]), helper.make_node("Mul", ["x", "r"], ["y"])]
    constants = {name: np.array(value) for name, value in {"zero": 0, "count": 10**12, "one": 1}.items()}
    assert of_nodes(nodes, [("x", TensorProto.INT64, [1])], [("y", TensorProto.INT64, [None])], constants) == []
