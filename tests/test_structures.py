from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch

from lightning_robust.structures import flatten, get_item, map_tensors, rebuild

Pair = namedtuple("Pair", "image label")


@dataclass(frozen=True)
class Frame:
    image: torch.Tensor
    pose: dict
    name: str = "front"


def _structures():
    image, label = torch.zeros(2, 3), torch.ones(2)
    return {
        "tuple": ((image, label), 0, ["input.0", "input.1"]),
        "list": ([image, label], 0, ["input.0", "input.1"]),
        "dict": ({"image": image, "label": label}, "image", ["image", "label"]),
        "namedtuple": (Pair(image, label), "image", ["image", "label"]),
        "dataclass": (Frame(image, {"yaw": label}), "image", ["image", "pose.yaw"]),
    }


@pytest.mark.parametrize("kind", _structures())
def test_flatten_and_rebuild_are_inverse(kind):
    value, _, names = _structures()[kind]
    assert list(flatten(value, "input")) == names
    doubled = map_tensors(lambda t: t + 1, value)
    assert type(doubled) is type(value)
    for before, after in zip(flatten(value).values(), flatten(doubled).values(), strict=True):
        assert torch.equal(after, before + 1)


@pytest.mark.parametrize("kind", _structures())
def test_get_item_by_name_or_position(kind):
    value, key, _ = _structures()[kind]
    assert torch.equal(get_item(value, key), torch.zeros(2, 3))


def test_get_item_by_position_in_a_namedtuple_and_dataclass():
    assert get_item(Pair(1, 2), 1) == 2
    assert get_item(Frame(torch.zeros(1), {}), 2) == "front"


def test_a_lone_tensor_is_its_own_part_zero():
    x = torch.ones(2)
    assert get_item(x, 0) is x
    assert list(flatten(x, "input")) == ["input"]


def test_rebuild_leaves_the_original_and_keeps_what_is_no_tensor():
    original = Frame(torch.zeros(1), {"n": 3, "yaw": torch.zeros(1)}, "rear")
    copy = rebuild(original, iter([torch.ones(1), torch.ones(1)]))
    assert original.image.item() == 0
    assert (copy.name, copy.pose["n"], copy.pose["yaw"].item()) == ("rear", 3, 1)


@pytest.mark.parametrize(("batch", "key"), [((1, 2), 2), ({"a": 1}, 0), ({"a": 1}, "b"), (3, 0), (torch.ones(2), 1)])
def test_rejects_missing_part(batch, key):
    with pytest.raises(KeyError, match="Expected the batch to have a part"):
        get_item(batch, key)


def test_rejects_no_tensor():
    with pytest.raises(ValueError, match="without any"):
        flatten({"a": 1})
