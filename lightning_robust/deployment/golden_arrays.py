"""The arrays of a golden file: as the arguments of ``forward``, and those of a dump beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ARGUMENTS = "arguments"
"""The entry of a golden file's metadata that holds the structure."""
_TENSOR = "tensor"


def structure_of(value: Any) -> Any:
    """Dicts, lists and tuples of tensors as JSON can hold them; None for what holds anything else.

    Example:
        >>> import torch
        >>> structure_of(({"a": torch.zeros(1), "b": torch.zeros(1)},))
        {'tuple': [{'dict': {'a': 'tensor', 'b': 'tensor'}}]}
    """
    if isinstance(value, Tensor):
        return _TENSOR
    if type(value) is dict:
        parts = {name: structure_of(part) for name, part in value.items()}
        return None if None in parts.values() or not all(isinstance(name, str) for name in parts) else {"dict": parts}
    if type(value) in (list, tuple):
        items = [structure_of(part) for part in value]
        return None if None in items else {type(value).__name__: items}
    return None


def arguments_of(structure: Any, tensors: Sequence[Tensor]) -> tuple[Any, ...]:
    """The arguments with these tensors; without a structure each tensor is one.

    Example:
        >>> import torch
        >>> arguments_of({"tuple": [{"dict": {"a": "tensor"}}]}, [torch.ones(1)])
        ({'a': tensor([1.])},)
    """
    return tuple(tensors) if structure is None else tuple(_filled(structure, iter(tensors)))


def _filled(structure: Any, tensors: Iterator[Tensor]) -> Any:
    if structure == _TENSOR:
        return next(tensors)
    ((kind, parts),) = structure.items()
    if kind == "dict":
        return {name: _filled(part, tensors) for name, part in parts.items()}
    items = [_filled(part, tensors) for part in parts]
    return items if kind == "list" else tuple(items)


def match_arrays(
    golden: Mapping[str, NDArray[Any]], dumped: Mapping[str, NDArray[Any]], side: str, notes: list[str]
) -> dict[str, NDArray[Any]]:
    """The dumped arrays in the golden order and type.

    Args:
        golden: Of the golden file.
        dumped: Of the deployed side.
        side: ``"input"`` or ``"output"``, for messages.
        notes: Gets what a reader should see.

    Raises:
        ValueError: For what does not fit.
    """
    unknown = sorted(set(dumped) - set(golden))
    if unknown:
        raise ValueError(f"Expected {side}s named {sorted(golden)}, but got {unknown}. Rename them in the dump.")
    matches = {}
    for name, array in golden.items():
        if name in dumped:
            _require_shape(name, side, array.shape, dumped[name].shape)
            matches[name] = _cast_like(array, dumped[name], f"{side} {name!r}", notes)
    if dumped and len(matches) < len(golden):
        notes.append(f"The deployed side did not dump the {side}s {sorted(set(golden) - set(matches))}.")
    return matches


def _require_shape(name: str, side: str, expected: tuple[int, ...], actual: tuple[int, ...]) -> None:
    if expected == actual:
        return
    advice = "Dump the same samples, one for one."
    if len(expected) == len(actual) == 4 and actual == (expected[0], expected[2], expected[3], expected[1]):
        advice = "Its channels come last: transpose(0, 3, 1, 2)."
    elif len(actual) == len(expected) - 1 and actual == expected[1:]:
        advice = "The dimension of samples is missing: array[None], or stack all frames."
    elif expected[1:] == actual[1:]:
        advice = f"It holds {actual[0]} samples instead of {expected[0]}."
    raise ValueError(f"Expected {side} {name!r} of shape {expected}, but got {actual}. {advice}")


def _cast_like(golden: NDArray[Any], dumped: NDArray[Any], what: str, notes: list[str]) -> NDArray[Any]:
    if dumped.dtype == golden.dtype:
        return dumped
    if np.issubdtype(golden.dtype, np.floating) and np.issubdtype(dumped.dtype, np.floating):
        notes.append(f"The deployed side dumped {what} as {dumped.dtype}; it was compared as {golden.dtype}.")
        return dumped.astype(golden.dtype)
    raise ValueError(
        f"Expected {what} as {golden.dtype}, but got {dumped.dtype}. Dump the tensor that the engine takes or gives, "
        "after normalisation."
    )


def to_tensor(array: NDArray[Any]) -> Tensor:
    """The array as a tensor that shares its memory."""
    return torch.from_numpy(np.require(array, requirements="C"))  # a scalar stays one
