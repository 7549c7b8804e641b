"""Batches and outputs of any shape: tensors inside dicts, lists, tuples, NamedTuples and dataclasses.

What a Trainer does with them does not belong here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

Key = int | str


def get_item(batch: Any, key: Key) -> Any:
    """One part of a batch, by position, by key or by field name, or by a path of these joined by dots.

    Args:
        batch: What the loader gave: a dict, list, tuple, NamedTuple, dataclass, or a tensor (then ``key`` 0 is the
            tensor itself).
        key: Position (int), name (str), or path, as ``"labelled.0"`` in what a CombinedLoader gives.

    Raises:
        KeyError: If the batch has no such part; the message lists what it has.

    Example:
        >>> get_item({"image": 1, "label": 2}, "label"), get_item({"labelled": [3, 4]}, "labelled.1")
        (2, 4)
    """
    if isinstance(batch, Tensor) and key == 0:
        return batch
    parts = _parts(batch)
    if isinstance(key, int) and not isinstance(batch, Mapping):
        names = list(parts)
        if -len(names) <= key < len(names):
            return parts[names[key]]
    elif key in parts:
        return parts[key]
    elif isinstance(key, str) and "." in key:
        first, rest = split_path(key)
        return get_item(get_item(batch, first), rest)
    raise KeyError(
        f"Expected the batch to have a part {key!r}, but got {type(batch).__name__} with {list(parts)}. "
        "Set `input_key` / `target_key` to one of them."
    )


def get_args(batch: Any, keys: Key | list[Key]) -> tuple[Any, ...]:
    """The positional arguments that ``forward`` takes from a batch: one part, or several for a list of keys.

    Example:
        >>> get_args({"image": 1, "mask": 2, "label": 3}, ["image", "mask"])
        (1, 2)
    """
    return tuple(get_item(batch, key) for key in (keys if isinstance(keys, list) else [keys]))


def replace_items(batch: Any, new: Mapping[Key, Any]) -> Any:
    """The same batch with other parts, by position, name or path. The original and its tensors are left alone.

    Example:
        >>> replace_items(("image", "label"), {0: "other"}), replace_items({"labelled": [3, 4]}, {"labelled.0": 5})
        (('other', 'label'), {'labelled': [5, 4]})
    """
    if isinstance(batch, Tensor):
        return new[0]
    for path in [key for key in new if isinstance(key, str) and "." in key and key not in _parts(batch)]:
        first, rest = split_path(path)
        batch = replace_items(batch, {first: replace_items(get_item(batch, first), {rest: new[path]})})
        new = {key: value for key, value in new.items() if key != path}
    if not new:
        return batch
    if _is_dataclass(batch):
        names = [f.name for f in dataclasses.fields(batch)]
        return dataclasses.replace(batch, **{names[k] if isinstance(k, int) else k: v for k, v in new.items()})
    if isinstance(batch, Mapping):
        return _like(batch, {**batch, **new})
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        fields: tuple[str, ...] = batch._fields
        named = {fields[k] if isinstance(k, int) else k: v for k, v in new.items()}
        return type(batch)(**{**dict(zip(fields, batch, strict=True)), **named})
    places = {k % len(batch): v for k, v in new.items() if isinstance(k, int)}
    return type(batch)(places.get(index, item) for index, item in enumerate(batch))


def take_rows(batch: Any, rows: Tensor | slice, size: int) -> Any:
    """Some samples of a batch of ``size``: these rows of every tensor that has one for each sample.

    Example:
        >>> import torch
        >>> take_rows({"x": torch.arange(3), "scale": torch.ones(())}, slice(2), 3)
        {'x': tensor([0, 1]), 'scale': tensor(1.)}
    """
    return map_tensors(lambda tensor: tensor[rows] if tensor.ndim and len(tensor) == size else tensor, batch)


def loss_in(output: Any) -> Any:
    """The loss in what a training step returned: its entry ``"loss"``, or all of it.

    Example:
        >>> loss_in({"loss": 1.0, "logits": 2.0}), loss_in(1.0)
        (1.0, 1.0)
    """
    return output["loss"] if isinstance(output, Mapping) else output


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
    found = dict(_walk(value, ""))
    if not found:
        raise ValueError(f"Expected tensors in {name!r}, but got {type(value).__name__} without any.")
    return {(f"{name}.{path}" if path[0].isdigit() else path): tensor for path, tensor in found.items()}


def rebuild(value: Any, tensors: Iterator[Tensor]) -> Any:
    """The same structure with its tensors replaced, in the order of :func:`flatten`. The original is left alone.

    Example:
        >>> import torch
        >>> rebuild({"a": torch.zeros(1), "n": 3}, iter([torch.ones(1)]))
        {'a': tensor([1.]), 'n': 3}
    """
    if isinstance(value, Tensor):
        return next(tensors)
    if _is_dataclass(value):
        new = {f.name: rebuild(getattr(value, f.name), tensors) for f in dataclasses.fields(value) if f.init}
        return dataclasses.replace(value, **new)
    if isinstance(value, Mapping):
        return _like(value, {key: rebuild(item, tensors) for key, item in value.items()})
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(rebuild(item, tensors) for item in value))
    if isinstance(value, list | tuple):
        return type(value)(rebuild(item, tensors) for item in value)
    return value


def map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """The same structure with ``function`` applied to every tensor.

    Example:
        >>> import torch
        >>> map_tensors(torch.neg, (torch.ones(1), "label"))
        (tensor([-1.]), 'label')
    """
    return rebuild(value, iter([function(tensor) for tensor in tensors_in(value)]))


def tensors_in(value: Any) -> list[Tensor]:
    """Every tensor of a structure, in order.

    Example:
        >>> import torch
        >>> tensors_in(("label", {"x": torch.ones(1)}))
        [tensor([1.])]
    """
    return [tensor for _, tensor in _walk(value, "x")]


def jsonable(value: Any) -> Any:
    """Infinity and NaN as strings, which JSON has no numbers for; tuples as lists, keys as strings.

    Example:
        >>> jsonable({"p99": (0.5, float("inf"))})
        {'p99': [0.5, 'inf']}
    """
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def split_path(path: str) -> tuple[Key, Key]:
    """The first part of a path of keys and the rest (empty if there is none); positions are numbers.

    Example:
        >>> split_path("labelled.0")
        ('labelled', 0)
    """
    first, _, rest = path.partition(".")
    return (int(first) if first.isdigit() else first), (int(rest) if rest.isdigit() else rest)


def _is_dataclass(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _like(original: Mapping[Any, Any], items: dict[Any, Any]) -> Any:
    return items if type(original) is dict else type(original)(items)  # type: ignore[call-arg]


def _parts(value: Any) -> dict[Any, Any]:
    if _is_dataclass(value):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return dict(zip(value._fields, value, strict=True))
    if isinstance(value, list | tuple):
        return dict(enumerate(value))
    return {}


def _walk(value: Any, path: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield path, value
    for key, item in _parts(value).items():
        yield from _walk(item, f"{path}.{key}" if path else str(key))
