"""A small vision transformer without BatchNorm for CIFAR-10: pretrained by rotation, then a linear probe.

    python benchmarks/vit.py --archive cifar10-jpeg.tar.gz [--out runs/vit]

The start of the fine-tunings in ``vit_soups.py`` and ``vit_wise.py``. Rotation (Gidaris et al. 2018, arXiv:1803.07728):
20,000 pictures without labels, three epochs, all four quadrants of each in a batch. Then a linear layer on the frozen
trunk, from 10,000 of them with labels, as soups and WiSE-FT begin in their papers. Both are commands of
``lightning-robust``; their checkpoints stay in the folder, and what is there is not trained again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cifar import CLASSES, Batch, CifarData, jittered, kept_array, read_files
from pixel_paths import by_pillow
from rows import Results, checkpoint, options, run
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler
from vision import Attention

from lightning_robust.demo.fashion_mnist import RobustImageClassifier
from lightning_robust.deployment.pixels.corruptions import corruptions
from lightning_robust.functional.rotation import TURNS, rotate_quadrants
from lightning_robust.functional.weights import load_same
from lightning_robust.harness.checkpoints import read_state

CONFIG = str(Path(__file__).with_name("vit.yaml"))
PRETEXT, PROBE = "rotation", "linear probe"
UNLABELLED, LABELLED, HELD_OUT = 20_000, 10_000, 2_000
CLEAN = "clean"
COMMANDS = {
    PRETEXT: [
        "--model=vit.RotationViT",
        "--trainer.max_epochs=3",
        f"--data.pictures={UNLABELLED}",
        "--data.batch_size=32",
    ],
    PROBE: ["--model=vit.CifarViT", "--trainer.max_epochs=2", "--model.frozen=true", "--model.learning_rate=0.01"],
}


class Trunk(nn.Module):
    """Pictures ``(N, 3, size, size)`` to features ``(N, width)``: two convolutions, blocks on 4 x 4 patches, the mean.

    Convolutions in place of one linear map of each patch let a small transformer learn from few pictures (Xiao et al.
    2021, arXiv:2106.14881).
    """

    def __init__(self, size: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width // 2, 3, 2, 1), nn.GELU(), nn.Conv2d(width // 2, width, 3, 2, 1))
        self.places = nn.Parameter(0.02 * torch.randn(1, (size // 4) ** 2, width))
        self.blocks = nn.Sequential(*(Attention(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)

    def forward(self, images: Tensor) -> Tensor:
        """The features."""
        tokens = self.stem(images).flatten(2).transpose(1, 2) + self.places
        features: Tensor = self.norm(self.blocks(tokens)).mean(1)
        return features


class CifarViT(RobustImageClassifier):
    """The transformer as a classifier of pictures of 32 x 32, 0.9 million parameters; AdamW with a one-cycle schedule.

    Args:
        width: Of a token.
        depth: Blocks.
        heads: Of attention.
        pretrained: Checkpoint whose trunk to begin from; the head is fresh.
        weights: Checkpoint to begin from, head and all.
        frozen: Train the head alone.
        **kwargs: Those of the classifier and of the mixins.
    """

    def __init__(
        self,
        *,
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
        classes: int = len(CLASSES),
        pretrained: str | None = None,
        weights: str | None = None,
        frozen: bool = False,
        learning_rate: float = 1e-3,
        **kwargs: Any,
    ) -> None:
        super().__init__(channels=3, classes=classes, learning_rate=learning_rate, **kwargs)
        self.trunk = Trunk(32, width, depth, heads)
        self.head = nn.Linear(width, classes)
        if pretrained is not None:
            trunk = {name: value for name, value in read_state(pretrained).items() if name.startswith("trunk.")}
            load_same(self, {**trunk, **self.head.state_dict(prefix="head.")}, pretrained)
        if weights is not None:
            load_same(self, read_state(weights), weights)
        self.trunk.requires_grad_(not frozen)


class RotationViT(CifarViT):
    """The transformer as it is pretrained: which way is up, without labels; arguments as of :class:`CifarViT`."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(classes=TURNS, **kwargs)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Cross entropy of the quadrants."""
        return super().training_step(rotate_quadrants(batch[0]), batch_idx)

    def _evaluate(self, batch: Batch, stage: str) -> None:
        super()._evaluate(rotate_quadrants(batch[0]), stage)


