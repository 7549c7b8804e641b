"""Graphs that are kept between exports: equal to a fresh export with other weights, and exported anew where not."""

import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from lightning_robust.deployment.graph import keeper as keeper_module
from lightning_robust.deployment.graph.export import ExportError, Template, export, frozen_copy
from lightning_robust.deployment.graph.keeper import GraphKeeper

from ..models import Attention, SmallCNN, images


@pytest.fixture
def exports(monkeypatch):
    """One entry for each whole export."""
    made = []

    class Counted(Template):
        def __init__(self, *args, **settings):
            made.append(1)
            super().__init__(*args, **settings)

    monkeypatch.setattr(keeper_module, "Template", Counted)
    return made


def run(exported, x):
    session = onnxruntime.InferenceSession(exported.model.SerializeToString(), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {exported.inputs[0]: x.numpy()})[0])


def scramble(module):
    """Other values in all tensors, as after an epoch; indices are put in another order."""
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.copy_(
                tensor * 1.5 + 0.2 if tensor.is_floating_point() else tensor.flip(0) if tensor.ndim else tensor
            )


class Odd(nn.Module):
    """Tied weights, one that is not used, a buffer that is not saved, an integer one, constants."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.unused = (nn.Linear(3, 3) for _ in range(3))
        self.second.weight = self.first.weight
        self.twice = nn.Sequential(self.first, self.first)
        self.register_buffer("scale", torch.ones(3), persistent=False)
        self.register_buffer("order", torch.tensor([2, 0, 1]))

    def forward(self, x):
        return self.twice(self.second(self.first(x)))[:, self.order] * self.scale + torch.tensor([1.0, 2.0, 3.0])


class Parametrised(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight_norm = parametrizations.weight_norm(nn.Linear(3, 3))
        self.spectral_norm = parametrizations.spectral_norm(nn.Linear(3, 3))
        self.square = nn.Linear(3, 3)

    def forward(self, x):
        return nn.functional.linear(self.spectral_norm(self.weight_norm(x)), self.square.weight @ self.square.weight)


KINDS = {
    "folded BatchNorm": (SmallCNN, lambda: images(3)),
    "attention": (Attention, lambda: torch.rand(3, 5, 32)),
    "odd tensors": (Odd, lambda: torch.rand(3, 3)),
    "parametrised": (Parametrised, lambda: torch.rand(3, 3)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_matches_reference(kind, exports):
    """Bit for bit the graph that a fresh export gives; and the graph that was given out before stays as it was."""
    build, inputs = KINDS[kind]
    live, x, keeper = build(), inputs(), GraphKeeper()
    first = keeper.export(frozen_copy(live), (x,))
    before = first.model.SerializeToString()
    scramble(live)
    module = frozen_copy(live)
    later = keeper.export(module, (x,))
    fresh = export(module, (x,))
    assert later.model.SerializeToString() == fresh.model.SerializeToString() != before
    assert (later.origins, later.inputs, later.outputs) == (fresh.origins, fresh.inputs, fresh.outputs)
    assert first.model.SerializeToString() == before
    torch.testing.assert_close(run(later, x), module(x), rtol=0, atol=1e-5 * module(x).abs().max().item())
    assert len(exports) == 1


def test_weights_that_were_equal_by_chance_may_differ_later(exports):
    """The optimiser joins equal weights; ones and zeros of two BatchNorms are no longer equal after an epoch."""
    live, x, keeper = nn.Sequential(nn.PReLU(3), nn.Linear(3, 3), nn.PReLU(3)), torch.randn(3, 3), GraphKeeper()
    keeper.export(frozen_copy(live), (x,))
    live[0].weight.data.fill_(0.5)
    module = frozen_copy(live)
    torch.testing.assert_close(run(keeper.export(module, (x,)), x), module(x), rtol=0, atol=1e-6)
    assert len(exports) == 1


class Changing(nn.Module):
    """A module with everything that may change beside its weights."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.register_buffer("memory", torch.ones(2, 3))
        self.epoch, self.temperature, self.limit, self.constant = 0, 1.0, 1e6, torch.zeros(3)
        self.extra, self.decoded = None, False

    def forward(self, x):
        y = self.linear(x) / self.temperature
        y = y.relu() if self.epoch > 3 else y
        y = y.clamp(max=self.limit) + self.constant + self.memory.mean(0)
        y = y if self.extra is None else self.extra(y)
        return {"decoded": y.argmax(1)} if self.decoded else {"scores": y}


