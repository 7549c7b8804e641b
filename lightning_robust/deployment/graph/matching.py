"""One graph in the place of another: which of its inputs and outputs are which, and arrays in its own types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper
from torch import Tensor

from lightning_robust.deployment.graph.batches import Arrays
from lightning_robust.deployment.graph.types import static_size

_FLOATING = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)
_LAST = "Its channels come last: convert the file so that it takes N x C x H x W."


@dataclass(frozen=True)
class Match:
    """Which inputs and outputs of a graph stand for those of another one.

    Args:
        inputs: Name in the graph -> name in the other one.
        outputs: Names in the graph, in the order of the other's outputs.
        notes: What a reader should know of it.
    """

    inputs: Mapping[str, str]
    outputs: tuple[str, ...]
    notes: tuple[str, ...] = ()


def match_graphs(
    inputs: Sequence[str], outputs: Sequence[str], expected_inputs: Sequence[str], expected_outputs: Sequence[str]
) -> Match:
    """Match by names where the names are there, else by order where there are as many.

    Args:
        inputs: Names of the graph's inputs.
        outputs: Names of its outputs; more than expected are left out if the expected names are among them.
        expected_inputs: Names of what is fed, of which a graph need not take all.
        expected_outputs: Names of what is compared.

    Raises:
        ValueError: If there are neither as many nor the same names; the message has both lists.

    Example:
        >>> match_graphs(["x"], ["b", "a"], ["input"], ["a", "b"])
        Match(inputs={'x': 'input'}, outputs=('a', 'b'), notes=('inputs by their order: x is input',))
    """
    taken, input_notes = _pair_up(inputs, expected_inputs, "input", some=set(inputs) <= set(expected_inputs))
    given, output_notes = _pair_up(outputs, expected_outputs, "output", some=set(outputs) >= set(expected_outputs))
    order = {theirs: ours for ours, theirs in given.items()}
    return Match(taken, tuple(order[name] for name in expected_outputs), (*input_notes, *output_notes))


def _pair_up(ours: Sequence[str], theirs: Sequence[str], what: str, *, some: bool) -> tuple[dict[str, str], list[str]]:
    if some:
        return {name: name for name in ours if name in set(theirs)}, []
    if len(ours) != len(theirs):
        raise ValueError(
            f"Expected the {what}s {list(theirs)}, but the file has {list(ours)}. Name them alike, or convert the file "
            f"with as many {what}s."
        )
    pairs = _by_order(ours, theirs)
    renamed = ", ".join(f"{name} is {other}" for name, other in pairs.items() if name != other)
    return pairs, [f"{what}s by their order: {renamed}"]


def _by_order(ours: Sequence[str], theirs: Sequence[str]) -> dict[str, str]:
    """Names that both have, and the others by their order."""
    common = {*ours} & {*theirs}
    others = iter([name for name in theirs if name not in common])
    return {name: name if name in common else next(others) for name in ours}


def cast_arrays(graph: onnx.GraphProto, arrays: Arrays) -> dict[str, NDArray[np.generic]]:
    """Arrays in the types of a graph's inputs, after a look at their shapes.

    Args:
        graph: The graph.
        arrays: Name of each of its inputs -> array.

    Raises:
        ValueError: If one has another shape than the graph takes, or does not fit its type.
    """
    first = next(iter(graph.input), None)
    batch = None if first is None else _sizes(first)[:1]
    found: dict[str, NDArray[np.generic]] = {}
    for value in graph.input:
        sizes, array = _sizes(value), arrays[value.name]
        free = 1 if sizes[:1] == batch else 0  # any number of samples goes in, batch by batch
        _refuse_shape(value.name, sizes, array.shape, free)
        wanted = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        found[value.name] = _cast(value.name, array, np.dtype(wanted))
    return found


def check_outputs(outputs: Sequence[Tensor], graph: onnx.GraphProto) -> None:
    """Refuse outputs that cannot stand for those of another graph.

    Args:
        outputs: Of the graph that was run, in the other's order.
        graph: The other graph.

    Raises:
        ValueError: If one has another shape or kind of numbers.
    """
    for output, value in zip(outputs, graph.output, strict=True):
        kind, sizes, shape = value.type.tensor_type, _sizes(value), tuple(output.shape)
        if kind.HasField("shape") and not _takes_shape(sizes, shape, free=1):
            raise ValueError(f"Expected output {value.name!r} of shape {_words(sizes)}, but the file gives {shape}.")
        if output.is_floating_point() != (kind.elem_type in _FLOATING):
            raise ValueError(
                f"Expected output {value.name!r} as {onnx.TensorProto.DataType.Name(kind.elem_type)}, but the file "
                f"gives {output.dtype}."
            )


def _refuse_shape(name: str, sizes: Sequence[int | None], shape: tuple[int, ...], free: int) -> None:
    if _takes_shape(sizes, shape, free):
        return
    last = len(shape) == len(sizes) == 4 and _takes_shape(sizes, (shape[0], *shape[2:], shape[1]), free)
    raise ValueError(
        f"Expected samples of shape {_words(sizes)}, which the file takes as {name!r}, but the model takes {shape}. "
        f"{_LAST if last else 'Convert the file for the size that the model sees.'}"
    )


def _takes_shape(sizes: Sequence[int | None], shape: tuple[int, ...], free: int) -> bool:
    pairs = list(zip(sizes, shape, strict=False))[free:]
    return len(sizes) == len(shape) and all(size is None or size == found for size, found in pairs)


def _cast(name: str, array: NDArray[np.generic], wanted: np.dtype[np.generic]) -> NDArray[np.generic]:
    same_kind = np.issubdtype(array.dtype, np.floating) == np.issubdtype(wanted, np.floating)
    with np.errstate(over="ignore"):
        converted = array.astype(wanted)
    if same_kind and (np.issubdtype(wanted, np.floating) or np.array_equal(converted, array)):
        return converted
    raise ValueError(
        f"Expected numbers that fit {wanted}, which the file takes as {name!r}, but the model takes {array.dtype}. "
        "Convert the file without its preprocessing."
    )


def _sizes(value: onnx.ValueInfoProto) -> list[int | None]:
    return [static_size(dim) for dim in value.type.tensor_type.shape.dim]


def _words(sizes: Sequence[int | None]) -> str:
    return f"({', '.join('?' if size is None else str(size) for size in sizes)})"
