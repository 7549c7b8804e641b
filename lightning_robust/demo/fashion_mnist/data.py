"""Fashion-MNIST as a LightningDataModule."""

from __future__ import annotations

import math
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_robust.demo.batches import keep_batch
from lightning_robust.demo.fashion_mnist.idx_files import find_files, read_idx

Batch = tuple[Tensor, Tensor]
MEAN, STD = (0.2860,), (0.3530,)
"""Mean and standard deviation of the training pixels in [0, 1]."""

_TRAINED, _HELD_OUT = 55_000, 5_000
"""Pictures of the training files that are trained on, and the last ones, which are validated on."""


class Clothes(Dataset[Batch]):
    """Pictures in memory as bytes, fetched a batch at a time.

    Args:
        images: ``(N, 1, 28, 28)`` uint8.
        labels: ``(N,)`` int64.
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.labels)

    def __getitem__(self, index: int) -> Batch:
        """One picture ``(1, 28, 28)`` and its label."""
        return self.images[index], self.labels[index]

    def __getitems__(self, indices: list[int]) -> Batch:
        """Several pictures ``(N, 1, 28, 28)`` and their labels ``(N,)``."""
        return self.images[indices], self.labels[indices]


class FashionMNISTData(pl.LightningDataModule):
    """Batches ``(images, labels)``: float32 ``(N, 1, 28, 28)``, normalised, and int64 ``(N,)``.

    55,000 pictures to train on, the last 5,000 of the training files to validate on, 10,000 to test on. Training
    pictures are flipped left to right and shifted by a few pixels at random, from torch's global generator.

    Args:
        root: Folder of the four IDX files, ``.gz`` or not. None looks where Debian's package
            ``dataset-fashion-mnist`` puts them, then in the cache, then fetches them once.
        batch_size: Pictures in a batch.
        eval_batch_size: Pictures in a batch of validation or testing; ``batch_size`` if None.
        num_train: Number of training pictures, the first ones of the files; all if None.
        num_labelled: Number of them that have labels, the first ones. A training batch is then ``{"labelled": (images,
            labels), "unlabelled": (images, numbers)}``, as UATMixin takes it; the numbers identify the pictures.
        corruption: ``"rotated_noisy"`` turns every picture by up to 45 degrees either way and adds noise with a
            standard deviation of a tenth of the range. Validation and testing then have two loaders: corrupted
            pictures, then clean ones. Held-out pictures have the same angles and noise each time, drawn anew for each
            batch from the same seed: an accuracy belongs to its ``eval_batch_size``.
        flip: Whether to flip.
        shift: By how many pixels to shift at most, in each direction; the margins are black.
        num_workers: Loader processes; the pictures are in memory, so 0 is fastest.
        mean: Mean that pixels in [0, 1] are normalised with.
        std: Standard deviation that pixels in [0, 1] are normalised with.

    Raises:
        FileNotFoundError: If the files are nowhere and cannot be fetched; the message names the three ways.
        ValueError: If a file is damaged or of another kind, ``num_train`` is no number of them or ``shift`` below 0.
    """

    def __init__(
        self,
        root: str | None = None,
        *,
        batch_size: int = 128,
        eval_batch_size: int | None = None,
        num_train: int | None = None,
        num_labelled: int | None = None,
        corruption: Literal["none", "rotated_noisy"] = "none",
        flip: bool = True,
        shift: int = 0,
        num_workers: int = 0,
        mean: tuple[float, ...] = MEAN,
        std: tuple[float, ...] = STD,
    ) -> None:
        super().__init__()
        if num_train is not None and not 1 <= num_train <= _TRAINED:
            raise ValueError(f"Expected `num_train` from 1 to {_TRAINED}, or None for all, but got {num_train}.")
        known = num_train or _TRAINED
        if num_labelled is not None and not 1 <= num_labelled < known:
            raise ValueError(
                f"Expected `num_labelled` from 1 to less than the {known} training pictures, or None for all, but got "
                f"{num_labelled}."
            )
        if shift < 0:
            raise ValueError(f"Expected `shift` to be at least 0, but got {shift}.")
        self.root = root
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.num_train = num_train
        self.num_labelled = num_labelled
        self.corruption = corruption
        self.flip = flip
        self.shift = shift
        self.num_workers = num_workers
        self.mean, self.std = tuple(mean), tuple(std)
        self._parts: dict[str, Clothes] = {}

    def prepare_data(self) -> None:
        """Find or fetch the files, on one process."""
        find_files(self.root)

    def setup(self, stage: str) -> None:
        """Read the files into memory."""
        if self._parts:
            return
        files = find_files(self.root)
        images, labels = _read_pictures(files, "train")
        known = self.num_train if self.num_labelled is None else self.num_labelled
        self._parts["train"] = Clothes(images[:-_HELD_OUT][:known], labels[:-_HELD_OUT][:known])
        if self.num_labelled is not None:
            rest = images[:-_HELD_OUT][self.num_labelled : self.num_train]
            self._parts["unlabelled"] = Clothes(rest, torch.arange(len(rest)))
        self._parts["val"] = Clothes(images[-_HELD_OUT:], labels[-_HELD_OUT:])
        self._parts["test"] = Clothes(*_read_pictures(files, "t10k"))

    def train_dataloader(self) -> DataLoader[Batch] | dict[str, DataLoader[Batch]]:
        """Shuffled; a smaller batch behind others is left out. The loader of few labels begins again where it ends."""
        labelled = self._loader("train", shuffle=True)
        if self.num_labelled is None:
            return labelled
        return {"labelled": labelled, "unlabelled": self._loader("unlabelled", shuffle=True)}

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """The last 5,000 of the training files, in order."""
        return self._held_out("val")

    def test_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """The 10,000 test pictures, in order."""
        return self._held_out("test")

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Bytes to normalised floats; flips and shifts while training."""
        if isinstance(batch, dict):
            return {name: self.on_after_batch_transfer(part, dataloader_idx) for name, part in batch.items()}
        images, labels = batch
        pixels = images.float() / 255
        training = self.trainer is not None and self.trainer.training
        if training:
            pixels = self._augment(pixels)
        if self.corruption == "rotated_noisy" and dataloader_idx == 0:
            pixels = rotate_and_add_noise(pixels, None if training else torch.Generator().manual_seed(0))
        mean, std = (pixels.new_tensor(values).reshape(-1, 1, 1) for values in (self.mean, self.std))
        return (pixels - mean) / std, labels

    def _augment(self, pixels: Tensor) -> Tensor:
        if self.flip:
            turned = torch.rand(len(pixels), 1, 1, 1, device=pixels.device) < 0.5
            pixels = torch.where(turned, pixels.flip(3), pixels)
        if self.shift:
            offsets = torch.randint(-self.shift, self.shift + 1, (len(pixels), 2), device=pixels.device)
            pixels = shift_pictures(pixels, offsets)
        return pixels

    def _held_out(self, part: str) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        loaders = [self._loader(part, shuffle=False) for _ in range(1 if self.corruption == "none" else 2)]
        return loaders[0] if len(loaders) == 1 else loaders

    def _loader(self, part: str, *, shuffle: bool) -> DataLoader[Batch]:
        return DataLoader(
            self._parts[part],
            self.batch_size if shuffle else self.eval_batch_size or self.batch_size,
            shuffle=shuffle,
            drop_last=shuffle and len(self._parts[part]) >= self.batch_size,
            num_workers=self.num_workers,
            collate_fn=keep_batch,
        )


