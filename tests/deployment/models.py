"""Small models that the deployment tests share."""

from dataclasses import dataclass

import torch
from torch import nn


class SmallCNN(nn.Module):
    """Convolution, BatchNorm, ReLU and a linear head: (N, 3, 16, 16) -> (N, 4)."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8 * 8 * 8, 4)

    def forward(self, images):
        return self.head(self.drop(self.stem(images).flatten(1)))


class OverflowingNorm(nn.Module):
    """LayerNorm over channels written as x.pow(2).mean on large activations: overflows in fp16, silently."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.out = nn.Conv2d(8, 2, 1)

    def forward(self, images):
        x = self.conv(images) * 1000
        centred = x - x.mean(1, keepdim=True)
        variance = centred.pow(2).mean(1, keepdim=True)
        return self.out(centred / (variance + 1e-6).sqrt())


@dataclass
class Detection:
    scores: torch.Tensor
    boxes: torch.Tensor


class Structured(nn.Module):
    """Takes a dict and a second argument, returns what ``kind`` says."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.layer = nn.Linear(3, 2)

    def forward(self, batch, scale):
        y = self.layer(batch["x"]) * scale
        return {
            "tuple": (y, y.sum(1)),
            "dict": {"scores": y, "total": y.sum(1)},
            "dataclass": Detection(y, y.sum(1)),
        }[self.kind]


def images(count=4, size=16, seed=0):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))
