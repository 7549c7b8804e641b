"""Tensors inside of dicts, lists, tuples, NamedTuples, dataclasses and batch objects: what networks take and return.

A batch object is one of another class with a method ``to``, as Lightning asks of it: torch_geometric's ``Batch``, a
user's own. Its parts are its keys, if it has keys, else its attributes.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from functools import partial
from typing import Any

from torch import Tensor, nn

Key = int | str
WHOLE = ""
"""The key of the batch itself."""


def get_item(batch: Any, key: Key) -> Any:
    """One part of a batch, by position, by key or by field name, or by a path of these joined by dots.

    Args:
        batch: What the loader gave: a dict, list, tuple, NamedTuple, dataclass, or a tensor (then ``key`` 0 is the
            tensor itself), or a batch object.
        key: Position (int), name (str), or path, as ``"labelled.0"`` in what a CombinedLoader gives; ``""`` is all.

    Raises:
        KeyError: If the batch has no such part; the message lists what it has.

    Example:
        >>> get_item({"image": 1, "label": 2}, "label"), get_item({"labelled": [3, 4]}, "labelled.1")
        (2, 4)
    """
    if key == WHOLE or (isinstance(batch, Tensor) and key == 0):
        return batch
    parts = parts_of_batch(batch)
    name, rest = _locate(batch, parts, key)
    return parts[name] if rest is None else get_item(parts[name], rest)


def get_args(batch: Any, keys: Key | list[Key]) -> tuple[Any, ...]:
    """The positional arguments that ``forward`` takes from a batch: one part, or several for a list of keys.

    Example:
        >>> get_args({"image": 1, "mask": 2, "label": 3}, ["image", "mask"])
        (1, 2)
    """
    return tuple(get_item(batch, key) for key in (keys if isinstance(keys, list) else [keys]))


def keyword_only(function: Callable[..., Any]) -> list[str]:
    """The arguments that a function takes by name alone, in order; none of one that takes any number by position.

    Example:
        >>> def forward(image, *, speed, scale=1.0): ...
        >>> keyword_only(forward), keyword_only(lambda *images, scale=1.0: None)
        (['speed', 'scale'], [])
    """
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return []
    return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]


def replace_items(batch: Any, new: Mapping[Key, Any]) -> Any:
    """The same batch with other parts, by position, name or path. The original and its tensors are left alone.

    Raises:
        KeyError: If the batch has no such part.

    Example:
        >>> replace_items(("image", "label"), {0: "other"}), replace_items({"labelled": [3, 4]}, {"labelled.0": 5})
        (('other', 'label'), {'labelled': [5, 4]})
    """
    if isinstance(batch, Tensor):
        return next(iter(new.values()))
    if WHOLE in new:
        return new[WHOLE]
    parts = parts_of_batch(batch)
    for key, value in new.items():
        name, rest = _locate(batch, parts, key)
        parts[name] = value if rest is None else replace_items(parts[name], {rest: value})
    return with_parts(batch, parts)


def flatten(value: Any, name: str = "output") -> dict[str, Tensor]:
    """Every tensor of a structure, in order, named by the path to it.

    Args:
        value: A tensor or a (nested) dict, list, tuple, NamedTuple or dataclass. Anything else is skipped.
        name: The name of a lone tensor, and the stem of names that come from positions.

    Raises:
        ValueError: If there is no tensor at all.

    Example:
        >>> import torch
        >>> list(flatten({"boxes": torch.zeros(2), "heads": [torch.zeros(1), torch.zeros(1)]}))
        ['boxes', 'heads.0', 'heads.1']
    """
    if isinstance(value, Tensor):
        return {name: value}
    tensors = dict(_walk(value, ""))
    if not tensors:
        raise ValueError(f"Expected tensors in {name!r}, but got {type(value).__name__} without any.")
    return {(f"{name}.{path}" if path[0].isdigit() else path): tensor for path, tensor in tensors.items()}


def rebuild(value: Any, tensors: Iterator[Tensor]) -> Any:
    """The same structure with its tensors replaced, in the order of :func:`flatten`. The original is left alone.

    Example:
        >>> import torch
        >>> rebuild({"a": torch.zeros(1), "n": 3}, iter([torch.ones(1)]))
        {'a': tensor([1.]), 'n': 3}
    """
    if isinstance(value, Tensor):
        return next(tensors)
    parts = parts_of_batch(value)
    return with_parts(value, {name: rebuild(part, tensors) for name, part in parts.items()}) if parts else value


def map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """The same structure with ``function`` applied to every tensor.

    Example:
        >>> import torch
        >>> map_tensors(torch.neg, (torch.ones(1), "label"))
        (tensor([-1.]), 'label')
    """
    if isinstance(value, Tensor):
        return function(value)
    return rebuild(value, iter([function(tensor) for tensor in tensors_in(value)]))


def tensors_in(value: Any) -> list[Tensor]:
    """Every tensor of a structure, in order.

    Example:
        >>> import torch
        >>> tensors_in(("label", {"x": torch.ones(1)}))
        [tensor([1.])]
    """
    return [tensor for _, tensor in _walk(value, "x")]


def tensor_paths(value: Any) -> dict[str, Tensor]:
    """Every tensor of a structure by its path, as :func:`get_item` takes it.

    Example:
        >>> import torch
        >>> list(tensor_paths({"a": [1, torch.ones(1)]}))
        ['a.1']
    """
    return dict(_walk(value, ""))


def split_path(path: str) -> tuple[Key, Key]:
    """The first part of a path of keys and the rest (empty if there is none); positions are numbers.

    Example:
        >>> split_path("labelled.0")
        ('labelled', 0)
    """
    first, _, rest = path.partition(".")
    return (int(first) if first.isdigit() else first), (int(rest) if rest.isdigit() else rest)


def parts_of_batch(value: Any) -> dict[Any, Any]:
    """The parts of a structure by key, field name or position; none for anything else.

    Example:
        >>> parts_of_batch(("image", "label")), parts_of_batch(3)
        ({0: 'image', 1: 'label'}, {})
    """
    if dataclasses.is_dataclass(type(value)):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, list | tuple):
        return dict(zip(getattr(value, "_fields", range(len(value))), value, strict=True))
    if not is_batch_object(value):
        return {}
    if hasattr(value, "keys"):
        return {key: value[key] for key in value.keys()}  # noqa: SIM118 - it may not be iterable by keys
    return {name: part for name, part in vars(value).items() if not name.startswith("_")}


def is_batch_object(value: Any) -> bool:
    """Whether a value is a batch of a class of its own, which can move to a device.

    Example:
        >>> class Graphs:
        ...     def to(self, device): ...
        >>> is_batch_object(Graphs()), is_batch_object([1])
        (True, False)
    """
    if isinstance(value, Tensor | nn.Module | type | Mapping | list | tuple):
        return False
    return callable(getattr(value, "to", None)) and hasattr(value, "__dict__")


def with_parts(value: Any, parts: dict[Any, Any]) -> Any:
    """A structure of the same class with other parts.

    ``lightning_utilities.apply_to_collection`` does the same for one function of all tensors, except that it leaves
    frozen dataclasses as they are.
    """
    if dataclasses.is_dataclass(type(value)):
        arguments = [field.name for field in dataclasses.fields(value) if field.init]
        return dataclasses.replace(value, **{name: parts[name] for name in arguments})
    if is_batch_object(value) or (isinstance(value, MutableMapping) and type(value) is not dict):
        return _changed_copy(value, parts)
    kind: Any = type(value)
    if isinstance(value, Mapping):
        return kind(parts)
    return kind(*parts.values()) if hasattr(value, "_fields") else kind(parts.values())


def _changed_copy(value: Any, parts: dict[Any, Any]) -> Any:
    """A shallow copy with other parts, of what cannot be made from its parts, as a defaultdict."""
    changed = copy.copy(value)
    put = changed.__setitem__ if hasattr(value, "keys") else partial(setattr, changed)
    for name, part in parts.items():
        put(name, part)
    return changed


def _locate(value: Any, parts: Mapping[Any, Any], key: Key) -> tuple[Any, Key | None]:
    """The name of the part that a key leads to, and the rest of the key where it is a path."""
    names = list(parts)
    if isinstance(key, int) and not isinstance(value, Mapping) and -len(names) <= key < len(names):
        return names[key], None
    if key in parts:
        return key, None
    if isinstance(key, str) and "." in key:
        first, rest = split_path(key)
        return _locate(value, parts, first)[0], rest
    raise KeyError(
        f"Expected the batch to have a part {key!r}, but got {type(value).__name__} with {names}. "
        "Set `input_key` / `target_key` to one of them."
    )


def _walk(value: Any, path: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield path, value
    for key, item in parts_of_batch(value).items():
        yield from _walk(item, f"{path}.{key}" if path else str(key))
