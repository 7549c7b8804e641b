"""A batch whose pictures are perturbed in groups, one entry of the catalogue for each, and its moved targets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_robust.deployment.pixels.draws import DrawnEntry
from lightning_robust.deployment.pixels.layout import read_layout
from lightning_robust.deployment.pixels.operations import quantise
from lightning_robust.functional.pixels import PixelSpace
from lightning_robust.structures import map_tensors, rebuild, tensors_in

Move = Callable[[Any, Tensor], Any]


@dataclass(frozen=True)
class Group:
    """Pictures of a batch that are perturbed in the same way.

    Args:
        rows: Which ones.
        drawn: How.
    """

    rows: slice
    drawn: DrawnEntry


def rows_of_groups(samples: int, groups: int) -> list[slice]:
    """The rows of each group: every n-th one, so that neighbours are perturbed differently.

    Example:
        >>> [list(range(5))[rows] for rows in rows_of_groups(5, 2)]
        [[0, 2, 4], [1, 3]]
    """
    count = min(groups, samples)
    return [slice(start, None, count) for start in range(count)]


def perturb_groups(inputs: Tensor, space: PixelSpace, groups: Sequence[Group]) -> Tensor:
    """Network inputs as the deployed side would preprocess them, of the same type; no gradient flows through.

    Args:
        inputs: Pictures or clips in one of the arrangements of :func:`~.layout.layout_of`, normalised. The frames of a
            clip are perturbed alike.
        space: How.
        groups: All rows in groups.

    Raises:
        ValueError: If they are no such pictures.
    """
    with torch.no_grad(), torch.autocast(inputs.device.type, enabled=False):
        found = torch.empty_like(inputs)
        for group in groups:
            part = inputs[group.rows]
            layout = read_layout(part.shape)
            pixels = space.to_pixels(layout.pictures(part if part.dtype == torch.float64 else part.float()))
            # black comes back from normalisation as -3e-8, of which there is no power
            found[group.rows] = layout.arrange(space.from_pixels(group.drawn.pixels(quantise(pixels))))
        return found


def move_groups(values: Any, samples: int, groups: Sequence[Group], move: Move) -> Any:
    """Targets of a batch, of which each group is moved as its pictures are.

    Args:
        values: A tensor with a row for each sample, a structure of such, or a sequence with an item for each sample.
        samples: How many.
        groups: All rows in groups.
        move: ``move(values, matrix)`` of the rows of one group.
    """
    for group in groups:
        if group.drawn.motion is not None:
            part = take_samples(values, group.rows, samples)
            values = _put_samples(values, group.rows, samples, move(part, group.drawn.motion))
    return values


def take_samples(values: Any, rows: slice, samples: int) -> Any:
    """Some samples of targets, in the forms that :func:`move_groups` takes.

    Example:
        >>> take_samples([{"boxes": 1}, {"boxes": 2}], slice(1, None), 2)
        [{'boxes': 2}]
    """
    if _is_listed(values, samples):
        return values[rows]
    return map_tensors(lambda tensor: tensor[rows] if tensor.ndim and len(tensor) == samples else tensor, values)


def _put_samples(values: Any, rows: slice, samples: int, new: Any) -> Any:
    if _is_listed(values, samples):
        listed = list(values)
        listed[rows] = new
        return tuple(listed) if isinstance(values, tuple) else listed
    old, moved = tensors_in(values), tensors_in(new)
    return rebuild(values, iter([_put_rows(*pair, rows, samples) for pair in zip(old, moved, strict=True)]))


def _put_rows(old: Tensor, new: Tensor, rows: slice, samples: int) -> Tensor:
    if old.ndim == 0 or len(old) != samples:
        return old
    found = old.clone()
    found[rows] = new.to(found)
    return found


def _is_listed(values: Any, samples: int) -> bool:
    """Whether a sequence holds an item for each sample rather than tensors with a row for each."""
    if not isinstance(values, list | tuple) or len(values) != samples:
        return False
    return not all(isinstance(each, Tensor) and each.ndim and len(each) == samples for each in values)
