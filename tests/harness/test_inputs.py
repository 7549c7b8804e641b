from collections import namedtuple
from dataclasses import dataclass

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn

from lightning_robust.harness.inputs import (
    call_forward,
    find_target,
    first_floating_input,
    forward_arguments,
    positional_arguments,
    targets_of,
)
from lightning_robust.harness.signature import signature_of


class Graphs:
    """A batch of a class of its own, as Lightning moves it."""

    def __init__(self, x, edges):
        self.x, self.edges = x, edges

    def to(self, device):
        return self


Sample = namedtuple("Sample", "speed image label")


@dataclass
class Record:
    image: torch.Tensor
    speed: torch.Tensor
    label: int = 0


IMAGE, SPEED, LABEL = torch.zeros(4, 3, 2, 2), torch.ones(4, 1), torch.arange(4)


def network(forward):
    return type("Network", (nn.Module,), {"forward": forward})()


one = network(lambda self, image: (image,))
two = network(lambda self, image, speed: (image, speed))
optional = network(lambda self, image, mask=None, speed=None: (image, mask, speed))
by_name = network(lambda self, *, image, speed=None: (image, speed))
both = network(lambda self, image, *, speed, scale=1: (image, speed, scale))
anything = network(lambda self, **inputs: inputs)
whole = network(lambda self, batch: (batch,))
graph = network(lambda self, graphs: (graphs,))


@pytest.mark.parametrize(
    ("module", "batch", "expected"),
    [
        (one, (IMAGE, LABEL), (IMAGE,)),
        (one, IMAGE, (IMAGE,)),
        (one, {"label": LABEL, "image": IMAGE}, (IMAGE,)),
        (two, [IMAGE, SPEED, LABEL], (IMAGE, SPEED)),
        (two, {"label": LABEL, "speed": SPEED, "image": IMAGE}, (IMAGE, SPEED)),
        (two, Sample(SPEED, IMAGE, LABEL), (IMAGE, SPEED)),
        (two, Record(IMAGE, SPEED), (IMAGE, SPEED)),
        (optional, {"image": IMAGE, "speed": SPEED}, (IMAGE, None, SPEED)),
        (optional, (IMAGE, LABEL), (IMAGE, None, None)),
        (network(lambda self, x: (x,)), ({"a": IMAGE}, LABEL), ({"a": IMAGE},)),
        (one, ((IMAGE, {"id": LABEL}), LABEL), (IMAGE,)),
        (one, ([["a", "b"], IMAGE], LABEL), (IMAGE,)),
        (one, ((IMAGE, SPEED), LABEL), ((IMAGE, SPEED),)),
        (two, ({"speed": SPEED, "image": IMAGE, "id": LABEL}, LABEL), (IMAGE, SPEED)),
        (by_name, (IMAGE, LABEL), (IMAGE, None)),
        (by_name, IMAGE, (IMAGE, None)),
        (by_name, {"label": LABEL, "speed": SPEED, "image": IMAGE}, (IMAGE, SPEED)),
        (by_name, ({"image": IMAGE, "id": LABEL}, LABEL), (IMAGE, None)),
        (by_name, ((IMAGE, {"id": LABEL}), LABEL), (IMAGE, None)),
        (both, [IMAGE, SPEED, LABEL], (IMAGE, SPEED, 1)),
        (both, {"scale": LABEL, "speed": SPEED, "image": IMAGE}, (IMAGE, SPEED, LABEL)),
        (network(lambda self, *, batch: (batch,)), {"image": IMAGE}, ({"image": IMAGE},)),
        (network(lambda self, *images, scale=1: images), (IMAGE, LABEL), (IMAGE,)),
    ],
)
def test_arguments_are_found(module, batch, expected):
    outputs = call_forward(module, batch)
    assert len(outputs) == len(expected)
    assert all(one is other or one == other for one, other in zip(outputs, expected, strict=True))
    positional = positional_arguments(module, batch)
    assert all(one is other or one == other for one, other in zip(positional, expected, strict=False))


@pytest.mark.parametrize("batch", [{"a": IMAGE, "b": LABEL}, Graphs(IMAGE, LABEL)])
def test_a_whole_batch(batch):
    assert call_forward(whole, batch) == (batch,)


