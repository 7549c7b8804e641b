"""Weights drawn by their definitions, unit variances, and files that fit in part."""

import math

import pytest
import torch
from torch import nn

from lightning_robust.functional import draw_weights, drawn_layers, load_fitting, scale_weights, unit_variances


@pytest.fixture(autouse=True)
def _same_numbers():
    torch.manual_seed(0)


@torch.no_grad()
def test_kaiming_keeps_the_second_moment_through_relu():
    """He et al.: E[y^2] stays over ten layers of ReLU at gain sqrt(2), and falls by 2^-10 at gain 1."""
    inputs = torch.randn(64, 512)
    network = nn.Sequential(*(layer for _ in range(10) for layer in (nn.ReLU(), nn.Linear(512, 512, bias=False))))
    draw_weights(drawn_layers(network), "kaiming", generator=torch.Generator().manual_seed(1))
    ratio = network(inputs).square().mean() / inputs.square().mean()
    assert 0.4 < ratio < 2.5
    draw_weights(drawn_layers(network), "kaiming", gain=1.0, generator=torch.Generator().manual_seed(1))
    assert network(inputs).square().mean() * 2**10 / inputs.square().mean() == pytest.approx(ratio.item(), rel=1e-3)


@pytest.mark.parametrize(
    ("layer", "inputs"),
    [
        (nn.Linear(300, 200), 300),
        (nn.Conv2d(32, 64, 3), 32 * 9),
        (nn.Conv2d(32, 64, 3, groups=4), 8 * 9),
        (nn.ConvTranspose2d(48, 64, 2), 48 * 4),
        (nn.ConvTranspose2d(48, 64, 2, groups=2), 24 * 4),
    ],
)
def test_kaiming_counts_the_inputs_of_a_unit(layer, inputs):
    bias = layer.bias.clone()
    draw_weights({"": layer}, "kaiming", gain=3.0)
    spread = layer.weight.std().item() * math.sqrt(inputs) / 3.0
    assert spread == pytest.approx(1.0, abs=4 / math.sqrt(2 * layer.weight.numel()))
    assert torch.equal(layer.bias, bias)


@pytest.mark.parametrize("layer", [nn.Linear(20, 50), nn.Linear(50, 20), nn.Conv2d(4, 16, 3)])
def test_orthogonal(layer):
    """The Gram matrix of the shorter side is gain^2 times the identity."""
    draw_weights({"": layer}, "orthogonal", gain=1.5)
    matrix = layer.weight.flatten(1)
    matrix = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    torch.testing.assert_close(matrix @ matrix.T, 2.25 * torch.eye(len(matrix)), atol=1e-5, rtol=0)


def test_precision_and_generator_do_not_change_what_is_drawn():
    """A bf16 layer gets the fp32 draw, rounded; the generator alone decides."""
    drawn = []
    for dtype in (torch.float32, torch.bfloat16):
        layer = nn.Linear(6, 4, dtype=dtype)
        state = torch.get_rng_state()
        draw_weights({"": layer}, "orthogonal", generator=torch.Generator().manual_seed(3))
        assert torch.equal(state, torch.get_rng_state())
        drawn.append(layer.weight.detach())
    assert torch.equal(drawn[0].bfloat16(), drawn[1])


def test_drawn_layers_leave_what_others_chose():
    frozen, zero, tied, embedding = nn.Linear(2, 2), nn.Conv1d(1, 1, 1), nn.Linear(2, 2), nn.Embedding(3, 2)
    frozen.requires_grad_(False)
    nn.init.zeros_(zero.weight)
    network = nn.ModuleDict({"a": frozen, "b": zero, "c": tied, "d": nn.Linear(2, 2), "e": embedding})
    network["f"] = nn.LayerNorm([3, 8, 8])  # whose scale has three dimensions
    network["d"].weight = tied.weight
    assert list(drawn_layers(network)) == ["c"]


def test_unit_variances_of_a_deep_network():
    """Before, outputs of 20 tanh layers fade to a variance below 0.1; after, each layer's is within the tolerance."""
    network = nn.Sequential(*(layer for _ in range(20) for layer in (nn.Linear(64, 64), nn.Tanh())))
    batch, layers = torch.randn(128, 64), drawn_layers(network)
    draw_weights(layers, "orthogonal", gain=0.5)
    assert network[:-1](batch).var() < 0.1
    found = unit_variances(layers, lambda: network(batch), tolerance=0.02)
    hidden = batch
    for number, part in enumerate(network):
        hidden = part(hidden)
        if number % 2 == 0:
            assert hidden.var().item() == pytest.approx(1.0, abs=0.02)
            assert found[str(number)] == pytest.approx(hidden.var().item(), rel=1e-4)


def test_unit_variances_follow_the_pass_and_leave_dead_layers():
    """Layers are scaled in the order of the pass, not of registration; one that is never run is not among them."""

    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.first, self.unused, self.dead = (nn.Linear(16, 16, bias=False) for _ in range(4))
            self.order = []
            for name in ("last", "first"):
                getattr(self, name).register_forward_hook(lambda *_, name=name: self.order.append(name))

        def forward(self, x):
            return self.last(self.first(x)) + self.dead(torch.zeros_like(x))

    network, batch = Backwards(), torch.randn(256, 16)
    layers = drawn_layers(network)
    before = network.dead.weight.clone(), network.unused.weight.clone()
    found = unit_variances(layers, lambda: network(batch), tolerance=0.01)
    assert list(found) == ["first", "last"]
    assert torch.equal(before[0], network.dead.weight)
    assert torch.equal(before[1], network.unused.weight)
    assert network.last(network.first(batch)).var().item() == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("tolerance", [0.0, 1.0, math.nan])
def test_rejects_tolerance(tolerance):
    with pytest.raises(ValueError, match="Expected `tolerance` between 0 and 1"):
        unit_variances({}, lambda: None, tolerance)


def test_scale_weights():
    layer = nn.Linear(3, 3)
    before = layer.weight.clone(), layer.bias.clone()
    scale_weights({"": layer}, 0.25)
    assert torch.equal(layer.weight, 0.25 * before[0])
    assert torch.equal(layer.bias, before[1])


def test_load_fitting_takes_what_fits():
    network = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
    other = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 5))
    head = network[1].weight.clone()
    assert load_fitting(network, other.state_dict(), "other") == ["1.weight", "1.bias"]
    assert torch.equal(network[0].weight, other[0].weight)
    assert torch.equal(network[1].weight, head)
    with pytest.raises(
        ValueError, match=r"by name and shape, but got none: it holds weight, bias, the module 0\.weight"
    ):
        load_fitting(network, nn.Linear(1, 1).state_dict(), "one.ckpt")


def test_a_head_that_is_tied_to_an_embedding_is_no_layer_to_draw():
    words, head, other = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False), nn.Linear(3, 3)
    head.weight = words.weight
    assert list(drawn_layers(nn.ModuleList([words, other, head]))) == ["1"]
