from collections import OrderedDict, UserDict, defaultdict, namedtuple
from dataclasses import dataclass, field
from types import MappingProxyType

import pytest
import torch

from lightning_robust.rows import take_rows
from lightning_robust.structures import flatten, get_item, map_tensors, rebuild, replace_items, tensors_in

Pair = namedtuple("Pair", "image label")


@dataclass(frozen=True)
class Frame:
    image: torch.Tensor
    pose: dict
    name: str = "front"


@dataclass
class Derived:
    """Its second field comes from the first, as after ``__post_init__``; it is no argument."""

    image: torch.Tensor
    mean: torch.Tensor = field(init=False)
    label: torch.Tensor = None

    def __post_init__(self):
        self.mean = self.image.mean()


class Batch(dict):
    """As of Hugging Face: a dict that carries something beside its items."""

    source = "unknown"


def _structures():
    image, label = torch.zeros(2, 3), torch.ones(2)
    return {
        "tuple": ((image, label), 0, ["input.0", "input.1"]),
        "list": ([image, label], 0, ["input.0", "input.1"]),
        "dict": ({"image": image, "label": label}, "image", ["image", "label"]),
        "namedtuple": (Pair(image, label), "image", ["image", "label"]),
        "dataclass": (Frame(image, {"yaw": label}), "image", ["image", "pose.yaw"]),
        "defaultdict": (defaultdict(list, image=image, label=label), "image", ["image", "label"]),
        "ordered dict": (OrderedDict(image=image, label=label), "image", ["image", "label"]),
        "dict subclass": (Batch(image=image, label=label), "image", ["image", "label"]),
        "user dict": (UserDict(image=image, label=label), "image", ["image", "label"]),
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


@pytest.mark.parametrize("kind", _structures())
def test_replace_items_leaves_the_original_alone(kind):
    value, key, names = _structures()[kind]
    label = 1 if key == 0 else names[1]
    new = replace_items(value, {key: "image", label: "label"})
    assert type(new) is type(value)
    assert (get_item(new, key), get_item(new, label)) == ("image", "label")
    assert [tensor.sum().item() for tensor in tensors_in(value)] == [0, 2]


def test_replace_items_by_position_and_path():
    frame = replace_items(Frame(torch.zeros(1), {"yaw": [1, 2]}), {"pose.yaw.1": 5, 2: "rear"})
    assert (frame.pose, frame.name) == ({"yaw": [1, 5]}, "rear")
    assert replace_items([1, 2, 3], {-1: 9}) == [1, 2, 9]
    assert replace_items(Pair(1, 2), {"label": 3, 0: 4}) == Pair(4, 3)
    assert replace_items({"a.b": 1, "a": {"b": 2}}, {"a.b": 3}) == {"a.b": 3, "a": {"b": 2}}
    assert replace_items({"a": [1, 2]}, {"a.0": 3, "a.1": 4}) == {"a": [3, 4]}
    assert replace_items(torch.zeros(1), {0: "other"}) == "other"
    with pytest.raises(KeyError, match=r"part 3, but got list with \[0, 1\]"):
        replace_items([1, 2], {3: 0})
    with pytest.raises(KeyError, match="part 'b', but got dict"):
        replace_items({"a": {"c": 1}}, {"a.b": 0})


def test_dicts_keep_what_they_carry():
    counts = map_tensors(torch.neg, defaultdict(int, a=torch.ones(1)))
    assert counts["missing"] == 0
    batch = Batch(a=torch.ones(1))
    batch.source = "front camera"
    assert replace_items(batch, {"a": 2}).source == "front camera"
    assert batch["a"] == 1
    frozen = map_tensors(torch.neg, MappingProxyType({"a": torch.ones(1)}))
    assert (type(frozen), frozen["a"].item()) == (MappingProxyType, -1)


def test_fields_that_are_no_arguments_are_derived_anew():
    doubled = map_tensors(lambda tensor: 2 * tensor, Derived(torch.ones(2), label=torch.full((1,), 5.0)))
    assert [tensor.tolist() for tensor in tensors_in(doubled)] == [[2, 2], 2, [10]]


def test_rows_of_lists_are_those_of_the_samples():
    """Dicts, names and tensors of a sample each; columns of samples, a pair of states and the batch itself stay."""
    rows, size = torch.tensor([2, 0]), 3
    boxes = [torch.zeros(count, 4) for count in (3, 0, 2)]
    names, pictures = ["a", "b", "c"], torch.arange(size)
    taken = take_rows((pictures, tuple({"boxes": each} for each in boxes), {"names": names, "all": boxes}), rows, size)
    assert taken[0].tolist() == [2, 0]
    assert [len(each["boxes"]) for each in taken[1]] == [2, 3]
    assert taken[2]["names"] == ["c", "a"]
    assert [len(each) for each in taken[2]["all"]] == [2, 3]
    columns = [pictures, pictures + 10, pictures + 20]
    assert [each.tolist() for each in take_rows({"columns": columns}, rows, size)["columns"]] == [
        [2, 0],
        [12, 10],
        [22, 20],
    ]
    state = torch.zeros(1, 2, 5), torch.ones(1, 2, 5)
    assert len(take_rows((torch.zeros(2, 4), state), slice(1), 2)[1]) == 2
    assert take_rows(({"x": torch.arange(2)}, {"y": torch.arange(2)}), slice(1), 2)[1]["y"].tolist() == [0]
