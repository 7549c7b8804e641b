import pytest
import torch
from torch import nn

from lightning_robust.functional.weights import Weights, call_with, channels_last, load_same


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        self.two.weight = self.one.weight
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("cache", torch.zeros(2), persistent=False)

    def forward(self, x):
        return self.norm(self.two(self.one(x)))


def other_values(weights):
    return [torch.full_like(t, 7) if t.is_floating_point() else torch.full_like(t, 3) for t in weights.tensors()]


def test_ties_once_and_only_what_is_saved():
    assert Weights(Tied()).names == [
        "one.weight",
        "norm.weight",
        "norm.bias",
        "norm.running_mean",
        "norm.running_var",
        "norm.num_batches_tracked",
    ]


def test_exchange_moves_nothing_and_comes_back_after_an_error():
    module = Tied()
    weights = Weights(module)
    values, before = other_values(weights), [t.data_ptr() for t in weights.tensors()]

    def fail():
        with weights.exchanged(values):
            assert [t.data_ptr() for t in weights.tensors()] == [v.data_ptr() for v in values]
            assert module.two.weight[0, 0] == 7
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [t.data_ptr() for t in weights.tensors()] == before


@pytest.mark.parametrize("kind", ["bf16", "compiled"])
def test_copies_where_pointers_would_be_wrong(kind):
    module = Tied().bfloat16() if kind == "bf16" else Tied()
    if kind == "compiled":
        module.compile(backend="eager")
    weights = Weights(module)
    before = [t.detach().clone() for t in weights.tensors()]
    values = [v.float() if v.is_floating_point() else v for v in other_values(weights)]
    with weights.exchanged(values):
        assert module.one.weight.dtype == before[0].dtype
        assert (module.one.weight == 7).all()
        if kind == "compiled":
            assert module.one.weight.data_ptr() != values[0].data_ptr()
    assert all(torch.equal(live, kept) for live, kept in zip(weights.tensors(), before, strict=True))


def test_a_replaced_buffer_is_found():
    module = Tied()
    weights = Weights(module)
    module.norm.running_mean = torch.full((3,), 5.0)
    assert weights.tensors()[3].tolist() == [5.0] * 3


def test_training_goes_on_with_the_live_weights():
    module = Tied()
    weights, optimizer = Weights(module), torch.optim.SGD(module.parameters(), 1.0)
    start = module.one.weight.detach().clone()
    values = other_values(weights)
    with torch.inference_mode(), weights.exchanged(values):
        module(torch.randn(4, 3))
    module.one.weight.grad = torch.ones(3, 3)
    optimizer.step()
    assert torch.equal(module.one.weight.detach(), start - 1)
    assert (values[0] == 7).all()


def test_state_dict_with_other_values_has_every_tied_name():
    module = Tied()
    state = Weights(module).state_dict(other_values(Weights(module)))
    assert (state["one.weight"] == 7).all()
    assert torch.equal(state["one.weight"], state["two.weight"])
    assert not (module.one.weight == 7).any()


def test_rejects_modules_of_integers():
    module = nn.Module()
    module.register_buffer("counts", torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match="nothing to average"):
        Weights(module)


def test_channels_lie_last_inside_the_block_and_the_tensors_come_back_after_an_error():
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 2))
    x, places = torch.rand(2, 1, 8, 8), [p.data_ptr() for p in net.parameters()]
    before, out = {k: v.clone() for k, v in net.state_dict().items()}, net(x)

    def fail():
        with channels_last(net):
            # also where one channel leaves the order of memory open: kernels go by the strides
            assert [net[0].weight.stride(1), net[1].weight.stride(1)] == [1, 1]
            torch.testing.assert_close(net(x), out)
            raise KeyError("planted")

    with pytest.raises(KeyError, match="planted"):
        fail()
    assert [p.data_ptr() for p in net.parameters()] == places
    assert all(torch.equal(v, before[k]) and v.is_contiguous() for k, v in net.state_dict().items())


@pytest.mark.parametrize("tie", ["module", "parameter"])
def test_call_with_other_weights_puts_back_what_stands_in_two_places(tie):
    """As torch's own function does not for one module under two names; both uses see the new weights."""
    first, second = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    if tie == "module":
        second = first
    else:
        second.weight = first.weight
    net = nn.Sequential(first, nn.Tanh(), second)
    before = [net[0].weight, net[2].weight]
    weight = torch.randn(2, 2, requires_grad=True)
    x = torch.randn(3, 2)
    found = call_with(net, {"0.weight": weight}, (x,))
    expected = torch.tanh(x @ weight.T) @ weight.T
    assert torch.allclose(found, expected)
    assert torch.allclose(*(torch.autograd.grad(y.sum(), weight)[0] for y in (found, expected)))
    assert all(now is then for now, then in zip([net[0].weight, net[2].weight], before, strict=True))


def test_load_same_loads_all_or_says_in_one_sentence_why_not():
    one, two = Tied(), Tied()
    load_same(one, two.state_dict(), "two.ckpt")
    assert all(torch.equal(value, two.state_dict()[name]) for name, value in one.state_dict().items())
    before = {name: value.clone() for name, value in one.state_dict().items()}
    for change, complaint in (
        ({"norm.weight": torch.ones(5)}, r"^Expected norm.weight of shape \(3,\) in b.ckpt, but got \(5,\)\. Build"),
        ({"more": torch.ones(5)}, "^Expected the same tensors in b.ckpt, but it lacks nothing and has more besides"),
    ):
        with pytest.raises(ValueError, match=complaint) as caught:
            load_same(one, {"norm.bias": torch.ones(3), **two.state_dict(), **change}, "b.ckpt")
        assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in one.state_dict().items())