def rotate_and_add_noise(pixels: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Turn each picture by its own angle of up to 45 degrees and add noise.

    Args:
        pixels: ``(N, C, H, W)`` in [0, 1].
        generator: On the CPU; the same one in the same state gives the same pictures. None is torch's global one.

    Returns:
        Pixels in [0, 1], black outside of the turned picture.
    """
    angles = (torch.rand(len(pixels), generator=generator) - 0.5) * math.pi / 2
    cos, sin, zero = angles.cos(), angles.sin(), torch.zeros_like(angles)
    matrices = torch.stack([cos, -sin, zero, sin, cos, zero], 1).reshape(-1, 2, 3).to(pixels.device)
    grid = nn.functional.affine_grid(matrices, list(pixels.shape), align_corners=False)
    turned = nn.functional.grid_sample(pixels, grid, align_corners=False)
    noise = torch.randn(pixels.shape, generator=generator).to(pixels.device)
    return (turned + 0.1 * noise).clamp(0, 1)


def shift_pictures(pixels: Tensor, offsets: Tensor) -> Tensor:
    """Shift each picture by its own number of rows and columns, with zeros at the margins.

    Args:
        pixels: ``(N, C, H, W)``.
        offsets: ``(N, 2)`` integers, down and right.

    Example:
        >>> shift_pictures(torch.tensor([[[[1, 2], [3, 4]]]]), torch.tensor([[0, 1]])).tolist()
        [[[[0, 1], [0, 3]]]]
    """
    count, _, height, width = pixels.shape
    margin = int(offsets.abs().max())
    padded = nn.functional.pad(pixels, [margin] * 4)
    rows = torch.arange(height, device=pixels.device) + margin - offsets[:, :1]
    columns = torch.arange(width, device=pixels.device) + margin - offsets[:, 1:]
    picture = torch.arange(count, device=pixels.device).reshape(-1, 1, 1)
    return padded.movedim(1, 3)[picture, rows[:, :, None], columns[:, None, :]].movedim(3, 1)


def _read_pictures(files: dict[str, bytes], part: str) -> Batch:
    images = read_idx(files[f"{part}-images-idx3-ubyte"], f"{part}-images-idx3-ubyte", 3)
    labels = read_idx(files[f"{part}-labels-idx1-ubyte"], f"{part}-labels-idx1-ubyte", 1)
    if len(images) != len(labels):
        raise ValueError(f"Expected as many labels as pictures, but got {len(labels)} and {len(images)} in {part!r}.")
    return images.unsqueeze(1), labels.long()