CHANGES = {
    "a branch by a counter": lambda m: setattr(m, "epoch", 4),
    "a number, by a millionth": lambda m: setattr(m, "temperature", 1 + 1e-6),
    "a limit that no sample reaches": lambda m: setattr(m, "limit", 1e5),
    "a tensor that is no buffer": lambda m: setattr(m, "constant", torch.full((3,), 1e-7)),
    "another shape of a buffer": lambda m: setattr(m, "memory", torch.ones(4, 3)),
    "a layer built late": lambda m: setattr(m, "extra", nn.Linear(3, 3)),
    "another decode": lambda m: setattr(m, "decoded", True),
}


def test_another_program_is_exported_anew(exports):
    """One change after the other, each once; without one, nothing is exported."""
    live, x, keeper = Changing(), torch.randn(3, 3), GraphKeeper()
    keeper.export(frozen_copy(live), (x,))
    for count, (change, apply) in enumerate(CHANGES.items(), 2):
        apply(live)
        module = frozen_copy(live)
        for _ in range(2):
            later = keeper.export(module, (x,))
            assert len(exports) == count, change
        (expected,) = module(x).values()
        torch.testing.assert_close(run(later, x), expected, rtol=0, atol=1e-6, msg=change)
    assert later.outputs == ("decoded",)


def test_inputs_of_another_shape_are_exported_anew(exports):
    keeper, module = GraphKeeper(), nn.Conv2d(3, 3, 3)
    keeper.export(module, (images(4),))
    keeper.export(module, (images(7),))
    assert len(exports) == 1
    wide = keeper.export(module, (torch.rand(4, 3, 8, 20),))
    assert [d.dim_value for d in wide.model.graph.input[0].type.tensor_type.shape.dim][2:] == [8, 20]
    assert len(exports) == 2


def test_a_graph_that_disagrees_with_pytorch_is_exported_anew(exports, monkeypatch):
    """Planted: weights that are put into the kept graph are 0.1 % too large."""
    keeper, module, x = GraphKeeper(), nn.Linear(3, 1), torch.rand(4, 3)
    keeper.export(module, (x,))
    filled = Template.filled

    def wrong(self, module):
        exported = filled(self, module)
        if len(exports) == 1:
            for tensor in exported.model.graph.initializer:
                tensor.CopyFrom(onnx.numpy_helper.from_array(1.001 * onnx.numpy_helper.to_array(tensor), tensor.name))
        return exported

    monkeypatch.setattr(Template, "filled", wrong)
    torch.testing.assert_close(run(keeper.export(module, (x,)), x), module(x), rtol=0, atol=1e-6)
    assert len(exports) == 2


def test_what_cannot_be_traced_is_exported_each_time(exports, monkeypatch):
    def refuse(*_):
        raise RuntimeError("planted")

    monkeypatch.setattr(keeper_module, "make_fx", refuse)
    keeper, module, x = GraphKeeper(), nn.Linear(3, 1), torch.rand(4, 3)
    for _ in range(2):
        torch.testing.assert_close(run(keeper.export(module, (x,)), x), module(x), rtol=0, atol=1e-6)
    assert len(exports) == 2


def test_a_failure_is_not_kept(exports):
    class Inverse(nn.Module):
        def forward(self, x):
            return torch.linalg.inv(x)

    keeper, x = GraphKeeper(), torch.eye(3).expand(2, 3, 3).contiguous()
    for _ in range(2):
        with pytest.raises(ExportError, match="linalg"):
            keeper.export(Inverse(), (x,))
    assert keeper.export(nn.Identity(), (x,)).outputs == ("output",)


def test_the_module_and_the_random_numbers_are_left_alone():
    module = frozen_copy(Odd())
    before, state = (
        {name: id(tensor) for name, tensor in module.state_dict(keep_vars=True).items()},
        torch.get_rng_state(),
    )
    keeper = GraphKeeper()
    for _ in range(2):
        keeper.export(module, (torch.ones(3, 3),))
    assert {name: id(tensor) for name, tensor in module.state_dict(keep_vars=True).items()} == before
    assert module.twice[0] is module.first
    assert torch.equal(torch.get_rng_state(), state)


def test_seconds_are_those_of_this_export():
    """A later graph takes at most half of the time (measured: a tenth to a sixth)."""
    keeper, module = GraphKeeper(), frozen_copy(Attention())
    first, later = (keeper.export(module, (torch.rand(3, 5, 32),)).seconds for _ in range(2))
    assert 0 < later < first / 2
