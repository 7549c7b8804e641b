"""The first inputs of a loader, gathered batch by batch as arguments of ``forward``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from lightning_robust.harness.inputs import positional_arguments
from lightning_robust.rows import count_rows, take_rows
from lightning_robust.structures import Key, flatten, is_batch_object, map_tensors, tensors_in

_MOST_BYTES = 2**28


class FirstInputs:
    """Gathers the first samples that a network sees, copied to the CPU: as many as are wanted, or 256 MB of them.

    Args:
        count: How many samples are wanted.
        input_key: Which part of a batch goes into ``forward``: position or name; a list gives several arguments. None
            infers it.
        at_least: How many are gathered whatever they take.

    Example:
        >>> first = FirstInputs(3)
        >>> for batch in [(torch.zeros(2, 5), 0), (torch.ones(2, 5), 1)]:
        ...     first.add(torch.nn.Linear(5, 1), batch)
        >>> first.complete, first.args()[0].shape
        (True, torch.Size([3, 5]))
    """

    def __init__(self, count: int, input_key: Key | list[Key] | None = None, at_least: int = 16) -> None:
        self._count, self._key, self._least = count, input_key, min(count, at_least)
        self._batches: list[tuple[Any, ...]] = []
        self._whole: list[Any] = []
        self._unusable = ""

    @property
    def count(self) -> int:
        """How many there are, at most as many as wanted."""
        return min(self._count, sum(map(count_rows, self._batches)))

    @property
    def complete(self) -> bool:
        """Whether there are as many as wanted, or as fit."""
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors_in(self._batches))
        return self.count >= (self._least if size >= _MOST_BYTES else self._count)

    def add(self, module: nn.Module, batch: Any, *, whole: bool = False) -> None:
        """Keep a batch, unless samples of another shape were kept before or it has no inputs.

        It is called in the middle of a loop, so that it raises nothing: :meth:`args` and :meth:`spread` say why there
        are no inputs.

        Args:
            module: What takes the inputs.
            batch: As the loader gave it.
            whole: Keep everything in it, for :meth:`batches`.
        """
        if self.complete:
            return
        try:
            _require_rows(batch)
            if whole:
                batch = map_tensors(lambda tensor: tensor.detach().to("cpu", copy=True), batch)
            args = positional_arguments(module, batch, self._key)
            if not whole:
                args = map_tensors(lambda tensor: tensor.detach().to("cpu", copy=True), args)
            if not self._batches or _shapes(args) == _shapes(self._batches[0]):
                self._batches.append(args)
                self._whole.append(batch if whole else None)
        except Exception as error:
            plain = isinstance(error, KeyError | ValueError | MisconfigurationException) and error.args
            self._unusable = str(error.args[0]) if plain else f"{type(error).__name__}: {error}"

    def args(self) -> tuple[Any, ...]:
        """The positional arguments of ``forward``, at most as many samples as wanted, in the loader's order.

        Raises:
            ValueError: If no batch was usable; the message says why. For tensors without a row for each sample that are
                not the same in all batches.
        """
        return self._joined(torch.arange(self.count))

    def spread(self, count: int) -> tuple[Any, ...]:
        """The arguments of some samples that lie evenly among all, so that they are not a single scene of a video.

        Args:
            count: How many; with more, those of fewer come first.

        Raises:
            ValueError: As :meth:`args`.
        """
        return self._joined(self._order()[:count])

    def batches(self, window: slice) -> Iterator[tuple[Tensor, Any]]:
        """The batches of some samples of :meth:`spread`, cut to these, each with their places among these samples.

        Args:
            window: Of the samples, in the order of :meth:`spread`.
        """
        chosen, start = self._order()[window], 0
        for args, batch in zip(self._batches, self._whole, strict=True):
            rows = count_rows(args)
            places = ((chosen >= start) & (chosen < start + rows)).nonzero()[:, 0]
            if len(places) and batch is not None:
                yield places, take_rows(batch, chosen[places] - start, rows)
            start += rows

    def _order(self) -> Tensor:
        """All samples by the reversed bits of their number: any first part of them lies evenly among all."""
        digits = max(self.count - 1, 1).bit_length()
        return torch.tensor(sorted(range(self.count), key=lambda row: f"{row:0{digits}b}"[::-1]))

    def _joined(self, rows: Tensor) -> tuple[Any, ...]:
        if not self._batches:
            raise ValueError(self._unusable or "no validation batch was seen")
        columns = zip(*(flatten(args).values() for args in self._batches), strict=True)
        sizes = [count_rows(args) for args in self._batches]
        joined = [_common(parts) if _are_whole(parts, sizes) else torch.cat(parts)[rows] for parts in columns]
        tensors = iter(joined)
        merged: tuple[Any, ...] = map_tensors(lambda _: next(tensors), self._batches[0])
        return merged


def _require_rows(batch: Any) -> None:
    """Refuse graphs, of which no first samples can be taken by rows."""
    sizes = {len(tensor) for tensor in tensors_in(batch) if tensor.ndim} if is_batch_object(batch) else set()
    if len(sizes) > 1:
        raise ValueError(
            f"Expected tensors with one row for each sample, of which the first are taken, but got "
            f"{type(batch).__name__} with tensors of {sorted(sizes)} rows. Give a loader whose batches have rows, or "
            "leave the technique out for this module."
        )


def _shapes(args: tuple[Any, ...]) -> list[torch.Size]:
    """What has to agree between batches: the shape of a row, of tensors without one for each sample all of it."""
    rows = count_rows(args)
    return [each.shape[1:] if each.ndim and len(each) == rows else each.shape for each in flatten(args).values()]


def _are_whole(parts: Sequence[Tensor], sizes: Sequence[int]) -> bool:
    """Whether these tensors of several batches go in whole, as a grid does, without a row for each sample."""
    return any(part.ndim == 0 or len(part) != size for part, size in zip(parts, sizes, strict=True))


def _common(parts: Sequence[Tensor]) -> Tensor:
    """The tensor of all batches.

    Raises:
        ValueError: If it is another one in some.
    """
    if parts[0].ndim and not all(torch.equal(parts[0], part) for part in parts):
        raise ValueError(
            f"Expected a tensor without a row for each sample to be the same in all batches, but one of shape "
            f"{tuple(parts[0].shape)} is not. Give it a row for each sample."
        )
    return parts[0]
