"""Passes that begin at a changed layer give what full passes give, to the last bit, whatever the network does."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_robust.callbacks.layer_criticality.prefix import PrefixCache
from lightning_robust.functional.weights import Weights

BATCHES = [torch.randn(6, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Linear(8, 8), nn.ReLU(inplace=True), nn.Linear(8, 8), nn.BatchNorm1d(8))
        self.middle = nn.Linear(8, 8)
        self.last = nn.Linear(8, 4)

    def forward(self, x):
        x = self.first(x)
        x += self.middle(x)
        return self.last(x.tanh_())


class Structures(Plain):
    """A part returns a dict with a tuple in it, which its caller changes."""

    class Part(nn.Linear):
        def forward(self, x):
            return {"pair": (super().forward(x), x * 2), "name": "part"}

    def __init__(self):
        super().__init__()
        self.middle = self.Part(8, 8)

    def forward(self, x):
        out = self.middle(self.first(x))
        left, right = out.pop("pair")
        out["sum"] = left.add_(right)
        return self.last(out["sum"])


class Repeated(Plain):
    """A layer runs three times, with another between, and a module stands twice in a Sequential."""

    def __init__(self):
        super().__init__()
        act = nn.Tanh()
        self.first = nn.Sequential(nn.Linear(8, 8), act, nn.Linear(8, 8), act)

    def forward(self, x):
        return self.last(self.middle(self.first(self.middle(self.middle(x)))))


class Tied(Plain):
    """The first layer's weight is used again at the end, the middle one's before it is called."""

    def forward(self, x):
        early = nn.functional.linear(x, self.middle.weight)
        x = self.middle(self.first(x)) + early
        return self.last(nn.functional.linear(x, self.first[0].weight))


class Watched(Plain):
    """A hook inside a container keeps what passes by, and the head reads it."""

    def __init__(self):
        super().__init__()
        self.first[0].register_forward_hook(lambda _, args, output: setattr(self, "seen", output.clone()))

    def forward(self, x):
        return self.last(self.middle(self.first(x)) + self.seen)


class Remembering(Plain):
    """A part sets an attribute of itself that the head reads."""

    class Part(nn.Linear):
        def forward(self, x):
            self.norm = x.norm()
            return super().forward(x)

    def __init__(self):
        super().__init__()
        self.middle = nn.Sequential(nn.Identity(), self.Part(8, 8))

    def forward(self, x):
        return self.last(self.middle(self.first(x))) * self.middle[1].norm


class Branching(Plain):
    """Which layers run, and in which order, depends on the batch."""

    def forward(self, x):
        if x.sum() > 0:
            return self.last(self.first(self.middle(x)))
        return self.last(self.middle(self.first(x)))


class Attention(nn.Module):
    """Weights of a submodule that is never called; a fast path in evaluation mode."""

    def __init__(self):
        super().__init__()
        self.inlet = nn.Linear(8, 8)
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True) for _ in range(2))
        self.last = nn.Linear(8, 4)

    def forward(self, x):
        x = self.inlet(x)[:, None].expand(-1, 3, -1)
        for block in self.blocks:
            x = block(x)
        return self.last(x.mean(1))


class HalfPrecision(Plain):
    def __init__(self):
        super().__init__()
        self.to(torch.bfloat16)

    def forward(self, x):
        return super().forward(x.to(torch.bfloat16))


class Mutating(Plain):
    """What the first part returns is changed in place, but only by the second half of the network."""

    def forward(self, x):
        kept = self.first(x)
        out = self.middle(kept)
        kept.mul_(2)
        return self.last(out + kept)


NETWORKS = [
    *(Plain, Structures, Repeated, Tied, Watched, Remembering, Branching, Attention, HalfPrecision, Mutating),
]
SHIFTS = (0.3, -0.2, 0.1)


def cached(net, limit=2**20, **settings):
    weights = Weights(net)
    cache = PrefixCache(net, dict(zip(weights.names, weights.tensors(), strict=True)), limit=limit, **settings)
    with cache.tracing():
        passes(net, cache)
    return cache


def passes(net, cache=None):
    found = []
    for key, batch in enumerate(BATCHES):
        if cache is not None:
            cache.enter(key)
        found.append(net(batch.clone()))
    return found


def changes(net):
    """Each layer's tensors, and the network with them changed, several times."""
    for path, part in net.named_modules():
        names = [f"{path}.{name}" for name, _ in part.named_parameters(recurse=False)]
        if names:
            weights = Weights(net, names)
            for shift in SHIFTS:
                with weights.exchanged([tensor + shift for tensor in weights.tensors()]):
                    yield weights.names


