"""Samples of batches and of outputs: counted, taken and joined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_robust.structures import flatten, parts_of_batch, with_parts


def count_rows(batch: Any) -> int:
    """The number of samples of a batch: the length of its first tensor that has one; 1 for scalars alone.

    Example:
        >>> import torch
        >>> count_rows((torch.tensor(16000), torch.zeros(4, 512)))
        4
    """
    return next((len(tensor) for tensor in flatten(batch).values() if tensor.ndim), 1)


def take_rows(batch: Any, rows: Tensor | slice, size: int) -> Any:
    """Some samples of a batch of ``size``: these rows of every tensor, and entries of every list, with one for each.

    A list inside of a batch holds an entry for each where it has ``size`` of them, such as dicts with the boxes of each
    picture, names, or tensors of other numbers of rows than ``size``.

    Example:
        >>> import torch
        >>> take_rows({"x": torch.arange(3), "scale": torch.ones(())}, slice(2), 3)
        {'x': tensor([0, 1]), 'scale': tensor(1.)}
        >>> take_rows((torch.arange(2), [{"boxes": torch.zeros(2, 4)}, {"boxes": torch.zeros(0, 4)}]), slice(1, 2), 2)
        (tensor([1]), [{'boxes': tensor([], size=(0, 4))}])
    """
    if hasattr(type(batch), "from_data_list"):
        # of graphs, as torch_geometric joins them
        return type(batch).from_data_list(batch.index_select(rows))
    if isinstance(batch, Tensor):
        return batch[rows] if batch.ndim and len(batch) == size else batch
    parts = parts_of_batch(batch)
    return (
        with_parts(batch, {name: _rows_of_part(part, rows, size) for name, part in parts.items()}) if parts else batch
    )


def join_rows(parts: Sequence[Sequence[Tensor]], sizes: Sequence[int], samples: int | None = None) -> list[Tensor]:
    """The outputs of several batches, one after the other; of those that no sample changes, as anchors are, the first.

    Args:
        parts: The outputs of each batch. One that holds several rows for a sample has them one sample after the other.
        sizes: The samples of each batch.
        samples: How many are wanted, where the last batch was filled up; else all.

    Example:
        >>> import torch
        >>> anchors = torch.tensor([0.5, 1.0, 2.0])
        >>> join_rows([[torch.zeros(2), anchors], [torch.ones(1), anchors]], [2, 1])
        [tensor([0., 0., 1.]), tensor([0.5000, 1.0000, 2.0000])]
    """
    return [
        rows[0] if _are_shared(rows, sizes) else _concatenated(rows, sizes, samples)
        for rows in zip(*parts, strict=True)
    ]


def _concatenated(rows: Sequence[Tensor], sizes: Sequence[int], samples: int | None) -> Tensor:
    joined, total = torch.cat(list(rows)), sum(sizes)
    each, rest = divmod(len(joined), total)
    if samples is None or rest or (each > 1 and len(rows) == 1):  # several rows a sample, or none of any: who knows
        return joined
    return joined[: each * samples]


def _are_shared(rows: Sequence[Tensor], sizes: Sequence[int]) -> bool:
    """Whether an output has no rows of samples: a scalar, or of another length than the batches and the same in all."""
    first, *others = rows
    if not first.ndim:
        return True
    lengths = [len(each) for each in rows]
    return lengths != list(sizes) and bool(others) and all(torch.equal(first, other) for other in others)


def _rows_of_part(part: Any, rows: Tensor | slice, size: int) -> Any:
    if not _has_entries(part, size):
        return take_rows(part, rows, size)
    return type(part)(part[row] for row in torch.arange(size)[rows].tolist())


def _has_entries(part: Any, size: int) -> bool:
    """Whether a list inside of a batch holds an entry for each sample."""
    if type(part) not in (list, tuple) or len(part) != size:
        return False
    if isinstance(part, list) and all(isinstance(entry, Tensor) for entry in part):
        return not all(entry.ndim and len(entry) == size for entry in part)
    return all(isinstance(entry, Mapping | str) for entry in part)
