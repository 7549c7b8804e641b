"""Rule A7."""

import torch
from torch.nn import functional

from ...models import images
from .graphs import Apply, of_module, rules


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