def differences(net, cache):
    """Places where a replayed pass is not equal to a full one."""
    wrong = []
    for names in changes(net):
        expected = passes(net)
        with cache.replaying(names):
            found = passes(net, cache)
        wrong += [names for one, other in zip(expected, found, strict=True) if not torch.equal(one, other)]
    return wrong


@torch.no_grad()
@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("limit", [2**20, 700])
def test_replayed_is_equal_to_the_last_bit(kind, limit):
    """Also where only some batches fit into the memory: the outputs of one linear layer take 192 bytes a batch."""
    net = kind().eval()
    cache = cached(net, limit)
    assert not cache.off
    assert differences(net, cache) == []
    assert 0 < cache.used <= limit


@torch.no_grad()
def test_nothing_that_comes_before_is_computed_again():
    """Multiplications of the second pass with a changed layer are those of that layer and what follows."""
    net = Plain().eval()
    cache = cached(net)
    linear = 2 * 6 * 8 * 8 * len(BATCHES)
    expected = {"first.0.weight": 3.5 * linear, "first.2.weight": 2.5 * linear, "first.3.weight": 1.5 * linear}
    expected |= {"middle.weight": 1.5 * linear, "last.weight": 0.5 * linear}
    seen = {}
    for names in changes(net):
        with cache.replaying(names), FlopCounterMode(display=False) as counter:
            passes(net, cache)
        seen.setdefault(names[0], []).append(counter.get_total_flops())
    assert {name: flops[-1] for name, flops in seen.items()} == expected
    # the first pass of a layer begins where the layer before it began
    assert seen["middle.weight"][0] == 1.5 * linear
    assert seen["last.weight"][0] == 1.5 * linear


@torch.no_grad()
def test_only_what_the_next_layer_needs_is_held():
    """Of a Sequential that is entered in the middle the last output; what is over before a layer otherwise."""
    net = nn.Sequential(*(nn.Linear(8, 8) for _ in range(10))).eval()
    cache = cached(net)
    for names in changes(net):
        with cache.replaying(names):
            passes(net, cache)
        assert cache.used == (0 if names[0] == "0.weight" else len(BATCHES) * 6 * 8 * 4)


@torch.no_grad()
def test_everything_is_as_it_was():
    net = Watched().eval()
    before = [dict(vars(part)) for part in net.modules()]
    cache = cached(net)
    net.seen = None
    with pytest.raises(RuntimeError), cache.replaying(["middle.weight"]):
        net(torch.zeros(1, 3))
    assert [vars(part).keys() for part in net.modules()] == [
        {**kept, "seen": 0}.keys() if index == 0 else kept.keys() for index, kept in enumerate(before)
    ]


class Noisy(Plain):
    def forward(self, x):
        return super().forward(nn.functional.dropout(x, training=True))


@torch.no_grad()
def test_random_numbers_compiled_parts_and_no_memory_switch_it_off():
    assert cached(Noisy().eval()).off
    compiled = Plain().eval()
    compiled.middle = torch.compile(compiled.middle, backend="eager")
    for cache in (cached(compiled), cached(Plain().eval(), 0)):
        assert cache.off
        assert cache.used == 0
    assert differences(compiled, cached(compiled)) == []


@torch.no_grad()
def test_parts_left_out_always_run():
    """Such as metrics, which gather something in a network of two stages."""

    class Gather(nn.Module):
        total = 0

        def forward(self, x):
            Gather.total += 1
            return x

    class Net(Plain):
        def __init__(self):
            super().__init__()
            self.metric = Gather()

        def forward(self, x):
            self.metric(self.first(x))
            return self.last(self.middle(x))

    net = Net().eval()
    cache = cached(net, leave_out=(Gather,))
    Gather.total = 0
    for _ in range(3):
        with cache.replaying(["last.weight"]):
            passes(net, cache)
    assert Gather.total == 3 * len(BATCHES)


@torch.no_grad()
def test_order_of_use():
    net = Tied().eval()
    cache = cached(net)
    uses = {name: cache.first_use(name) for name in ("middle.weight", "first.0.weight", "first.2.weight", "last.bias")}
    assert list(uses.values()) == sorted(uses.values())
    assert cache.first_use("first.3.num_batches_tracked") is None
