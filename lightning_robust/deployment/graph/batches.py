"""Graphs that take one size of batch, as most deployed files take one sample: which inputs, and how more go in."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[np.generic]]


def fixed_batches(graph: onnx.GraphProto) -> dict[str, int]:
    """The inputs with a batch of a fixed size, and that size; empty where the batch is dynamic.

    The batch is the first dimension of the first input. Other inputs that have the same first size take part.

    Example:
        >>> from onnx import parser
        >>> fixed_batches(
        ...     parser.parse_graph("g (float[1, 3] image, float[1] scale, float[4] grid) => (float[1, 3] y) {}")
        ... )
        {'image': 1, 'scale': 1}
        >>> fixed_batches(parser.parse_graph("g (float[batch, 3] image) => (float[batch, 3] y) {}"))
        {}
    """
    shapes = {value.name: value.type.tensor_type.shape.dim for value in graph.input}
    sizes = {name: dims[0].dim_value for name, dims in shapes.items() if len(dims)}
    first = next(iter(shapes), "")
    size = sizes.get(first, 0) if len(shapes.get(first, ())) > 1 else 0  # a lone dimension is no batch of anything
    return {name: size for name in sizes if size > 0 and sizes[name] == size}


def split_batches(arrays: Arrays, fixed: Mapping[str, int]) -> list[Arrays]:
    """The arrays in parts of the size that a graph takes; as they are where they are of this size, or of no multiple.

    Args:
        arrays: Input name -> array.
        fixed: From :func:`fixed_batches`.

    Example:
        >>> [part["x"].tolist() for part in split_batches({"x": np.zeros((2, 1))}, {"x": 1})]
        [[[0.0]], [[0.0]]]
    """
    longer = {name: size for name, size in fixed.items() if name in arrays and len(arrays[name]) != size}
    counts = {divmod(len(arrays[name]), size) for name, size in longer.items()}
    count, rest = counts.pop() if len(counts) == 1 else (0, 0)
    if count == 0 or rest:
        return [arrays]
    pieces = {name: np.split(arrays[name], count) for name in longer}
    return [{**arrays, **dict(zip(pieces, parts, strict=True))} for parts in zip(*pieces.values(), strict=True)]


def whole_batches(arrays: Arrays, fixed: Mapping[str, int]) -> tuple[Arrays, tuple[str, ...]]:
    """The samples that fill batches of a fixed size, and a note for the reader of their numbers.

    Args:
        arrays: Input name -> array.
        fixed: From :func:`fixed_batches`.

    Raises:
        ValueError: If there are fewer samples than one batch, or inputs have different numbers of them.

    Example:
        >>> filled, (note,) = whole_batches({"x": np.zeros((5, 1))}, {"x": 2})
        >>> filled["x"].shape, note
        ((4, 1), 'The graph takes 2 samples at a time: it was run 2 times, and the last 1 of 5 samples were left out.')
    """
    counts = {name: len(arrays[name]) for name in fixed}
    size, samples = next(iter(fixed.values()), 0), max(counts.values(), default=0)
    if samples < size or not set(counts.values()) <= {samples, size}:
        raise ValueError(
            f"Expected inputs of the same number of samples, {size} or a multiple of it, but got {counts}."
        )
    if samples == size:
        return arrays, ()
    times, rest = divmod(samples, size)
    longer = {name: arrays[name][: samples - rest] for name, count in counts.items() if count == samples}
    return {**arrays, **longer}, (_note(size, times, f"the last {rest} of {samples} samples" if rest else ""),)


def _note(size: int, times: int, left: str) -> str:
    what = "one sample" if size == 1 else f"{size} samples"
    return f"The graph takes {what} at a time: it was run {times} times{f', and {left} were left out' if left else ''}."
