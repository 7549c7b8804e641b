"""What the runner has to know about a foreign module; the modules themselves are in ``modules_*.py``."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

TRAIN, VAL, BATCH = 8, 7, 4
"""Two training batches, and two validation batches of unequal size."""


@dataclass(frozen=True)
class Guest:
    """A foreign module with its data.

    Args:
        name: In test ids.
        make: Gives module, training loader and validation loader.
        kind: ``"pictures"``, ``"tokens"``, ``"numbers"`` (vectors, series, node features).
        inputs: Paths in a batch of what an attack moves; ``()`` where nothing can be moved.
        keys: What a user has to say to techniques that perturb, beyond what is inferred.
        classes: Path in a batch of the classes ``(N,)``, for classifiers.
        embedding: Path of the embedding of token inputs.
        features: Path of the module whose output the rotation head reads; pictures only.
        forward: Calls the module with what its ``forward`` takes of a batch; None is the first of ``inputs`` alone.
        host: The class that mixins come before.
    """

    name: str
    make: Callable[[], tuple[Any, Any, Any]]
    kind: str = "pictures"
    inputs: tuple[Any, ...] = (0,)
    keys: dict[str, Any] = field(default_factory=dict)
    classes: Any = None
    embedding: str | None = None
    features: str | None = None
    forward: Callable[[Any, Any], Any] | None = None
    host: type | None = None

    @property
    def bounds(self):
        return "pixels" if self.kind == "pictures" else "none"

    def __str__(self):
        return self.name


class Rows(Dataset):
    """Samples made by a function of their index, each from a seed of its own."""

    def __init__(self, count, make, first=0):
        self._samples = []
        for index in range(first, first + count):
            self._samples.append(make(torch.Generator().manual_seed(index), index))

    def __len__(self):
        return len(self._samples)

    def __getitem__(self, index):
        return self._samples[index]


def loaders(make, **settings):
    """Training and validation loaders of samples that ``make(generator, index)`` gives."""
    settings = {"batch_size": BATCH} | settings
    return DataLoader(Rows(TRAIN, make), **settings), DataLoader(Rows(VAL, make, first=100), **settings)


def picture(generator, index, size=16, classes=3):
    """A random picture in [0, 1], brighter for higher classes."""
    label = index % classes
    return torch.rand(3, size, size, generator=generator) * 0.5 + 0.25 * label, torch.tensor(label)


def encoder(width=4, batchnorm=True):
    """A small convolutional network from (N, 3, S, S) to (N, width)."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3, stride=2, padding=1),
        nn.BatchNorm2d(width) if batchnorm else nn.Identity(),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * width, width),
    )
