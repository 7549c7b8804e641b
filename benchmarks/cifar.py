"""CIFAR-10 from an archive of JPEG files: its bytes, decoded sets kept as arrays, a small ResNet and its data module.

``sysnoise.py`` trains and measures with it; ``pixel_paths.py`` decodes and resizes.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad, relu
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, SequentialSampler

from lightning_robust.demo.fashion_mnist import RobustImageClassifier
from lightning_robust.deployment.engines import BuildSettings, Subject, runtime
from lightning_robust.deployment.engines.execution import execute
from lightning_robust.deployment.graph.export import frozen_copy

SIZE = 24
"""What the network takes: pictures of 32 x 32 are really brought down, so that filters differ in what they alias."""
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CALIBRATION = 512
"""Training pictures that int8 takes its ranges from."""
Batch = tuple[Tensor, Tensor]


def read_files(archive: Path, part: str, limit: int | None = None) -> tuple[list[bytes], np.ndarray]:
    """The JPEG files of ``train`` or ``test``, in the order of their names, and their labels.

    Args:
        archive: Holds ``<part>/<class>/<number>.jpg``.
        part: ``"train"`` or ``"test"``.
        limit: So many of each class; all by default.

    Raises:
        SystemExit: If the archive holds no such files.
    """
    if not archive.is_file():
        raise SystemExit(f"Expected an archive of CIFAR-10 as JPEG files at {archive}, but there is none.")
    taken: dict[str, list[tuple[str, bytes]]] = {name: [] for name in CLASSES}
    with tarfile.open(archive) as files:
        for member in files:
            place = member.name.split("/")[-3:]
            if member.isfile() and len(place) == 3 and place[0] == part and place[1] in taken:
                kept = taken[place[1]]
                stream = files.extractfile(member) if limit is None or len(kept) < limit else None
                if stream is not None:
                    kept.append((place[2], stream.read()))
    if not all(taken.values()):
        raise SystemExit(f"Expected {part}/<class>/<number>.jpg for {', '.join(CLASSES)} in {archive}.")
    labels = np.repeat(np.arange(len(CLASSES)), [len(kept) for kept in taken.values()])
    return [content for kept in taken.values() for _, content in sorted(kept)], labels


def kept_array(path: Path, make: Callable[[], np.ndarray]) -> np.ndarray:
    """An array from a file, made at the first call."""
    if not path.exists():
        array = make()
        keep(path, lambda unfinished: np.save(unfinished, array))
    kept: np.ndarray = np.load(path)
    return kept


def kept_weights(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Weights and what belongs to them from a file, made at the first call."""
    if not path.exists():
        content = make()
        keep(path, lambda unfinished: torch.save(content, unfinished))
    kept: dict[str, Any] = torch.load(path, weights_only=True)
    return kept


