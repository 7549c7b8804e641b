"""Graphs that take one size of batch, as most deployed files take one sample: which inputs, and how more go in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from torch import Tensor

from lightning_robust.rows import join_rows

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


class Batches:
    """Arrays of any number of samples as batches of one size, and the outputs of the batches as one.

    The last batch is filled up with its last sample, and what comes of that is cut off. An array that fills one batch
    as it is goes into each.

    Args:
        arrays: Input name -> array.
        fixed: From :func:`fixed_batches`.

    Example:
        >>> import torch
        >>> batches = Batches({"x": np.array([[1], [2], [3]])}, {"x": 2})
        >>> [batch["x"].tolist() for batch in batches]
        [[[1], [2]], [[3], [3]]]
        >>> batches.join([[2 * torch.from_numpy(batch["x"])] for batch in batches])[0].tolist()
        [[2], [4], [6]]
    """

    def __init__(self, arrays: Arrays, fixed: Mapping[str, int]) -> None:
        self._arrays, self._samples = arrays, 0
        self._long: list[str] = []
        self._rows = np.zeros((1, 0), np.intp)
        samples = {len(arrays[name]) for name in fixed} - set(fixed.values())
        if len(samples) != 1:  # one batch, or arrays that do not fit each other, of which the graph says so
            return
        (self._samples,) = samples
        size = next(iter(fixed.values()))
        self._long = [name for name in fixed if len(arrays[name]) == self._samples]
        places = np.arange(-(-self._samples // size) * size)
        self._rows = np.minimum(places, self._samples - 1).reshape(-1, size)

    def __len__(self) -> int:
        """How many batches there are."""
        return len(self._rows)

    def __iter__(self) -> Iterator[Arrays]:
        """One batch after the other; only the one at hand is copied."""
        for rows in self._rows:
            yield {**self._arrays, **{name: self._arrays[name][rows] for name in self._long}}

    def join(self, outputs: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """The outputs of the batches as those of all samples."""
        batches, size = self._rows.shape
        return join_rows(outputs, [size] * batches, self._samples) if size else list(outputs[0])


def run_in_fixed_batches(
    run: Callable[[Arrays], list[Tensor]], arrays: Arrays, fixed: Mapping[str, int]
) -> list[Tensor]:
    """Run a graph on any number of samples, one batch after the other, as :class:`Batches` makes them.

    Args:
        run: Takes batches of the fixed size.
        arrays: Input name -> array.
        fixed: From :func:`fixed_batches`.

    Example:
        >>> import torch
        >>> double = lambda arrays: [2 * torch.from_numpy(arrays["x"])]
        >>> run_in_fixed_batches(double, {"x": np.array([[1], [2], [3]])}, {"x": 2})[0].tolist()
        [[2], [4], [6]]
    """
    batches = Batches(arrays, fixed)
    return batches.join([run(batch) for batch in batches])
