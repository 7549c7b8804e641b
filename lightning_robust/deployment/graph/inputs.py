"""What goes into a graph: arrays that are read from a file and checked against the shapes and types that it takes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from lightning_robust.arrays import read_arrays
from lightning_robust.deployment.graph.batches import Arrays, fixed_batches
from lightning_robust.deployment.graph.types import static_size


def read_inputs(path: str | Path) -> dict[str, NDArray[np.generic]]:
    """The arrays of an .npz file, by the names of the graph's inputs.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no .npz file of numbers.
    """
    content = read_arrays(path)
    arrays = content if isinstance(content, dict) else {}
    if not arrays:
        raise ValueError(f"Expected an .npz file with one array for each input at {path}, but it has no named arrays.")
    return arrays


def check_inputs(model: onnx.ModelProto, inputs: Arrays) -> None:
    """Refuse arrays that the graph does not take.

    Raises:
        ValueError: If an input is missing, holds NaN, or has another type, number of dimensions or fixed size.
    """
    names = [value.name for value in model.graph.input]
    fixed = fixed_batches(model.graph)
    for value in model.graph.input:
        if value.name not in inputs:
            raise ValueError(
                f"Expected an array for each of the inputs {names}, but got {sorted(inputs)}. "
                "Name the arrays of the .npz file like the inputs."
            )
        array = inputs[value.name]
        wanted = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        shape = input_shape(value, None)
        first = 1 if value.name in fixed else 0  # any number of samples goes in, batch by batch
        fits = len(shape) == array.ndim and all(
            not isinstance(size, int) or size == got for size, got in list(zip(shape, array.shape, strict=True))[first:]
        )
        if array.dtype != wanted or not fits:
            raise ValueError(
                f"Expected input {value.name!r} as {np.dtype(wanted)} of shape ({', '.join(map(str, shape))}), but got "
                f"{array.dtype} of shape {array.shape}. Write it as the network takes it, after preprocessing."
            )
        _check_numbers(value.name, array)
    _check_counts(inputs, fixed)


def _check_numbers(name: str, array: NDArray[np.generic]) -> None:
    if not array.size:
        raise ValueError(f"Expected numbers in input {name!r}, but it is empty.")
    lost = int(np.isnan(array).sum()) if array.dtype.kind == "f" else 0
    if lost:
        raise ValueError(f"Expected numbers in input {name!r}, but {lost} of them are NaN.")


def _check_counts(inputs: Arrays, fixed: Mapping[str, int]) -> None:
    counts = {name: len(inputs[name]) for name in fixed}
    if len(set(counts.values()) - set(fixed.values())) > 1:
        raise ValueError(f"Expected inputs of the same number of samples, but got {counts}.")


def input_shape(value: onnx.ValueInfoProto, samples: int | None) -> list[int | str]:
    """Sizes, or names of dynamic ones; a dynamic first dimension is the number of samples."""
    sizes: list[int | str] = []
    for index, dim in enumerate(value.type.tensor_type.shape.dim):
        dynamic = samples if index == 0 and samples is not None else dim.dim_param or "?"
        sizes.append(static_size(dim) or dynamic)
    return sizes