def keep(path: Path, write: Callable[[IO[bytes]], None]) -> None:
    """Write a file that comes under its name once it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    with unfinished.open("wb") as stream:
        write(stream)
    unfinished.rename(path)


class Pictures(Dataset[Batch]):
    """Pictures, uint8 (N, H, W, 3), and labels in memory; an item is a batch."""

    def __init__(self, pictures: np.ndarray, labels: np.ndarray) -> None:
        self.pictures, self.labels = torch.from_numpy(pictures), torch.from_numpy(labels).long()

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.labels)

    def __getitem__(self, numbers: list[int]) -> Batch:
        """Bytes (N, 3, H, W) and labels."""
        chosen = torch.as_tensor(numbers)
        return self.pictures[chosen].permute(0, 3, 1, 2), self.labels[chosen]


class CifarData(pl.LightningDataModule):
    """Decoded pictures; those of training are flipped and moved by up to two pixels.

    Batches are normalised float32 (N, 3, H, W), channels last in memory, and labels.

    Args:
        train: Pictures, uint8 (N, H, W, 3), and labels.
        test: Those to validate on.
        batch_size: Pictures in a batch.
    """

    mean, std = (0.491, 0.482, 0.447), (0.235, 0.231, 0.248)

    def __init__(
        self,
        train: tuple[np.ndarray, np.ndarray],
        test: tuple[np.ndarray, np.ndarray],
        batch_size: int = 128,
    ) -> None:
        super().__init__()
        self.train, self.test, self.batch_size = Pictures(*train), Pictures(*test), batch_size

    def train_dataloader(self) -> DataLoader[Batch]:
        """In random order, the last incomplete batch dropped."""
        sampler = BatchSampler(RandomSampler(self.train), self.batch_size, drop_last=True)
        return DataLoader(self.train, sampler=sampler, batch_size=None)

    def val_dataloader(self) -> DataLoader[Batch]:
        """In order."""
        sampler = BatchSampler(SequentialSampler(self.test), 500, drop_last=False)
        return DataLoader(self.test, sampler=sampler, batch_size=None)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Bytes to normalised pictures; others are returned as they are."""
        images, labels = batch
        if images.dtype != torch.uint8:
            return batch
        if self.trainer is not None and self.trainer.training:
            images = jittered(images)
        return self.normalise(images), labels

    def normalise(self, images: Tensor) -> Tensor:
        """``(images / 255 - mean) / std`` of bytes (N, 3, H, W), float32, channels last in memory."""
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return ((images.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


def jittered(images: Tensor, by: int = 2) -> Tensor:
    """Half of the pictures (N, 3, H, W) flipped, each moved by up to ``by`` pixels, the border repeated."""
    count, _, height, width = images.shape
    wide = pad(images.float(), (by, by, by, by), mode="replicate").to(images.dtype)
    top, left = torch.randint(2 * by + 1, (2, count, 1))
    columns = left + torch.arange(width)
    turned = torch.rand(count) < 0.5
    columns[turned] = columns[turned].flip(1)
    rows = top + torch.arange(height)
    picture = torch.arange(count)[:, None, None]
    return wide[picture, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def engine(module: nn.Module, target: str, calibration: Tensor) -> Callable[[Tensor], Tensor]:
    """A target of this package on a network: normalised pictures to its outputs.

    Args:
        module: The network.
        target: As ``"onnxruntime-int8"``.
        calibration: Pictures that int8 takes its ranges from.
    """
    settings = BuildSettings(calibration_samples=len(calibration))
    made = execute(runtime(target), Subject(frozen_copy(module), (calibration[:16],), settings, (calibration,)))
    if made.run is None:
        raise SystemExit(f"Expected {target} to run, but it is {made.status}: {made.note}")
    run = made.run
    return lambda images: run((images,))[0]


class Block(nn.Module):
    """Two convolutions beside a shortcut (He et al. 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
        )
        self.second = nn.Sequential(nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs))
        self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, images: Tensor) -> Tensor:
        """``relu(second(first(x)) + shortcut(x))``."""
        return relu(self.second(self.first(images)) + self.shortcut(images))


class SmallResNet(RobustImageClassifier):
    """A ResNet of seven convolutions: a stem with ResNet's pooling, three blocks; SGD with a one-cycle schedule.

    Args:
        widths: Channels of the stem and the blocks.
        learning_rate: Peak of the schedule.
        weight_decay: Of SGD.
        **kwargs: Those of the mixins.
    """

    def __init__(
        self,
        *,
        widths: tuple[int, int, int, int] = (32, 48, 96, 192),
        learning_rate: float = 0.15,
        weight_decay: float = 5e-4,
        **kwargs: Any,
    ) -> None:
        super().__init__(channels=3, learning_rate=learning_rate, weight_decay=weight_decay, **kwargs)
        stem, *others = widths
        self.trunk = nn.Sequential(
            nn.Conv2d(3, stem, 3, padding=1, bias=False),
            nn.BatchNorm2d(stem),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, 1),
            *(Block(i, o, 1 if i == stem else 2) for i, o in zip(widths, others, strict=False)),
            nn.AdaptiveAvgPool2d(1),
        )
        self.head = nn.Linear(others[-1], len(CLASSES))
        self.to(memory_format=torch.channels_last)

    def configure_optimizers(self) -> Any:
        """SGD with Nesterov's momentum, the rate up for a quarter of the steps and down to zero."""
        optimizer = torch.optim.SGD(
            self.parameters(), self.learning_rate, momentum=0.9, nesterov=True, weight_decay=self.weight_decay
        )
        steps = max(5, int(self.trainer.estimated_stepping_batches))
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.learning_rate, steps, pct_start=0.25)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
