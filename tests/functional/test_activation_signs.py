"""Signs before rectifiers: which are seen, whose they are, and how many change."""

import pytest
import torch
from torch import nn

from lightning_robust.functional.activation_signs import activation_signs, changed_signs


class Every(nn.Module):
    """Rectifiers as modules, functions, methods and in place; one layer is used twice."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 4)
        self.module, self.in_place = nn.LeakyReLU(), nn.ReLU(inplace=True)

    def forward(self, inputs):
        hidden = nn.functional.relu(self.first(inputs)) - 0.1
        hidden = self.module(self.second(hidden))
        hidden = self.in_place(self.second(hidden))
        return torch.relu(hidden - 0.2) + hidden.relu() + nn.functional.gelu(hidden)


def layers_of(net):
    return {"first": net.first, "second": net.second}


def test_every_rectifier_is_seen_once_with_its_layer():
    net, inputs = Every(), torch.randn(5, 3)
    found = activation_signs(lambda: net(inputs), layers_of(net))
    assert [name for name, _ in found] == ["first", *["second"] * 5]
    assert {positive.shape for _, positive in found} == {torch.Size([5, 4])}
    assert torch.equal(found[0][1], net.first(inputs) > 0)


def test_leaves_no_hook_and_the_outputs_alone():
    net, inputs = Every(), torch.randn(5, 3)
    expected, outputs = net(inputs), []
    activation_signs(lambda: outputs.append(net(inputs)), layers_of(net))
    assert torch.equal(expected, outputs[0])
    assert [len(part._forward_hooks) for part in net.modules()] == [0] * 5


def test_a_rectifier_before_every_layer_belongs_to_none():
    net = nn.Linear(3, 3)
    found = activation_signs(lambda: net(torch.ones(1, 3).relu()).relu(), {"layer": net})
    assert [name for name, _ in found] == ["layer"]


def test_turned_weights_turn_every_sign_and_scaled_ones_none():
    net, inputs = nn.Sequential(nn.Linear(3, 50, bias=False), nn.ReLU()), torch.randn(20, 3)
    signs = {}
    for factor in (1, -1, 4):
        state = {name: tensor * factor for name, tensor in net.named_parameters()}
        signs[factor] = activation_signs(
            lambda state=state: torch.func.functional_call(net, state, (inputs,)), {"layer": net[0]}
        )
    assert changed_signs(signs[1], signs[-1]) == {"layer": (1000, 1000)}
    assert changed_signs(signs[1], signs[4]) == {"layer": (0, 1000)}


def test_counts_add_up_over_calls_of_a_layer():
    on, off = torch.tensor([True, True]), torch.tensor([False, True])
    counts = changed_signs([("a", on), ("b", on), ("a", off)], [("a", off), ("b", on), ("a", on)])
    assert counts == {"a": (2, 4), "b": (0, 2)}


def test_rejects_another_course():
    on = torch.tensor([True])
    with pytest.raises(ValueError, match="another course"):
        changed_signs([("a", on)], [("a", on), ("a", on)])
