"""The copy that is exported, and its arguments."""

import copy

import torch
from torch import nn

from lightning_robust.deployment.graph.frozen import frozen_copy, to_args

from ..models import SmallCNN


def test_frozen_copy_takes_a_state_and_half_weights():
    module = SmallCNN()
    state = {k: torch.full_like(v, 2) for k, v in module.state_dict().items()}
    copied = frozen_copy(module.half(), state)
    assert {p.dtype for p in copied.parameters()} == {torch.float32}
    assert all((p == 2).all() for p in copied.parameters())


def test_compiled_parts_are_unwrapped():
    module = SmallCNN()
    module.stem = torch.compile(module.stem)
    copied = frozen_copy(module, module.state_dict())
    assert type(copied.stem) is nn.Sequential
    assert torch.equal(copied.head.weight, module.head.weight)


class ByName(nn.Linear):
    def forward(self, image, *, gain, offset=0.0):
        return super().forward(image) * gain + offset


def test_what_is_taken_by_name_alone_is_taken_by_position():
    module, image, gain = ByName(3, 2), torch.rand(4, 3), torch.rand(4, 1)
    frozen = frozen_copy(module)
    assert torch.equal(frozen(image, gain), module(image, gain=gain))
    assert torch.equal(frozen(image, gain, gain), module(image, gain=gain, offset=gain))
    assert torch.equal(frozen(image, gain=gain), frozen(image, gain))
    darker = copy.deepcopy(frozen)
    darker.weight.zero_()
    assert torch.equal(darker(image, gain), darker.bias * gain)
    assert isinstance(frozen, ByName)
    assert type(module) is ByName


def test_to_args_casts_floating_tensors_only():
    args = to_args(({"x": torch.zeros(2), "id": torch.zeros(2, dtype=torch.long)},), torch.float16)
    assert args[0]["x"].dtype == torch.float16
    assert args[0]["id"].dtype == torch.long
