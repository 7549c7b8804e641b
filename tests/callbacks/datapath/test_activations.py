from collections import OrderedDict

import pytest
import torch
from torch import nn

from lightning_robust.callbacks.datapath.activations import eager, find_points, gated, rounded, visiting


class Odd(nn.Module):
    """A layer used twice, tied weights, a tuple, a dict, and a tensor changed in place afterwards."""

    def __init__(self):
        super().__init__()
        self.twice = nn.Linear(4, 4)
        self.tied = nn.Linear(4, 4)
        self.tied.weight = self.twice.weight
        self.recurrent = nn.GRU(4, 6, batch_first=True)
        self.named = Named()
        self.unused = nn.Linear(4, 4)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.relu(self.twice(self.relu(self.twice(x))))
        x, _ = self.recurrent(self.tied(x)[:, None])
        return self.named(x[:, -1])["out"]


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(6)[:2])

    def forward(self, x):
        return {"note": "text", "count": torch.ones(3, dtype=torch.long), "out": x @ self.weight.T}


@pytest.fixture
def odd():
    torch.manual_seed(0)
    return Odd().eval()


@pytest.fixture
def inputs():
    return torch.randn(5, 4, generator=torch.Generator().manual_seed(0))


def hooks(module):
    return [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules()]


def test_layers_in_order_with_every_call(odd, inputs):
    points = find_points(odd, lambda: odd(inputs), 5)
    assert [(p.name, p.channels, p.dim, p.by_sample) for p in points] == [
        ("twice", 4, 1, True),
        ("twice#2", 4, 1, True),
        ("tied", 4, 1, True),
        ("recurrent", 6, 2, True),
        ("named", 2, 1, True),
    ]
    assert set(hooks(odd)) == {0}


def test_channels_are_where_the_kind_of_layer_has_them():
    net = nn.Sequential(nn.Conv1d(3, 5, 1), nn.Linear(7, 4), nn.LayerNorm(4), nn.Conv1d(5, 2, 1), nn.BatchNorm1d(2))
    x = torch.zeros(6, 3, 7)
    found = find_points(net, lambda: net(x), 6)
    assert [(p.name, p.path, p.dim, p.channels) for p in found] == [
        ("0", "0", 1, 5),
        ("1", "2", 2, 4),
        ("3", "4", 1, 2),
    ]


@pytest.mark.parametrize("inplace", [False, True])
def test_a_normalisation_that_does_not_follow_directly_is_left_out(inplace):
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(inplace), nn.BatchNorm2d(4)).eval()
    x = torch.randn(2, 3, 5, 5)
    assert [p.path for p in find_points(net, lambda: net(x), 2)] == ["0"]
    assert [p.path for p in find_points(net, lambda: net(x), 2, ["2"])] == ["2"]


def test_visiting_sees_what_layers_give(odd, inputs):
    points = find_points(odd, lambda: odd(inputs), 5)
    seen = {}
    with visiting(odd, points, lambda index, tensor: seen.update({index: tensor.clone()})):
        output = odd(inputs)
    first = inputs @ odd.twice.weight.T + odd.twice.bias
    assert torch.allclose(seen[0], first, atol=1e-6)
    assert torch.allclose(seen[1], first.relu() @ odd.twice.weight.T + odd.twice.bias, atol=1e-6)
    assert torch.equal(seen[4], output)
    assert set(hooks(odd)) == {0}


def test_hooks_go_after_an_error(odd, inputs):
    points = find_points(odd, lambda: odd(inputs), 5)

    def fail(index, tensor):
        raise KeyError("planted")

    with pytest.raises(KeyError, match="planted"), visiting(odd, points, fail):
        odd(inputs)
    with pytest.raises(KeyError, match="planted"), rounded(odd, torch.float16):
        raise KeyError("planted")
    assert set(hooks(odd)) == {0}


def test_gates_close_channels_of_each_sample(odd, inputs):
    points = find_points(odd, lambda: odd(inputs), 5)
    gates = [torch.ones(5, point.channels) for point in points]
    with gated(odd, points, gates):
        assert torch.equal(odd(inputs), odd(inputs)), "the second pass is not gated"
    gates[4][2, 1] = 0
    with gated(odd, points, gates):
        output = odd(inputs)
    assert output[2, 1] == 0
    output[2, 1] = odd(inputs)[2, 1]
    assert torch.equal(output, odd(inputs))
    conv = nn.Conv2d(3, 4, 1)
    pictures = torch.randn(2, 3, 5, 5)
    (point,) = find_points(conv, lambda: conv(pictures), 2)
    with gated(conv, [point], [torch.tensor([[1.0, 0.0, 0.5, 1.0]])]):
        assert torch.allclose(conv(pictures) * 1, nn.functional.conv2d(pictures, *conv.parameters()) * _column(conv))


def _column(conv):
    return torch.tensor([1.0, 0.0, 0.5, 1.0]).reshape(1, 4, 1, 1)


def test_rounded_is_rounding_by_hand(inputs):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}

    def half(tensor):
        return tensor.half().float()

    weights = [half(p) for p in net.parameters()]
    hidden = half((half(inputs) @ weights[0].T) + weights[1]).relu()
    expected = half(hidden @ weights[2].T + weights[3])
    with rounded(net, torch.float16), torch.no_grad():
        # sums in another order may round to a neighbour
        assert torch.allclose(net(inputs), expected, rtol=2**-10)
        assert torch.equal(net(inputs), half(net(inputs)))
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    with rounded(net, torch.float16), torch.no_grad():
        assert not net(inputs * 1e6).isfinite().any()


def test_tied_weights_are_rounded_and_come_back(odd, inputs):
    kept = odd.twice.weight.clone()
    with rounded(odd, torch.bfloat16):
        assert odd.tied.weight is odd.twice.weight
        assert torch.equal(odd.tied.weight, kept.bfloat16().float())
    assert torch.equal(odd.twice.weight, kept)


def test_compiled_modules_run_as_written(inputs):
    torch.manual_seed(0)
    net = nn.Sequential(OrderedDict(first=nn.Linear(4, 3), second=nn.Linear(3, 2)))
    whole = nn.Sequential(OrderedDict(net=torch.compile(net, backend="eager")))
    whole(inputs)
    seen = []
    with eager():
        points = find_points(whole, lambda: whole(inputs), 5)
        with visiting(whole, points, lambda index, tensor: seen.append(tensor)):
            whole(inputs)
    assert [point.name for point in points] == ["net.first", "net.second"]
    assert torch.equal(seen[1], net(inputs))


def test_rejects_names_that_match_nothing(odd, inputs):
    with pytest.raises(ValueError, match=r"'tied_' matches none. Near ones are 'tied'"):
        find_points(odd, lambda: odd(inputs), 5, ["tied_"])
    with pytest.raises(ValueError, match=r"called none of \['unused'\]"):
        find_points(odd, lambda: odd(inputs), 5, ["unused"])