def test_batch_objects():
    """Whole into a network of one argument, by name where its parameters are its attributes."""
    graphs = Graphs(IMAGE, LABEL)
    assert call_forward(graph, graphs) == (graphs,)
    assert call_forward(network(lambda self, x, edges: (x, edges)), graphs) == (IMAGE, LABEL)
    assert first_floating_input(graph, graphs) == "x"
    beside_a_target = Graphs(IMAGE, LABEL)
    beside_a_target.target = SPEED
    assert first_floating_input(graph, beside_a_target) == "x"


def test_by_any_name():
    batch = {"input_ids": LABEL, "mask": LABEL}
    assert forward_arguments(anything, batch) == ((), batch)
    with pytest.raises(MisconfigurationException, match=r"by position.*\['input_ids', 'mask'\] by any name"):
        positional_arguments(anything, batch)


def test_a_given_key_wins():
    assert forward_arguments(one, (IMAGE, SPEED), 1) == ((SPEED,), {})
    assert forward_arguments(one, (IMAGE, SPEED), [1, 0]) == ((SPEED, IMAGE), {})
    assert forward_arguments(by_name, (IMAGE, SPEED), 1) == ((), {"image": SPEED})
    assert forward_arguments(both, (IMAGE, SPEED), [1, 0]) == ((SPEED,), {"speed": IMAGE})
    assert positional_arguments(both, (IMAGE, SPEED), [1, 0]) == (SPEED, IMAGE)


@pytest.mark.parametrize(
    ("module", "batch"),
    [(one, {"picture": IMAGE, "label": LABEL}), (two, {"image": IMAGE}), (two, (IMAGE,)), (two, Graphs(IMAGE, SPEED))],
)
def test_rejects_what_cannot_be_inferred(module, batch):
    with pytest.raises(MisconfigurationException, match=r"Expected the batch to hold what Network.*`input_key`"):
        call_forward(module, batch)


def test_rejects_a_module_without_forward():
    with pytest.raises(MisconfigurationException, match="Expected LightningModule to have a method `forward`"):
        signature_of(pl.LightningModule())


def test_compiled_modules_have_the_signature_of_their_original():
    assert signature_of(torch.compile(nn.Linear(2, 2))) == signature_of(nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("module", "batch", "expected"),
    [
        (one, (IMAGE, LABEL), 0),
        (two, (LABEL, SPEED, LABEL), 1),
        (one, {"picture": IMAGE, "label": LABEL}, "picture"),
        (two, {"speed": SPEED, "image": IMAGE}, "image"),
        (network(lambda self, x: x), ({"ids": LABEL, "values": SPEED}, LABEL), "0.values"),
        (one, ((IMAGE, {"speed": SPEED}), LABEL), "0.0"),
        (pl.LightningModule(), (IMAGE, LABEL), 0),
    ],
)
def test_what_is_perturbed(module, batch, expected):
    assert first_floating_input(module, batch) == expected


@pytest.mark.parametrize("batch", [{"ids": LABEL}, {"a": IMAGE, "b": SPEED}, (LABEL, LABEL)])
def test_rejects_what_cannot_be_perturbed(batch):
    with pytest.raises(MisconfigurationException, match=r"Expected one floating-point input of Network.*`embedding`"):
        first_floating_input(one, batch)


def test_targets():
    assert find_target((IMAGE, LABEL), None) == 1
    assert find_target((IMAGE, SPEED, LABEL), None, [0, 1]) == 2
    assert find_target(({"image": IMAGE, "speed": SPEED}, LABEL), None, ["0.image", "0.speed"]) == 1
    assert find_target({"image": IMAGE, "target": LABEL}, None) == "target"
    assert find_target({"image": IMAGE}, "image") == "image"
    with pytest.raises(MisconfigurationException, match=r"Expected targets in the batch.*Set `target_key`"):
        find_target({"image": IMAGE, "y": LABEL, "label": LABEL}, None)


@pytest.mark.parametrize(
    ("batch", "target_key", "input_key"),
    [
        ((IMAGE, SPEED, LABEL), None, None),
        ((IMAGE, LABEL), None, 0),
        ({"image": IMAGE, "speed": SPEED, "labels": LABEL}, None, None),
        ({"picture": IMAGE, "class": LABEL}, "class", "picture"),
        (({"image": IMAGE, "speed": SPEED}, LABEL), None, None),
    ],
)
def test_targets_stand_behind_what_forward_takes(batch, target_key, input_key):
    assert targets_of(two, batch, target_key, input_key) is LABEL
