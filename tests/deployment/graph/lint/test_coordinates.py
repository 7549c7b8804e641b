"""Rules A7 and A8."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from lightning_robust.demo.lanes import LaneDetector

from ...models import images
from .graphs import Apply, of_module, rules


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
    for cells, expected in ((600, ["A7"]), (500, [])):
        places = torch.arange(cells).float()
        module = Apply(lambda self, x, places=places: (x.mean((1, 2, 3))[:, None].expand(-1, 1) * places).sum(1))
        assert rules(of_module(module, images())) == expected
    # numbers that are no grid, which reach the output, and a range from 0 to 1
    noise = torch.randn(600, generator=torch.Generator().manual_seed(0)) * 1000
    for values, expected in ((noise, ["A8"]), (torch.linspace(0, 1, 600), [])):
        module = Apply(lambda self, x, values=values: (x.mean((1, 2, 3))[:, None] * values).sum(1))
        assert rules(of_module(module, images())) == expected
        inside = Apply(lambda self, x, values=values: (x.mean((1, 2, 3))[:, None] * values).sum(1).sigmoid())
        assert of_module(inside, images()) == []


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
    "an offset": (lambda x: x.mean((1, 2)) * 20 + 700, "A8", "700"),
    "divided by a width in units": (lambda x: x.mean((1, 2)) / (1 / 1840), "A8", "1840"),
}


@pytest.mark.parametrize("name", GRIDS)
def test_grids_by_their_largest_value(name):
    head, rule, size = GRIDS[name]
    (finding,) = of_module(Apply(lambda self, x: head(x)), images())
    assert finding.rule == rule
    assert size in finding.what
    assert f"steps of {0.5 if float(size) < 1024 else 1:g}" in finding.consequence


SMALL = {
    "learned positions with an outlier": lambda x: (scores(x) + outlier()).softmax(2),
    "places as a fraction": lambda x: (scores(x).softmax(2) * torch.linspace(0, 1, 24)).sum(2),
    "16 bins": lambda x: scores(x)[:, :, :16].softmax(2) @ torch.arange(16.0) * 32,
    "scaled before a sigmoid": lambda x: (x.mean((1, 2)) * 960).sigmoid(),
    "scaled up and down again": lambda x: x.mean((1, 2)) * 960 / 960,
    "a large denominator": lambda x: x.mean((1, 2)) / (x.mean((1, 2)).abs() + 1000),
    "a minus infinity": lambda x: x.masked_fill(x < 0, -torch.inf).flatten(1).softmax(1),
}


def outlier():
    table = torch.randn(4, 24, generator=torch.Generator().manual_seed(0))
    table[:, 7] = 3000.0
    return table


@pytest.mark.parametrize("name", SMALL)
def test_grids_nearly(name):
    assert of_module(Apply(lambda self, x: SMALL[name](x)), images()) == []


@pytest.mark.parametrize(("scale", "expected"), [(960.0, ["A8"]), (400.0, [])])
def test_a8_outputs_in_pixels(scale, expected):
    assert rules(of_module(Apply(lambda self, x: x.mean((1, 2)).sigmoid() * scale + 1), images())) == expected


def test_a8_one_finding_for_one_output():
    def three(self, x):
        return torch.cat([x.mean((1, 2)) * scale for scale in (700, 1900, 800)], 1)

    (finding,) = of_module(Apply(three), images())
    assert "1900" in finding.what


def test_a8_step_is_that_of_fp16():
    for size in (513, 1840, 5000, 60000):
        half = torch.tensor(float(size)).half()
        step = (torch.nextafter(half, torch.tensor(torch.inf).half()) - half).item()
        (finding,) = of_module(Apply(lambda self, x, size=size: x.mean((1, 2)).sigmoid() * size), images())
        assert f"steps of {step:g}:" in finding.consequence


def test_a8_demo_detector_of_a_wide_picture():
    """Its head returns columns up to the width of the picture, unless they are fractions of it."""
    found = of_module(LaneDetector(height=32, width=960, channels=4, hidden=8), torch.rand(2, 3, 32, 960))
    assert rules(found) in (["A8"], [])