class ViTData(CifarData):
    """CIFAR-10 at 32 x 32 with one loader for each condition; those of training are drawn from the first condition.

    Pictures come in an order of their own, the same in each run: ``pictures`` to train on, the last 2,000 of the
    training files to validate on, 10,000 to test on.

    Args:
        archive: As of :func:`cifar.read_files`.
        folder: Where the decoded pictures are kept.
        pictures: How many to train on.
        batch_size: Pictures in a batch.
        conditions: ``"clean"`` and corruptions as ``"fog@4"``; the first one is trained on too, if ``corrupt``.
        shift: By how many pixels to move at most.
        gain: By how much brightness and contrast of a picture change at most.
        cutout: Side of a grey square somewhere in each picture (DeVries and Taylor 2017, arXiv:1708.04552).
    """

    def __init__(
        self,
        archive: str,
        folder: str,
        *,
        pictures: int = LABELLED,
        batch_size: int = 64,
        conditions: Sequence[str] = (CLEAN,),
        shift: int = 2,
        gain: float = 0.0,
        cutout: int = 0,
    ) -> None:
        train, labels = shuffled(Path(archive), Path(folder), "train")
        if not 1 <= pictures <= len(labels) - HELD_OUT:
            raise ValueError(f"Expected `pictures` from 1 to {len(labels) - HELD_OUT}, but got {pictures}.")
        held_out = (train[-HELD_OUT:], labels[-HELD_OUT:])
        super().__init__((train[:pictures], labels[:pictures]), held_out, batch_size)
        self.files = (Path(archive), Path(folder))
        self.shift, self.gain, self.cutout = shift, gain, cutout
        self.conditions = [None if name == CLEAN else corruptions([name])[0] for name in conditions]

    def val_dataloader(self) -> list[DataLoader[Batch]]:
        """In order, once for each condition."""
        return [in_order(self.test) for _ in self.conditions]

    def test_dataloader(self) -> list[DataLoader[Batch]]:
        """Those of the test files, once for each condition."""
        held_out = type(self.test)(*shuffled(*self.files, "test"))
        return [in_order(held_out) for _ in self.conditions]

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Bytes to normalised pictures under the loader's condition; others are returned as they are."""
        images, labels = batch
        if images.dtype != torch.uint8:
            return batch
        training = self.trainer is not None and self.trainer.training
        pixels = (jittered(images, self.shift) if training else images).float() / 255
        condition = self.conditions[dataloader_idx]
        if condition is not None:
            pixels = condition(pixels)
        return self.normalise(255 * (self.augmented(pixels) if training else pixels)), labels

    def augmented(self, pixels: Tensor) -> Tensor:
        """Pictures (N, 3, H, W) in [0, 1] of another brightness and contrast, with a grey square."""
        count, _, height, width = pixels.shape
        if self.gain:
            low, high = 1 - self.gain, 1 + self.gain
            factor, offset = torch.empty(2, count, 1, 1, 1).uniform_(low, high)
            pixels = (factor * (pixels - 0.5) + 0.5 * offset).clamp(0, 1)
        if self.cutout:
            top, left = (torch.randint(side, (count, 1)) - self.cutout // 2 for side in (height, width))
            rows, columns = torch.arange(height) - top, torch.arange(width) - left
            inside = [(place >= 0) & (place < self.cutout) for place in (rows, columns)]
            pixels = torch.where((inside[0][:, :, None] & inside[1][:, None, :])[:, None], 0.5, pixels)
        return pixels


def in_order(pictures: Any) -> DataLoader[Batch]:
    """Batches of 250."""
    return DataLoader(
        pictures, sampler=BatchSampler(SequentialSampler(pictures), 250, drop_last=False), batch_size=None
    )


def shuffled(archive: Path, folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Pictures (N, 32, 32, 3) and labels of ``train`` or ``test`` in an order that does not follow the classes."""
    labels = kept_array(folder / f"{part}_labels.npy", lambda: read_files(archive, part)[1])
    pictures = kept_array(
        folder / f"{part}.npy", lambda: np.stack([by_pillow(file) for file in read_files(archive, part)[0]])
    )
    order = np.random.default_rng(0).permutation(len(labels))
    return pictures[order], labels[order]


def data_arguments(archive: Path, out: Path) -> list[str]:
    """What every command here says about its data."""
    return [f"--data.archive={archive.resolve()}", f"--data.folder={(out / 'sets').resolve()}"]


def start(results: Results, archive: Path) -> str:
    """The checkpoint of the linear probe on the pretrained trunk, trained where it is missing."""
    data, places = (
        data_arguments(archive, results.folder),
        {name: results.folder / name.split()[0] for name in COMMANDS},
    )

    def fit(name: str, *more: str) -> dict[str, float]:
        began = time.process_time()
        cli = run("fit", CONFIG, 0, places[name], *data, *COMMANDS[name], *more)
        seconds = {"cpu_seconds": time.process_time() - began}
        return seconds | {"val/acc": float(cli.trainer.callback_metrics["val/acc"])}

    results.get(PRETEXT, 0, lambda: fit(PRETEXT))
    results.get(PROBE, 0, lambda: fit(PROBE, f"--model.pretrained={checkpoint(places[PRETEXT])}"))
    return checkpoint(places[PROBE])


def main() -> None:
    """Train what is missing, and say where it is."""
    given = options(__doc__, "runs/vit", files=["archive"])
    torch.set_num_threads(1)
    print(start(Results(given.out), given.archive))


if __name__ == "__main__":
    main()
