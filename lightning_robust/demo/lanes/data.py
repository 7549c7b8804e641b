"""The rendered roads as a LightningDataModule."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_robust.checks import check_positive
from lightning_robust.demo.lanes.anchors import rescale
from lightning_robust.demo.lanes.loading import coin
from lightning_robust.demo.lanes.network import UNLABELLED
from lightning_robust.demo.lanes.rendered import MEAN as MEAN
from lightning_robust.demo.lanes.rendered import STD as STD
from lightning_robust.demo.lanes.rendered import RenderedData
from lightning_robust.demo.lanes.rendered import normalise as normalise
from lightning_robust.demo.lanes.rendering import Roads, render_roads

_CHUNK = 64
Batch = tuple[Tensor, Tensor]


class RoadDataset(Dataset[Batch]):
    """Rendered roads in memory as bytes, some flipped left to right.

    Args:
        roads: The pictures; their columns in pixels of the original frame.
        frame_width: Width of the original frame.
        flips: Whether the keys of `EpochSampler` decide about flips.
        seed: Seed of the flips.
    """

    labelled: int | None = None
    """How many of the first pictures keep their columns; all if None."""

    def __init__(self, roads: Roads, frame_width: int, flips: bool, seed: int) -> None:
        self.roads, self.frame_width, self.flips, self.seed = roads, frame_width, flips, seed

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.roads.images)

    def __getitem__(self, key: int) -> Batch:
        """One picture (3, H, W) and its columns (2, R)."""
        images, columns = self.__getitems__([key])
        return images[0], columns[0]

    def __getitems__(self, keys: list[int]) -> Batch:
        """Several pictures at once, uint8 (N, 3, H, W), and their columns (N, 2, R)."""
        numbers = torch.as_tensor(keys)
        images, columns = self.roads.images[numbers % len(self)], self.roads.columns[numbers % len(self)]
        if self.flips:
            turned = coin(numbers, self.seed)
            images[turned] = images[turned].flip(3)
            columns[turned] = self.frame_width - 1 - columns[turned].flip(1)
        if self.labelled is not None:
            columns[numbers % len(self) >= self.labelled] = UNLABELLED
        return images, columns


class _Rendering(Dataset[Roads]):
    """Renders a chunk of pictures for each item, so that worker processes can share the work."""

    def __init__(self, indices: Tensor, frame: Tensor, seed: int, size: tuple[int, int]) -> None:
        self.chunks = list(zip(torch.split(indices, _CHUNK), torch.split(frame, _CHUNK), strict=True))
        self.seed, self.size = seed, size

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, number: int) -> Roads:
        indices, frame = self.chunks[number]
        return render_roads(indices, seed=self.seed, height=self.size[0], width=self.size[1], frame=frame)


class LaneData(RenderedData):
    """Roads that are rendered in ``setup``; needs no download.

    Batches are ``(images, columns)``: normalised float32 (N, 3, H, W), and the pixel columns of the left and right ego
    line at each row anchor in the original frame, (N, 2, R), NaN where absent. Pictures stay bytes until they are on
    the device. The validation set consists of short sequences, frame after frame.

    Rendering happens once, in `setup`: about 5 ms a picture on two CPU cores, 110 kB of memory each.
    A resumed run continues in mid-epoch: order and flips depend on (seed, epoch, index) alone.

    Args:
        num_train: Pictures to train on.
        num_val: Pictures to validate on, rounded down to whole sequences.
        batch_size: Pictures in a batch.
        height: Height of the rendered pictures, a multiple of 16.
        width: Width of the rendered pictures, a multiple of 16.
        frame_width: Width of the original frame, in whose pixels columns are given.
        sequence_length: Frames in a validation sequence.
        seed: Another seed gives other roads, another order, other flips.
        num_workers: Processes that load batches; the pictures are in memory, so 0 is fast.
        render_workers: Processes that render in `setup`; 0 renders in this one.
        num_labelled: Only the first so many training pictures keep their columns; those of the others are -1, as
            UATMixin takes them. All if None.
    """

    def __init__(
        self,
        num_train: int = 6000,
        num_val: int = 256,
        batch_size: int = 64,
        height: int = 144,
        width: int = 256,
        frame_width: int = 960,
        sequence_length: int = 8,
        seed: int = 0,
        num_workers: int = 0,
        render_workers: int = 2,
        num_labelled: int | None = None,
    ) -> None:
        check_positive(num_train=num_train, sequence_length=sequence_length)
        super().__init__(batch_size, seed, num_workers, render_workers, sequence_length)
        if num_labelled is not None and not 1 <= num_labelled <= num_train:
            raise ValueError(f"Expected `num_labelled` from 1 to num_train={num_train}, but got {num_labelled}.")
        if num_val < sequence_length:
            raise ValueError(f"Expected num_val of at least one sequence ({sequence_length}), but got {num_val}.")
        self.save_hyperparameters()
        self.num_train, self.num_val = num_train, num_val // sequence_length * sequence_length
        self.height, self.width, self.frame_width, self.num_labelled = height, width, frame_width, num_labelled

    def setup(self, stage: str | None = None) -> None:
        """Renders the pictures of the stage, once."""
        if stage in (None, "fit") and self._train is None:
            numbers = torch.arange(self.num_train)
            train = self._render(numbers, torch.zeros_like(numbers), flips=True)
            train.labelled = self.num_labelled
            self._train = train
        if self._val is None:
            frames = torch.arange(self.num_val)
            sequences = -1 - frames // self.sequence_length
            self._val = self._render(sequences, frames % self.sequence_length, flips=False)

    def _render(self, indices: Tensor, frame: Tensor, flips: bool) -> RoadDataset:
        rendering = _Rendering(indices, frame, self.seed, (self.height, self.width))
        images, columns = self.render_chunks(rendering, len(indices))
        columns = rescale(columns, self.width, self.frame_width)
        return RoadDataset(Roads(images, columns), self.frame_width, flips, self.seed)
