"""The rendered roads as a LightningDataModule."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_robust.demo.lanes.anchors import rescale
from lightning_robust.demo.lanes.loading import BlockSampler, CountingLoader, EpochSampler, coin
from lightning_robust.demo.lanes.rendering import Roads, render_roads
from lightning_robust.progress import track

_CHUNK = 64
_FEW = 4
Batch = tuple[Tensor, Tensor]

MEAN = (0.44, 0.48, 0.52)
STD = (0.20, 0.21, 0.25)
"""Colour statistics of the rendered roads."""
UNLABELLED = -1.0
"""Stands for every column of a picture without a label."""


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


def _pass_batch_on(batch: Any) -> Any:
    return batch


class LaneData(pl.LightningDataModule):
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

    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD

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
        super().__init__()
        if num_labelled is not None and not 1 <= num_labelled <= num_train:
            raise ValueError(f"Expected `num_labelled` from 1 to num_train={num_train}, but got {num_labelled}.")
        if num_val < sequence_length:
            raise ValueError(f"Expected num_val of at least one sequence ({sequence_length}), but got {num_val}.")
        self.save_hyperparameters()
        self.num_train, self.num_val = num_train, num_val // sequence_length * sequence_length
        self.batch_size, self.height, self.width, self.frame_width = batch_size, height, width, frame_width
        self.sequence_length, self.seed = sequence_length, seed
        self.num_workers, self.render_workers, self.num_labelled = num_workers, render_workers, num_labelled
        self._train: RoadDataset | None = None
        self._val: RoadDataset | None = None
        self._loader: CountingLoader | None = None
        self._skip = 0

    def setup(self, stage: str | None = None) -> None:
        """Renders the pictures of the stage, once."""
        if stage in (None, "fit") and self._train is None:
            numbers = torch.arange(self.num_train)
            self._train = self._render(numbers, torch.zeros_like(numbers), flips=True)
            self._train.labelled = self.num_labelled
        if self._val is None:
            frames = torch.arange(self.num_val)
            sequences = -1 - frames // self.sequence_length
            self._val = self._render(sequences, frames % self.sequence_length, flips=False)

    def _render(self, indices: Tensor, frame: Tensor, flips: bool) -> RoadDataset:
        rendering = _Rendering(indices, frame, self.seed, (self.height, self.width))
        workers = self.render_workers if len(rendering) > _FEW else 0
        # its own generator, so that rendering does not advance the global one
        loader = DataLoader(rendering, batch_size=None, num_workers=workers, generator=torch.Generator())
        parts = list(track(loader, f"Rendering {len(indices)} pictures"))
        images, columns = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        columns = rescale(columns, self.width, self.frame_width)
        return RoadDataset(Roads(images, columns), self.frame_width, flips, self.seed)

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled and flipped, the last incomplete batch dropped."""
        data = self._require_rendered(self._train)
        ranks, rank = self._ranks()
        sampler = EpochSampler(data, num_replicas=ranks, rank=rank, shuffle=True, seed=self.seed)
        self._loader = CountingLoader(
            data,
            batch_size=self.batch_size,
            sampler=sampler,
            skip=self._skip,
            drop_last=len(sampler) >= self.batch_size,
            num_workers=self.num_workers,
            collate_fn=_pass_batch_on,
        )
        self._skip = 0
        return self._loader

    def state_dict(self) -> dict[str, int]:
        """How many batches of the epoch were delivered; Lightning puts it into checkpoints."""
        return {"given": 0} if self._loader is None else self._loader.state_dict()

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Lets the next epoch leave out the batches that were delivered before."""
        self._skip = state_dict["given"]

    def val_dataloader(self) -> DataLoader[Any]:
        """Sequences in order."""
        data = self._require_rendered(self._val)
        sampler = BlockSampler(data, self.sequence_length, *self._ranks())
        return DataLoader(
            data, batch_size=self.batch_size, sampler=sampler, num_workers=self.num_workers, collate_fn=_pass_batch_on
        )

    def test_dataloader(self) -> DataLoader[Any]:
        """The validation set."""
        return self.val_dataloader()

    def predict_dataloader(self) -> DataLoader[Any]:
        """The validation set."""
        return self.val_dataloader()

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Bytes to normalised pictures, on the device; a tensor alone means pictures.

        The result is float32, or what the module under training computes in (``precision="bf16-true"``).
        """
        if isinstance(batch, Tensor):
            return self.normalise(batch)
        images, columns = batch
        return self.normalise(images), columns

    def normalise(self, images: Tensor) -> Tensor:
        """``(images / 255 - mean) / std`` of uint8 (N, 3, H, W), float32; other dtypes are returned as they are."""
        if images.dtype != torch.uint8:
            return images
        module = None if self.trainer is None else self.trainer.lightning_module
        normalised = normalise(images, self.mean, self.std)
        return normalised if module is None else normalised.to(module.dtype)

    def _ranks(self) -> tuple[int, int]:
        return (self.trainer.world_size, self.trainer.global_rank) if self.trainer is not None else (1, 0)

    def _require_rendered(self, data: RoadDataset | None) -> RoadDataset:
        if data is None:
            raise RuntimeError("Expected rendered roads, but setup() has not run. Call setup('fit') first.")
        return data


def normalise(images: Tensor, mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD) -> Tensor:
    """``(images / 255 - mean) / std`` for pictures (N, 3, H, W) with values 0 to 255, as float32."""
    scale = torch.tensor(std, device=images.device) * 255
    shift = torch.tensor(mean, device=images.device) / torch.tensor(std, device=images.device)
    return images.float() / scale[:, None, None] - shift[:, None, None]
