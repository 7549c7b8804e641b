"""Order of the samples: which picture comes when, flipped or not, in a way that can be taken up in mid-epoch.

The pictures themselves are made in `data.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, DistributedSampler

from lightning_robust.demo.lanes.draws import mix


class EpochSampler(DistributedSampler[Any]):
    """Shuffles by seed and epoch, and tells the data set the epoch: yields ``epoch * len(dataset) + index``.

    Lightning sets the epoch, also when a run is taken up again, so that order and augmentation are a function of
    (seed, epoch, index) alone.
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
        self._own = range(first * length, last * length)

    def __iter__(self) -> Iterator[int]:
        """Indices of this rank's frames."""
        return iter(self._own)

    def __len__(self) -> int:
        """Number of this rank's frames."""
        return len(self._own)


class CountingLoader(DataLoader[Any]):
    """A DataLoader that knows how many batches of the epoch it gave, and can leave some out once.

    Args:
        dataset: Map-style data set.
        skip: Batches the first iteration leaves out.
        options: Of DataLoader, by keyword; `sampler` is an `EpochSampler`.
    """

    def __init__(self, dataset: Any, *, skip: int = 0, **options: Any) -> None:
        super().__init__(dataset, **options)
        self.skip = self.given = skip

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Batches of one epoch."""
        self.given, self.skip = self.skip, 0
        if isinstance(self.sampler, EpochSampler):
            self.sampler.skip = self.given * (self.batch_size or 1)
        for batch in super().__iter__():
            self.given += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Number of batches given in this epoch; 0 when it is complete."""
        return {"given": self.given % max(len(self), 1)}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """The next iteration leaves out what had been given.

        Lightning skips this call where the optimiser's configuration asks for the number of steps, so `LaneData`
        carries the same state.
        """
        self.skip = state_dict["given"]


def coin(keys: torch.Tensor, seed: int) -> torch.Tensor:
    """One random bit for each key, bool: whether a picture is flipped in this epoch."""
    return (mix(keys + mix(torch.tensor(seed))) & 1).bool()
