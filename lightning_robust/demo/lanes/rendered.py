"""Rendered pictures as a LightningDataModule, whatever their labels: loaders, order, the way back into an epoch."""

from __future__ import annotations

import math
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_robust.demo.batches import keep_batch
from lightning_robust.demo.lanes.loading import BlockSampler, CountingLoader, EpochSampler
from lightning_robust.progress import track

_FEW = 4

MEAN = (0.44, 0.48, 0.52)
STD = (0.20, 0.21, 0.25)
"""Colour statistics of the rendered roads."""


class RenderedData(pl.LightningDataModule):
    """Pictures that are rendered once, in ``setup`` of a subclass, and stay bytes until they are on the device.

    A resumed run continues in mid-epoch: order and flips depend on (seed, epoch, index) alone.

    Args:
        batch_size: Pictures in a batch.
        seed: Of the order and the flips.
        num_workers: Processes that load batches.
        render_workers: Processes that render; 0 renders in this one.
        sequence_length: Frames in a validation sequence, which stays on one rank.
    """

    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD

    def __init__(
        self, batch_size: int, seed: int, num_workers: int, render_workers: int, sequence_length: int = 1
    ) -> None:
        super().__init__()
        self.batch_size, self.seed, self.sequence_length = batch_size, seed, sequence_length
        self.num_workers, self.render_workers = num_workers, render_workers
        self._train: Dataset[Any] | None = None
        self._val: Dataset[Any] | None = None
        self._loader: CountingLoader | None = None
        self._skip = 0

    def render_chunks(self, rendering: Dataset[Any], count: int) -> list[Tensor]:
        """The tensors of all chunks of a data set whose items are rendered chunks, joined.

        Args:
            rendering: Tuples of tensors.
            count: Pictures in all of them.
        """
        workers = self.render_workers if len(rendering) > _FEW else 0  # type: ignore[arg-type]
        # its own generator, so that rendering does not advance the global one
        loader = DataLoader(rendering, batch_size=None, num_workers=workers, generator=torch.Generator())
        parts = list(track(loader, f"Rendering {count} pictures"))
        return [torch.cat(tensors) for tensors in zip(*parts, strict=True)]

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
            ends_after=self._batches_in_epoch,
            drop_last=len(sampler) >= self.batch_size,
            num_workers=self.num_workers,
            collate_fn=keep_batch,
        )
        self._skip = 0
        return self._loader

    def _batches_in_epoch(self) -> float:
        """Of which ``limit_train_batches`` may have left some out."""
        return math.inf if self.trainer is None else self.trainer.num_training_batches

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
            data, batch_size=self.batch_size, sampler=sampler, num_workers=self.num_workers, collate_fn=keep_batch
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
        images, targets = batch
        return self.normalise(images), targets

    def normalise(self, images: Tensor) -> Tensor:
        """``(images / 255 - mean) / std`` of uint8 (N, 3, H, W), float32; other dtypes are returned as they are."""
        if images.dtype != torch.uint8:
            return images
        module = None if self.trainer is None else self.trainer.lightning_module
        normalised = normalise(images, self.mean, self.std)
        return normalised if module is None else normalised.to(module.dtype)

    def _ranks(self) -> tuple[int, int]:
        return (self.trainer.world_size, self.trainer.global_rank) if self.trainer is not None else (1, 0)

    def _require_rendered(self, data: Dataset[Any] | None) -> Dataset[Any]:
        if data is None:
            raise RuntimeError("Expected rendered pictures, but setup() has not run. Call setup('fit') first.")
        return data


def normalise(images: Tensor, mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD) -> Tensor:
    """``(images / 255 - mean) / std`` for pictures (N, 3, H, W) with values 0 to 255, as float32."""
    scale = torch.tensor(std, device=images.device) * 255
    shift = torch.tensor(mean, device=images.device) / torch.tensor(std, device=images.device)
    return images.float() / scale[:, None, None] - shift[:, None, None]
