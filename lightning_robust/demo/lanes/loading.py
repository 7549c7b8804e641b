"""The order of the samples, flipped or not, which a resumed run continues in mid-epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, DistributedSampler

from lightning_robust.demo.lanes.draws import mix


class EpochSampler(DistributedSampler[Any]):
    """Shuffles by seed and epoch, and passes the epoch to the data set: yields ``epoch * len(dataset) + index``.

    Lightning sets the epoch, also when a run is resumed, so that order and augmentation are a function of (seed, epoch,
    index) alone.
    """

    skip = 0

    def __iter__(self) -> Iterator[int]:
        """Keys of this rank's samples, the first `skip` left out once."""
        start, self.skip = self.skip, 0
        base = self.epoch * len(self.dataset)  # type: ignore[arg-type]
        return iter([base + index for index in list(super().__iter__())[start:]])


class BlockSampler(DistributedSampler[Any]):
    """Gives each rank one contiguous run of whole sequences, in order.

    Args:
        dataset: A data set whose length is a multiple of `length`.
        length: Frames in a sequence.
        num_replicas: Number of ranks.
        rank: Number of this rank.
    """

    def __init__(self, dataset: Any, length: int, num_replicas: int, rank: int) -> None:
        super().__init__(dataset, num_replicas=num_replicas, rank=rank, shuffle=False)
        sequences = len(dataset) // length
        first, last = sequences * rank // num_replicas, sequences * (rank + 1) // num_replicas
        self._indices = range(first * length, last * length)

    def __iter__(self) -> Iterator[int]:
        """Indices of this rank's frames."""
        return iter(self._indices)

    def __len__(self) -> int:
        """Number of this rank's frames."""
        return len(self._indices)


class CountingLoader(DataLoader[Any]):
    """A DataLoader that counts the batches it delivers in an epoch, and can leave some out once.

    Args:
        dataset: Map-style data set.
        skip: Batches the first iteration leaves out.
        ends_after: Gives the number of batches after which an epoch is complete, where the loader has more.
        options: Options of DataLoader, by keyword; `sampler` is an `EpochSampler`.
    """

    def __init__(
        self, dataset: Any, *, skip: int = 0, ends_after: Callable[[], float] = lambda: math.inf, **options: Any
    ) -> None:
        super().__init__(dataset, **options)
        self.ends_after = ends_after
        self.skip = self.delivered = skip

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Batches of one epoch."""
        self.delivered, self.skip = self.skip, 0
        if isinstance(self.sampler, EpochSampler):
            self.sampler.skip = self.delivered * (self.batch_size or 1)
        for batch in super().__iter__():
            self.delivered += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Number of batches delivered in this epoch; 0 when it is complete."""
        return {"given": self.delivered if self.delivered < min(len(self), self.ends_after()) else 0}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Lets the next iteration leave out the batches that were delivered before.

        Lightning skips this call where the optimiser's configuration asks for the number of steps, so `LaneData`
        carries the same state.
        """
        self.skip = state_dict["given"]


def coin(keys: torch.Tensor, seed: int) -> torch.Tensor:
    """One random bit for each key, bool: whether a picture is flipped in this epoch."""
    return (mix(keys + mix(torch.tensor(seed))) & 1).bool()
