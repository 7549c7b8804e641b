"""Features of a method or a named module: tokens beside maps, and what has to take pictures alone."""

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn

from lightning_robust.mixins.host_step import require_inputs_alone

from ...boring import Pictures
from .test_mixin import Turned, fit, prepared


def test_tokens_are_averaged_as_maps_are(tmp_path):
    class Maps(Turned):
        def features(self, images):
            return self.net[0](images)

        def forward(self, images):
            return self.classes(self.net(images))

    class Tokens(Maps):
        def features(self, images):
            return super().features(images).flatten(2).transpose(1, 2)

    losses = []
    for cls in (Maps, Tokens):
        module = prepared(tmp_path, cls, rotation_weight=0.5, rotation_turns="all")
        losses.append(module.training_step((Pictures(8).images, Pictures(8).labels), 0).item())
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_a_named_module_behind_several_inputs_is_refused_at_the_start(tmp_path):
    class TwoInputs(Turned):
        def forward(self, images, metadata):
            return self.classes(self.net(images)) + metadata

    with pytest.raises(MisconfigurationException, match=r"TwoInputs.forward to take .* forward\(images, metadata\)"):
        fit(tmp_path, TwoInputs(rotation_weight=0.5, rotation_features="net"))


@pytest.mark.parametrize(
    "forward",
    [lambda self, images, metadata: images, lambda self, **inputs: inputs, lambda self, *, images: images],
    ids=["several", "by name", "keyword only"],
)
def test_rejects_a_method_that_takes_more_or_other_than_inputs(forward):
    cls = type("Other", (nn.Module,), {"forward": forward})
    with pytest.raises(
        MisconfigurationException, match=r"Other\.forward to take .* Define a method `logits\(inputs\)`"
    ):
        require_inputs_alone(cls(), "forward", "logits(inputs)")


def test_takes_a_method_with_defaults_behind_the_inputs():
    cls = type("Scaled", (nn.Module,), {"forward": lambda self, images, scale=1.0, **more: images * scale})
    module = cls()
    require_inputs_alone(module, "forward", "logits(inputs)")
    assert torch.equal(module(torch.ones(1)), torch.ones(1))
