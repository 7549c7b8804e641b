"""Rules A3, A4, A6 and A8, each on a model that breaks it and on one that nearly does."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from ...models import OverflowingNorm, images
from .graphs import Apply, of_module, rules


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


def test_a6_norms_written_out():
    (finding,) = of_module(OverflowingNorm(), images())
    assert finding.rule == "A6"
    assert "models.py" in finding.source
    norm = Apply(lambda self, x: functional.layer_norm(x.permute(0, 2, 3, 1), (4,)))
    assert of_module(norm, images()) == []
    # a length, and a mean of squares that divides nothing
    assert of_module(Apply(lambda self, x: (x.abs().mean(1) + 1e-3).sqrt()), images()) == []
    assert of_module(Apply(lambda self, x: (x.pow(2).mean(1) + 1e-3).sqrt()), images()) == []


@pytest.mark.parametrize(("scale", "expected"), [(960.0, ["A8"]), (400.0, [])])
def test_a8_outputs_in_pixels(scale, expected):
    assert rules(of_module(Apply(lambda self, x: x.mean((1, 2)).sigmoid() * scale + 1), images())) == expected


def test_a8_large_numbers_inside_are_not_outputs():
    assert of_module(Apply(lambda self, x: (x.mean((1, 2)) * 960).sigmoid()), images()) == []
